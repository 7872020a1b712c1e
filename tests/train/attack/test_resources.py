"""WordNet as Debian installs it becomes a folder that NLTK reads."""

from __future__ import annotations

import sys

import pytest

from train.attack import resources
from train.attack.resources import WORDNET_FILES, import_textattack, write_wordnet
from train.registry import ConfigError


def test_the_database_is_copied_and_its_table_added(tmp_path) -> None:
    source, folder = tmp_path / "debian", tmp_path / "nltk" / "wordnet"
    source.mkdir()
    for name in WORDNET_FILES:
        (source / name).write_text(name)
    write_wordnet(source, folder)
    for name in WORDNET_FILES:
        assert (folder / name).read_text() == name
        assert not (folder / name).is_symlink()  # NLTK would not follow it
    lines = [line.split("\t") for line in (folder / "lexnames").read_text().splitlines()]
    assert [int(number) for number, _, _ in lines] == list(range(45))
    # As lexnames(5WN) has them.
    assert lines[3] == ["03", "noun.Tops", "1"]
    assert lines[18] == ["18", "noun.person", "1"]
    assert lines[29] == ["29", "verb.body", "2"]
    assert lines[44] == ["44", "adj.ppl", "3"]


def test_without_textattack_the_error_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "textattack", raising=False)
    with pytest.raises(ConfigError, match=r"not installed.*venv-attack.*\[attack\]"):
        import_textattack()
