"""The command that makes a study's table, on made-up runs."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

import pytest

from tests.train.report.studies import write_run
from train.comparison.study import read_csv
from train.registry import ConfigError
from train.study import collect, main

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(tmp_path, tiny_config):
    """A sweep with two weights, and a control in another folder."""
    names = {"eval__report": ("accuracy", "loss")}
    for number, method in enumerate(("energy", "energy:0.5", "none")):
        for seed in range(3):
            values = {"accuracy": 0.5 + 0.1 * number + 0.01 * seed, "loss": 1.0 + seed}
            write_run(
                tmp_path / "a", tiny_config("none", **names), method, seed, {"test": values},
                scale_free_mmd=0.5,
            )  # fmt: skip
    control = tiny_config("none", model__attention_dropout=0.3, **names)
    for seed in range(2):
        values = {"accuracy": 0.75, "loss": 1.0}
        write_run(tmp_path / "b", control, "none", seed, {"test": values}, scale_free_mmd=0.25)
    return [tmp_path / "a", tmp_path / "b"]


def test_runs_become_a_table_and_the_table_says_the_same(folders, tmp_path, capsys) -> None:
    runs = collect(folders)
    arms = [("", "none", ""), ("", "energy", "1"), ("", "energy", "0.5")]
    control = ("model.attention_dropout=0.3", "none", "")
    assert set(runs) == {*arms, control}
    assert runs[arms[2]][2] == {"accuracy": pytest.approx(0.62), "loss": 3.0, "scale_free_mmd": 0.5}
    assert list(runs[control]) == [0, 1]
    table = tmp_path / "study.csv"
    assert main([*map(str, folders), f"--csv={table}"]) == 0
    first = capsys.readouterr().out
    assert read_csv(table).keys() == runs.keys()
    assert main([str(table)]) == 0
    assert first == f"11 runs: {table}\n\n{capsys.readouterr().out}"


def test_what_is_missing_or_there_twice_is_named(folders, tmp_path, tiny_config, capsys) -> None:
    (tmp_path / "b" / "none-seed0" / "result.json").unlink()
    with pytest.raises(ConfigError, match="1 runs are not finished, such as .*none-seed0"):
        collect(folders)
    with pytest.raises(ConfigError, match="left aside"):
        collect([folders[0], folders[0]])
    write_run(tmp_path / "c", tiny_config(), "ct", 0, {"test": {"accuracy": 0.9}})
    with pytest.raises(ConfigError, match="no plain run"):
        collect([tmp_path / "c"])
    with pytest.raises(ConfigError, match="ct-seed0 has no loss, scale_free_mmd, which"):
        collect([folders[0], tmp_path / "c"])
    assert main([str(tmp_path / "x.csv"), str(folders[0])]) == 2
    assert "alone or the folders of runs" in capsys.readouterr().err


def test_weights_are_told_apart_and_a_methods_own_is_one_of_them(
    folders, tmp_path, tiny_config
) -> None:
    names, metrics = {"eval__report": ("accuracy", "loss")}, {"test": {"accuracy": 0.5, "loss": 1}}
    write_run(tmp_path / "c", tiny_config("none", **names), "energy:1.0000001", 0, metrics,
              scale_free_mmd=0.5)  # fmt: skip
    assert ("", "energy", "1.0000001") in collect([*folders, tmp_path / "c"])
    write_run(tmp_path / "d", tiny_config("none", **names), "energy:1", 0, metrics)
    with pytest.raises(ConfigError, match=r"energy-seed0 again: both are energy .* with seed 0"):
        collect([*folders, tmp_path / "d"])


@pytest.mark.parametrize("name", ["x.foo", "noext", ".png"])
def test_a_picture_of_no_known_kind_is_refused_at_once(tmp_path, capsys, name) -> None:
    """Before the table is looked for, which is not there."""
    assert main([str(tmp_path / "none.csv"), f"--picture={tmp_path / name}"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{name}'; expected a name in .png or .pdf or .svg." in said


def test_a_picture_is_drawn_in_each_kind(folders, tmp_path, capsys) -> None:
    for ending in (".pdf", ".svg", ".PNG"):
        path = tmp_path / f"a{ending}"
        assert main([*map(str, folders), "--metrics=loss", f"--picture={path}"]) == 0
        assert capsys.readouterr().out.endswith(f"Picture: {path}\n")
        assert path.stat().st_size > 1000
    assert main([*map(str, folders), "--metrics=scale_free_mmd"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "nothing to compare: scale_free_mmd can only stand beside" in said


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("metrics", "test", "loss"), float("nan"), "loss is nan; expected a finite number"),
        (("metrics", "test", "loss"), float("inf"), "loss is inf; expected a finite number"),
        (("metrics", "test", "loss"), "0.5", "loss is '0.5'; expected a finite number"),
        (("metrics", "test", "loss"), [1], r"loss is \[1\]; expected a finite number"),
        (("metrics", "test", "loss"), True, "loss is True; expected a finite number"),
        (("metrics", "test", "loss"), 10**400, "loss is 10+; expected a finite number"),
        (("metrics", "test"), [0.5], r"accuracy is \[0.5\]; expected a finite number"),
        (("scale_free_mmd",), "x", "scale_free_mmd is 'x'; expected a finite number"),
        (("config", "seed"), "1", "seed is '1'; expected a whole number"),
        (("config", "seed"), [1], r"seed is \[1\]; expected a whole number"),
        (("config", "alignment", "weight"), "x", "alignment.weight is 'x'; expected a number or"),
        (("config", "alignment", "method"), None, "alignment.method is None; expected a method's"),
        (("config", "alignment", "method"), "zt", "does not hold what a run writes: .*'zt'"),
        (("config", "alignment"), 3, "alignment.method is 3; expected a method's name"),
    ],
)
def test_what_a_run_does_not_write_is_named_with_its_file(
    folders, capsys, path, value, said
) -> None:
    file = folders[0] / "energy-seed1" / "result.json"
    whole = section = json.loads(file.read_text())
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    file.write_text(json.dumps(whole))
    assert main(list(map(str, folders))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"{file}:? {said}", line)


def test_runs_without_a_split_to_compare_are_refused(tmp_path, tiny_config, capsys) -> None:
    write_run(tmp_path, tiny_config("none", eval__final=()), "none", 0, {})
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none-seed0: its config's eval.final is []; expected a split to compare" in line


def test_the_tables_of_the_documentation_come_from_its_files(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "study.md").read_text()

    def numbers(text: str) -> list[tuple[str, ...]]:
        """The cells of each row of differences, but the first, which may be named otherwise."""
        rows = [re.split(r"(?<!\\)\|", row) for row in text.splitlines() if row.startswith("|")]
        return [tuple(row[2:-1]) for row in rows if ", p = " in "".join(row)]

    shown = set(numbers(page))
    files = dict(re.findall('(\\w+)="(docs/.*)"', page))
    page_commands = re.findall(r"^ +python -m (train\.study .*)", page, re.MULTILINE)
    commands = [re.sub(r"\$(\w+)", lambda name: files[name[1]], x) for x in page_commands]
    commands = [x for x in commands if " docs/" in x and "--csv=" not in x]
    assert len(commands) == page.count("python -m train.study $") + page.count("train.study docs/")
    for command in commands:
        words = shlex.split(command)[1:]
        assert main([word for word in words if not word.startswith("--picture")]) == 0
        made = numbers(capsys.readouterr().out)
        assert made, command
        assert set(made) <= shown, command
