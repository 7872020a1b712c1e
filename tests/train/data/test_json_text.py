"""Text that is no text, half of a surrogate pair or wrong bytes: the same from every reader."""

from __future__ import annotations

import pytest

from tests.train import tiny_vqa
from tests.train.tiny_squad import write_squad
from train.data.easy_vqa import read_easy_questions
from train.data.json_text import loads
from train.data.squad_files import read_json
from train.data.transfer_files import read_labelled
from train.data.vqa_v2 import read_vqa
from train.predict import decoded, read_texts
from train.registry import ConfigError

GOOD = '"Z\u00fcrich \\ud83d\\ude00"'.encode()  # a string as JSON has it
LINE = b'{"sentence": %s, "label": 1}'
FIRST = LINE % b'"a"' + b"\n"


def labelled(folder, string):
    (folder / "a.jsonl").write_bytes(FIRST + LINE % string)
    return read_labelled(folder / "a.jsonl", ("sentence",), ("no", "yes"))[0][0][-1]


def predicted(folder, string):
    lines = decoded([FIRST, LINE % string], "a.jsonl")
    return list(read_texts(lines, ("sentence",), "a.jsonl"))[-1][0]


def squad(folder, string):
    write_squad(folder)
    path = folder / "train-v2.0.json"
    path.write_bytes(path.read_bytes().replace(b'"dogs sat?"', string))
    return read_json(path)[1].question


def vqa(folder, string):
    tiny_vqa.write_vqa(folder, transposed=True)
    (path,) = folder.glob("*train2014_questions.json")
    (annotations,) = folder.glob("*train2014_annotations.json")
    path.write_bytes(path.read_bytes().replace(b'"Is it red?"', string))
    return read_vqa(path, annotations)[0].text


def easy(folder, string):
    (folder / "a.json").write_bytes(b'[[%s, "red", 0]]' % string)
    return read_easy_questions(folder / "a.json", ("red",))[0].text


READERS = [labelled, predicted, squad, vqa, easy]


@pytest.mark.fault(
    "Invalid text in a data set or in what is to be labelled: half an emoji, wrong bytes",
    "An error with file, line and place, from every reader alike",
)
@pytest.mark.parametrize("read", READERS)
def test_every_reader_refuses_what_is_no_text(read, tmp_path) -> None:
    assert read(tmp_path, GOOD) == "Z\u00fcrich \U0001f600"
    for bad, message in (
        (rb'"who \ud83d sings"', r"half of a surrogate pair in 'who \\ud83d sings'"),
        (b'"Z\xfcrich"', "is not UTF-8"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read(tmp_path, bad)
        assert "a.json" in str(caught.value) or str(tmp_path) in str(caught.value)
        assert "line 2" in str(caught.value) or read in (squad, vqa, easy)


def test_a_byte_order_mark_is_no_text(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + FIRST)
    assert read_labelled(tmp_path / "a.jsonl", ("sentence",), ("no", "yes")) == ([["a"]], [1])
    assert list(decoded([b"\xef\xbb\xbfa\n", b"b"], "x")) == ["a\n", "b"]


def test_wrong_bytes_of_a_table_are_named(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes(b"startphrase,label\nZ\xfcrich,1\n")
    with pytest.raises(ConfigError, match=r"a.csv cannot be read: line 2 is not UTF-8.* 0xfc"):
        read_labelled(tmp_path / "a.csv", ("context",), ("no", "yes"))


@pytest.mark.parametrize("label", ['"' + "1" * 5000 + '"', "1" * 5000, '"' + "1" * 4000 + '"'])
def test_labels_of_thousands_of_digits_are_an_error_of_one_line(label, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"sentence": "a", "label": {label}}}')
    with pytest.raises(ConfigError, match="line 1") as caught:
        read_labelled(tmp_path / "a.jsonl", ("sentence",), ("no", "yes"))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_halves_are_found_wherever_they_are_and_wholes_are_not() -> None:
    for bad in ('{"\\udc00": 1}', '[[["\\uD83D\\uD83D"]]]', '"a\\"b \\ud83d"'):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            loads(bad)
    assert loads('"\\ud83d\\ude00 \\\\ud83d"') == "\U0001f600 \\ud83d"
