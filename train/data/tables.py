"""Files of rows with named columns: CSV, TSV, JSON lines and Parquet, by their ending.

CSV and TSV are UTF-8 with the columns' names in the first line; a field in double quotes may hold
separators, line ends, and quotes written twice. The separator of CSV is the comma, or the semicolon
or tab that its first line has: spreadsheets write that of their country. A line of JSON is an
object. What is wrong with single rows is collected, so that a message can name several at once.
"""

from __future__ import annotations

import csv
import dataclasses
import decimal
import glob
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from train.data.json_text import loads, read_text
from train.registry import ConfigError, nearest

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SHOWN = 3  # bad rows that a message names; of the others it gives the number


class Row(NamedTuple):
    """A row of a file."""

    place: str  # where it begins, such as "line 3"
    values: tuple[Any, ...]  # of the columns that were asked for, None for an empty one


@dataclasses.dataclass
class Problems:
    """What is wrong with single rows: the first few, and how many there are.

    Example:
        >>> problems = Problems()
        >>> problems.add(Path("a.csv"), "line 3", "has no text in 'review'")
        >>> problems.raise_any()
        Traceback (most recent call last):
        ...
        train.registry.ConfigError: a.csv, line 3 has no text in 'review'. Mend or remove it.
    """

    shown: list[str] = dataclasses.field(default_factory=list)
    count: int = 0

    def add(self, path: Path, place: str, what: str) -> None:
        """Notes what is wrong with a row."""
        self.count += 1
        if self.count <= SHOWN:
            self.shown.append(f"{path}, {place} {what}")

    def raise_any(self, advice: str = "") -> None:
        """Raises ConfigError if any were noted; ends with `advice`, what else may be meant."""
        found, more = "; ".join(self.shown), self.count - len(self.shown)
        if self.count == 1:
            raise ConfigError(f"{found}. Mend or remove it.{advice}")
        rest = f"; and {more} more" if more else ""
        if self.count:
            raise ConfigError(
                f"{self.count} rows cannot be used: {found}{rest}. Mend or remove them.{advice}"
            )


def files_of(pattern: str, what: str) -> list[Path]:
    """The files that the setting `what` names, as a file or a pattern; in order of their names."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise ConfigError(f"{what} is {pattern!r}, a folder; name its files: {path / '*.csv'}.")
    named = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
    found = sorted(named)
    if not found:
        others = sorted(x.name for x in path.parent.glob("*") if x.suffix.lower() in READERS)
        raise ConfigError(
            f"{what} is {pattern!r}, and there is no such file. {nearest(path.name, others)}"
            f"Give its path as seen from {Path.cwd()}, or in full."
        )
    for file in found:
        if file.suffix.lower() not in READERS:
            raise ConfigError(
                f"{what}: the ending of {file} is {file.suffix!r}; expected {', '.join(READERS)}. "
                f"Save the table as one of these."
            )
    return found


def read_rows(path: Path, columns: Mapping[str, str], problems: Problems) -> list[Row]:
    r"""The rows of a file, in order.

    Args:
        path: with an ending of `READERS`.
        columns: those to read, each by what names it, for messages: {"data.text": "review"}.
        problems: what is wrong with a row is added to these, and the row left out.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.csv")
        ...     _ = path.write_text("review,stars\n'good, for once',5\n".replace("'", '"'))
        ...     read_rows(path, {"data.text": "review"}, Problems())
        [Row(place='line 2', values=('good, for once',))]
    """
    before = problems.count
    try:
        rows = list(READERS[path.suffix.lower()](path, columns, problems))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not rows and problems.count == before:
        raise ConfigError(f"{path} holds no rows. Expected one for each example.")
    return rows


def _separated(path: Path, columns: Mapping[str, str], problems: Problems) -> Iterator[Row]:
    """CSV, or with tabs TSV."""
    content = _content(path)
    told, delimiter = (False, "\t") if path.suffix.lower() == ".tsv" else _separator(content)
    csv.field_size_limit(2**31 - 1)  # a text may be long
    lines = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    what = SEPARATORS[delimiter]
    rows = _numbered(lines, path, what, problems)
    if told:
        next(rows, None)
    header = next(rows, None)
    if header is None:
        problems.raise_any()
        raise ConfigError(f"{path} is empty; expected the columns' names in its first line.")
    names = [name.strip() for name in header[1]]
    places = [_place(name, names, key, path) for key, name in columns.items()]
    blank = []  # rows of separators alone; spreadsheets leave some at the end, where they are none
    for line, fields in rows:
        if len(fields) > 1 and not any(map(str.strip, fields)):
            blank.append(Row(f"line {line}", (None,) * len(places)))
            continue
        yield from blank
        blank.clear()
        if len(fields) != len(names):
            more = f"; a field with a {what} in it must stand in double quotes, no blank before"
            plural = "" if len(fields) == 1 else "s"
            problems.add(
                path, f"line {line}", f"has {len(fields)} field{plural}, the first line "
                f"{len(names)}{more if len(fields) > len(names) else ''}",
            )  # fmt: skip
            continue
        yield Row(f"line {line}", tuple(fields[place] or None for place in places))


def _separator(content: str) -> tuple[bool, str]:
    """Whether a line of its own says so, as spreadsheets write it, and the separator."""
    found = re.search(r"[^\r\n]+", content)
    first = found[0] if found else ""
    told = re.fullmatch(r'"?sep=([,;|\t])"?\s*', first)
    if told:
        return True, told[1]
    unquoted = re.sub(r'"[^"]*"', "", first)
    return False, max(",;\t", key=unquoted.count)


def _numbered(
    reader: Any, path: Path, what: str, problems: Problems
) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line that it begins in; behind one that cannot be told there is no next."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            text = str(error)
            said = {"unexpected end of data": "a double quote that never closes"}.get(text, text)
            problems.add(
                path, f"line {line}", f"is no row of {what}-separated fields ({said}); a field "
                f"that begins with a double quote must end with one, and write those inside twice",
            )  # fmt: skip
            return
        if fields:  # an empty line has none
            yield line, fields


def _place(name: str, names: Sequence[str], key: str, path: Path) -> int:
    if names.count(name) > 1:
        raise ConfigError(f"{path} has {names.count(name)} columns {name!r}; {key} must name one.")
    if name not in names:
        _no_column(name, names, key, str(path))
    return names.index(name)


def _no_column(name: str, names: Sequence[str], key: str, where: str) -> NoReturn:
    shown = ", ".join(repr(x[:40]) for x in names[:20]) + (", ..." if len(names) > 20 else "")
    other = next((x for x in SEPARATORS if len(names) == 1 and x in names[0]), None)
    hint = f" Its fields are separated by {other!r}; save it as .csv with commas." if other else ""
    raise ConfigError(
        f"{where} has no column {name!r} ({key}); {nearest(name, names)}it has {shown}.{hint}"
    )


def _json_lines(path: Path, columns: Mapping[str, str], problems: Problems) -> Iterator[Row]:
    first = True
    for number, line in enumerate(_content(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            values = loads(line)
        except ValueError as error:
            problems.add(path, place, f"is not JSON: {error}")
            continue
        if not isinstance(values, dict):
            problems.add(path, place, f"is no JSON object: {line.strip()[:60]}")
            continue
        missing = [(key, name) for key, name in columns.items() if name not in values]
        if missing and first:  # most likely so has every line
            key, name = missing[0]
            _no_column(name, list(values), key, f"{path}, {place}")
        first = False
        if missing:
            problems.add(path, place, f"has no field {missing[0][1]!r}")
            continue
        yield Row(place, tuple(values[name] for name in columns.values()))


def _parquet(path: Path, columns: Mapping[str, str], problems: Problems) -> Iterator[Row]:
    del problems  # a column has one type
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading Parquet takes pip install pyarrow.") from error

    try:
        names = pyarrow.parquet.read_schema(path).names
        for key, name in columns.items():
            _place(name, names, key, path)
        wanted = list(dict.fromkeys(columns.values()))
        table = pyarrow.parquet.read_table(path, columns=wanted)
        read = {name: list(map(_plain, table.column(name).to_pylist())) for name in wanted}
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    for number, values in enumerate(zip(*(read[x] for x in columns.values()), strict=True), 1):
        yield Row(f"row {number}", values)


def _plain(value: Any) -> Any:
    """A value as JSON would have it: databases write numbers as decimals."""
    return float(value) if isinstance(value, decimal.Decimal) else value


def _content(path: Path) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise ConfigError(f"{path}, {error}. Save it as UTF-8.") from error


READERS: dict[str, Callable[[Path, Mapping[str, str], Problems], Iterator[Row]]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
