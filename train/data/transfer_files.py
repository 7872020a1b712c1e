"""Labelled texts in local files: JSON lines, and two corpora's own formats.

A line of a .jsonl file is an object with the texts by name and "label", a class's number or name:

    {"sentence": "A fine film.", "label": 1}
    {"premise": "A man sleeps.", "hypothesis": "A man runs.", "label": "contradiction"}
    {"context": "She opens the", "endings": ["door.", "sky.", "sea.", "tea."], "label": 0}

HellaSWAG's hellaswag_val.jsonl is such a file (its context is called "ctx"). SWAG's train.csv and
val.csv, and the files of TwitterPPDB (Twitter_URL_Corpus_test.txt) are read as published.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train.data.json_text import loads, read_text
from train.registry import ConfigError

Record = tuple[int, dict[str, Any]]  # the line, and what it says: texts by name, and "label"


def read_labelled(
    path: Path, fields: tuple[str, ...], labels: tuple[str, ...]
) -> tuple[list[list[str]], list[int]]:
    """Reads a file of labelled texts; its ending says in which format.

    Args:
        path: *.jsonl, SWAG's *.csv, or TwitterPPDB's *.txt.
        fields: the names of an example's texts; "ending0", "ending1", ... are a file's "endings".
        labels: the names of the classes.

    Returns:
        For each field the texts of all examples, and the labels.
    """
    try:
        content = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    rows = []
    for line, values in READERS[path.suffix](content, path):
        where = f"{path}, line {line}"
        for name in fields:
            if not isinstance(values.get(name), str):
                raise ConfigError(
                    f"{where}: expected the texts {', '.join(fields)}; {name} is none."
                )
        label = _label(values.get("label"), labels, where)
        rows.append((*(values[name] for name in fields), label))
    if not rows:
        raise ConfigError(f"{path} holds no examples.")
    *columns, found = (list(column) for column in zip(*rows, strict=True))
    return columns, found


def _json_lines(content: str, path: Path) -> Iterator[Record]:
    """Each line's object, with the endings of a choice as fields of their own."""
    for number, line in _lines(content):
        where = f"{path}, line {number}"
        try:
            values = loads(line)
        except ValueError as error:
            raise ConfigError(f"{where} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{where} is no JSON object: {line.strip()[:80]}.")
        endings = values.get("endings")
        listed = enumerate(endings if isinstance(endings, list) else ())
        flat = {f"ending{place}": ending for place, ending in listed}
        yield number, {"context": values.get("ctx"), **values, **flat}


def _swag(content: str, path: Path) -> Iterator[Record]:
    """SWAG's columns are many; "startphrase" is the context up to where the endings go on."""
    rows = csv.DictReader(io.StringIO(content, newline=""))
    try:
        for row in rows:
            yield rows.line_num, {**row, "context": row.get("startphrase")}
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num}: {error}.") from error


def _twitter(content: str, path: Path) -> Iterator[Record]:
    """Both sentences, and how many of 6 people found them to be paraphrases: "(4, 6)".

    As its authors do, 4 or more make a paraphrase, 2 or fewer none, and 3 are left out (Lan et al.,
    2017, arXiv 1708.00391).
    """
    for number, line in _lines(content):
        first, second, votes, *_ = [*line.split("\t"), "", "", ""]
        found = re.fullmatch(r"\(([0-6]), 6\)", votes.strip())
        if found is None:
            raise ConfigError(
                f"{path}, line {number}: expected two sentences and votes such as (4, 6), "
                f"separated by tabs, got {line[:80]!r}."
            )
        if found[1] != "3":
            yield number, {"sentence1": first, "sentence2": second, "label": int(found[1] > "3")}


def _lines(content: str) -> Iterator[tuple[int, str]]:
    return ((n, line) for n, line in enumerate(content.split("\n"), start=1) if line.strip())


def _label(value: Any, labels: tuple[str, ...], where: str) -> int:
    """The number of a class, given its number or its name; -1 is that of an unlabelled example."""
    if value in labels:
        return labels.index(value)
    if isinstance(value, str) and re.fullmatch(r"-1|[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < len(labels):
        raise ConfigError(
            f"{where} has the label {value!r:.80}; expected 0 to {len(labels) - 1}, or one of "
            f"{', '.join(labels)}."
        )
    return value


READERS: dict[str, Callable[[str, Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".csv": _swag,
    ".txt": _twitter,
}
