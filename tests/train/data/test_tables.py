"""Tables as people and programs write them, and what is wrong with a row by its line."""

from __future__ import annotations

import decimal

import pytest

from tests.train.tiny_texts import rows_of, write_table
from train.data.tables import Problems, files_of, read_rows
from train.registry import ConfigError

COLUMNS = {"data.text": "review", "data.label": "stars"}


def read(path, content: bytes | str = b"", columns=COLUMNS):
    """The rows of a file with this content; what is wrong with some is an error."""
    if content:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = Problems()
    rows = read_rows(path, columns, problems)
    problems.raise_any()
    return rows


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path, ending) -> None:
    rows = rows_of(5)
    read_back = read(write_table(tmp_path / f"a.{ending}", rows))
    assert [(row.values[0], str(row.values[1])) for row in read_back] == [
        (text, str(label)) for text, label in rows
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("mark.csv", b"\xef\xbb\xbfreview,stars\na,1\n", [("line 2", ("a", "1"))]),
        (
            "dos.csv",
            b"review,stars\r\na,1\r\n\r\nb,2\r\n",
            [("line 2", ("a", "1")), ("line 4", ("b", "2"))],
        ),
        ("mac.csv", b"review,stars\ra,1\rb,2\r", [("line 2", ("a", "1")), ("line 3", ("b", "2"))]),
        ("spaces.csv", b"id, review , stars\n7,a,1", [("line 2", ("a", "1"))]),
        (
            "lines.csv",
            b'review,stars\n"a\nb",1\nc,2',
            [("line 2", ("a\nb", "1")), ("line 4", ("c", "2"))],
        ),
        ("quotes.csv", b'review,stars\n"say ""a, b""",1', [("line 2", ('say "a, b"', "1"))]),
        ("within.csv", b'review,stars\n5" long,1', [("line 2", ('5" long', "1"))]),
        ("upper.CSV", b"review,stars\na,1", [("line 2", ("a", "1"))]),
        ("nul.csv", b"review,stars\na\x00b,1", [("line 2", ("a\x00b", "1"))]),
        (
            "semicolons.csv",
            b'"review";"stars"\n"a, b; c";"1"\nd;2',
            [
                ("line 2", ("a, b; c", "1")),
                ("line 3", ("d", "2")),
            ],
        ),
        ("told.csv", b"\xef\xbb\xbfsep=;\r\nreview;stars\r\na;1\r\n", [("line 3", ("a", "1"))]),
        ("tabs.csv", b"review\tstars\na, b\t1", [("line 2", ("a, b", "1"))]),
        ("name.csv", b'"a; b; c; d",review,stars\n1,a,1', [("line 2", ("a", "1"))]),
        (
            "left.csv",
            b"review,stars\na,1\n,\nb,2\n,\n , \n,,\n",
            [
                ("line 2", ("a", "1")),
                ("line 3", (None, None)),
                ("line 4", ("b", "2")),
            ],
        ),
        ("a.tsv", b"stars\treview\n1\ta, b", [("line 2", ("a, b", "1"))]),
        (
            "a.jsonl",
            '{"stars": 1, "review": "a\u2028b"}\r\n\n'.encode(),
            [("line 1", ("a\u2028b", 1))],
        ),
    ],
)
def test_forms_of_files(tmp_path, name, content, expected) -> None:
    assert read(tmp_path / name, content) == expected


def test_a_text_may_be_longer_than_a_csv_field_is_by_default(tmp_path) -> None:
    text = "a" * 200_000
    assert read(tmp_path / "a.csv", f"review,stars\n{text},1")[0].values[0] == text


@pytest.mark.fault(
    "A row of a user's own table has too few fields, an open quote, another encoding, no JSON",
    "An error that names the file and the line where the row begins",
)
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b'review,stars\n"a\nb",1\nc,2,3\n',
            "a.csv, line 4 has 3 fields, the first line 2; a field with a comma",
        ),
        ("a.csv", b"review,stars\na\n", "line 2 has 1 field, the first line 2"),
        (
            "a.csv",
            b'review,stars\n"a\nb",1\n"c,2\nd,3\n',
            "line 4 is no row of comma-separated fields .a double quote that never",
        ),
        (
            "a.csv",
            b'review,stars\n\n"a" b,1\n',
            "line 3 is no row of comma-separated fields .',' expected",
        ),
        (
            "a.csv",
            b"review,stars\na,1\n\nb\xe9,2\n",
            "a.csv, line 4 is not UTF-8: .* 0xe9.* Save it as UTF-8",
        ),
        ("a.csv", "review,stars\na,1".encode("utf-16"), "line 1 is not UTF-8"),
        ("a.csv", b"\n", "a.csv is empty; expected the columns' names"),
        ("a.csv", b"review,stars\n\n", "a.csv holds no rows"),
        (
            "a.csv",
            b"reviews,stars\na,1",
            "no column 'review' .data.text.; did you mean .reviews.. it has 'reviews', 'stars'",
        ),
        ("a.csv", b"review|stars\na|1", "separated by '|'; save it as .csv with commas"),
        ("a.tsv", b"review;stars\na;1", "separated by ';'; save it as .csv with commas"),
        ("a.csv", b"review;stars\na;1;2", "line 2 has 3 fields, .* a field with a semicolon in it"),
        ("a.csv", b"review;stars\na;1\n;\n b;2;3\n", "line 4 has 3 fields, the first line 2"),
        ("a.csv", b"sep=;\n", "a.csv is empty"),
        ("a.csv", b'"sep=;\nreview;stars\na;1', "line 1 is no row of semicolon-separated fields"),
        ("a.csv", b"review,stars\n,\n , \n", "a.csv holds no rows"),
        ("a.csv", b"review,stars,review\na,1,b", "has 2 columns 'review'; data.text must name one"),
        ("a.tsv", b"review\tstars\na,1", "line 2 has 1 field, the first line 2"),
        (
            "a.jsonl",
            b'{"review": "a", "stars": 1}\n{"review": "b"}\n',
            "line 2 has no field 'stars'",
        ),
        (
            "a.jsonl",
            b'{"text": "a", "stars": 1}\n',
            "line 1 has no column 'review' .*it has 'text', 'stars'",
        ),
        ("a.jsonl", b'\n{"review": "a"\n', "line 2 is not JSON"),
        ("a.jsonl", b'["a", 1]\n', "line 1 is no JSON object"),
        (
            "a.jsonl",
            b'{"review": "\\ud83d", "stars": 1}\n',
            "line 1 is not JSON: half of a surrogate pair",
        ),
        ("a.jsonl", b"\n", "a.jsonl holds no rows"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, message) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path / name, content)
    assert str(tmp_path / name) in str(error.value)


def test_a_single_column_has_its_empty_rows(tmp_path) -> None:
    rows = read(tmp_path / "a.csv", b'review\na\n""\n', {"data.text": "review"})
    assert [row.values for row in rows] == [("a",), (None,)]


def test_decimals_of_a_database_are_numbers(tmp_path) -> None:
    rows = [("a", decimal.Decimal("1.50")), ("b", decimal.Decimal("2.00"))]
    assert [row.values[1] for row in read(write_table(tmp_path / "a.parquet", rows))] == [1.5, 2.0]


def test_the_first_bad_rows_are_named_and_the_others_counted(tmp_path) -> None:
    content = "review,stars\n" + "".join(f"a{n},1{',x' * (n % 2)}\n" for n in range(20))
    with pytest.raises(ConfigError) as error:
        read(tmp_path / "a.csv", content)
    assert "10 rows cannot be used" in str(error.value)
    assert [f"line {n} " in str(error.value) for n in (3, 5, 7, 9)] == [True, True, True, False]
    assert "and 7 more" in str(error.value)


def test_parquet_lacks_a_column_by_name(tmp_path) -> None:
    path = write_table(tmp_path / "a.parquet", [("a", 1)], ("reveiw", "stars"))
    with pytest.raises(ConfigError, match="no column 'review' .*did you mean \"reveiw\""):
        read(path)


def test_a_pattern_names_several_files_in_order(tmp_path) -> None:
    for name in ("b.csv", "a.csv", "c.txt", "d[1].csv"):
        (tmp_path / name).write_text("x")
    found = files_of(str(tmp_path / "*.csv"), "data.train")
    assert [path.name for path in found] == ["a.csv", "b.csv", "d[1].csv"]
    assert files_of(str(tmp_path / "d[1].csv"), "data.train")[0].name == "d[1].csv"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reviw.csv", 'no such file. did you mean "review.csv"'),
        ("*.tsv", "no such file"),
        ("notes.txt", "ending of .*notes.txt is '.txt'; expected .csv, .tsv, .jsonl, .parquet"),
        (".", "a folder; name its files"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path, name, message) -> None:
    for file in ("review.csv", "notes.txt"):
        (tmp_path / file).write_text("x")
    with pytest.raises(ConfigError, match=message):
        files_of(str(tmp_path / name), "data.train")
