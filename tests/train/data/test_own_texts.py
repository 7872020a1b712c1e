"""A user's own texts: classes, scores, splits, what is printed, and rows that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train.tiny_texts import rows_of, write_table
from train.data.own_texts import OwnTexts
from train.registry import ConfigError


def make(path, checkpoint="", **settings) -> OwnTexts:
    given = {"text": "review", "label": "stars", "batch_size": 8, "max_length": 32, **settings}
    return OwnTexts(train=str(path), tokenizer=checkpoint, **given)


def labelled(path, labels, **settings) -> OwnTexts:
    """Two texts of each label."""
    rows = [(f"{label!r} number {n}", label) for label in labels for n in range(2)]
    return make(write_table(path, rows), **settings)


@pytest.mark.parametrize(
    ("name", "labels", "classes"),
    [
        ("a.csv", [10, 9, 1, -1], ("-1", "1", "9", "10")),
        ("a.jsonl", [10, 9, 1], ("1", "9", "10")),
        ("a.parquet", [2.0, 10.0], ("2", "10")),
        ("a.csv", ["4.0", "5", "4"], ("4", "5")),
        ("a.csv", ["pos", "neg", " pos "], ("neg", "pos")),
        ("a.csv", ["1", "10", "9", "many"], ("1", "10", "9", "many")),
        ("a.csv", ["01", "1"], ("01", "1")),  # as of postal codes
        ("a.jsonl", [True, False], ("false", "true")),
        ("a.csv", ["9" * 5000, "1"], ("1", "9" * 5000)),  # Python makes no number of so many digits
        ("a.csv", ["NA", "EU"], ("EU", "NA")),  # words, and no missing numbers
    ],
)
def test_classes_are_found_in_a_stable_order(tmp_path, name, labels, classes) -> None:
    data = labelled(tmp_path / name, labels)
    assert data.label_names == classes
    again = labelled(tmp_path / f"again-{name}", labels[::-1])
    assert again.label_names == classes


def test_an_example_keeps_its_own_label_and_text(tmp_path) -> None:
    rows = rows_of(40, classes=("b", "a", "c"))
    data = make(write_table(tmp_path / "a.csv", rows), validation_share=0.25)
    found = {}
    for split in ("train", "validation"):
        examples = data.read(split)
        for row, number in enumerate(examples.ids.tolist()):
            found[number] = (examples.texts(row)[0], data.label_names[examples.labels[row]])
    assert [found[number] for number in range(1, 41)] == rows
    assert data.examples == {"train": 30, "validation": 10}
    assert np.bincount(data.read("validation").labels).min() >= 3


def test_files_of_their_own_are_the_splits(tmp_path) -> None:
    paths = {name: write_table(tmp_path / f"{name}.csv", rows_of(size)) for name, size in
             (("train", 20), ("validation", 6), ("test", 4))}  # fmt: skip
    data = make(paths["train"], validation=str(paths["validation"]), test=str(paths["test"]))
    assert data.splits == ("train", "validation", "test")
    assert data.examples == {"train": 20, "validation": 6, "test": 4}
    assert data.found["eval.final"] == ("validation", "test")
    assert make(paths["train"]).found["eval.final"] == ("validation",)


def test_copies_do_not_fall_on_both_sides(tmp_path) -> None:
    rows = [(f"{'A  Fine' if n % 2 else 'a fine'} film {n // 4}", n // 4 % 2) for n in range(400)]
    data = make(write_table(tmp_path / "a.csv", rows), validation_share=0.2)
    sides = [{text[-2:] for text in data.read(s).columns[0]} for s in ("train", "validation")]
    assert data.examples["validation"] == pytest.approx(80, abs=8)
    assert not sides[0] & sides[1]


def test_several_files_and_a_pair(tmp_path) -> None:
    columns = ("a", "b", "same")
    for number in range(2):
        rows = [(f"first {number} {n}", "" if n == 1 else f"second {n}", n % 2) for n in range(6)]
        write_table(tmp_path / f"part{number}.tsv", rows, columns)
    data = make(tmp_path / "part*.tsv", text="a", text_pair="b", label="same")
    assert data.fields == ("a", "b")
    assert sum(data.examples.values()) == 12
    texts = [data.read(split).texts(0) for split in data.splits]
    assert all(len(pair) == 2 for pair in texts)


def test_batches_read_back_as_the_texts(tmp_path, checkpoint) -> None:
    data = make(write_table(tmp_path / "a.csv", rows_of(40)), checkpoint, buckets=(32,))
    batch, example = next(data.train_batches()), data.example_batch()
    assert {name: x.shape for name, x in batch.items()} == {n: x.shape for n, x in example.items()}
    assert {name: x.dtype for name, x in batch.items()} == {n: x.dtype for n, x in example.items()}
    examples = data.read("train")
    for row, number in enumerate(batch["id"].tolist()):
        place = examples.ids.tolist().index(number)
        tokens = data.text_tokenizer.tokenize([examples.texts(place)[0]], max_length=32)[0]
        np.testing.assert_array_equal(
            batch["input_ids"][row][batch["attention_mask"][row] == 1], tokens.input_ids
        )
        assert batch["label"][row] == examples.labels[place]


def test_what_is_printed_counts_classes_lengths_and_copies(tmp_path, checkpoint) -> None:
    rows = [(f"cat {n} {'mat ' * (20 if n < 5 else 0)}", "ab"[n % 4 // 3]) for n in range(40)]
    rows += [("cat", "a"), ("Cat ", "b")]
    test = write_table(tmp_path / "test.csv", [("CAT", "a"), ("dogs", "b")])
    path = write_table(tmp_path / "a.csv", rows)
    own = {"validation": str(test), "test": str(test)}
    said = make(path, checkpoint, max_length=16, **own).description()
    text = " ".join(said)
    assert "Texts: train 42, validation 2, test 2." in text
    assert "Classes (train + validation + test): a: 31 + 1 + 1; b: 11 + 1 + 1." in text
    lengths = [len(x.input_ids) for x in make(path, checkpoint).tokenize([[r[0] for r in rows]])]
    assert f"half of the texts to train on have {sorted(lengths)[20]} or fewer" in text
    assert f"{np.mean(np.array(lengths) > 16):.1%} are longer than data.max_length" in text
    assert "Copies: 1 rows of" in text
    assert "of 1 with different labels" in text
    assert "1 texts of" in text


def test_scores_are_read_and_measured(tmp_path) -> None:
    rows = [(f"text {n}", n * 1.5 - 20) for n in range(40)]
    data = make(write_table(tmp_path / "a.csv", rows), regression=True)
    train = data.read("train")
    assert train.labels.dtype == np.float32
    assert data.label_names == ()
    for row, number in enumerate(train.ids):
        assert train.labels[row] == rows[number - 1][1]
    found = data.found
    assert found["task.center"] == pytest.approx(train.labels.mean(), abs=1e-5)
    assert found["task.scale"] == pytest.approx(train.labels.std(), rel=1e-5)
    assert "mean" in " ".join(data._spread(train).split())


def test_a_run_does_not_go_on_with_other_data(tmp_path) -> None:
    rows = rows_of(40)
    data = make(write_table(tmp_path / "a.csv", rows))
    kept = {"labels": data.label_names, "fingerprint": data.found["data.fingerprint"]}
    again = make(write_table(tmp_path / "same.csv", rows), **kept)
    assert again.examples == data.examples
    assert again.found == {}
    other = make(write_table(tmp_path / "b.csv", [*rows[:-1], (rows[-1][0], 1)]), **kept)
    with pytest.raises(ConfigError, match="not those of the run any more"):
        other.read("train")
    # What predicts needs no data.
    assert make(tmp_path / "gone.csv", **kept).label_names == ("1", "5")


def test_classes_that_are_given_keep_their_order(tmp_path) -> None:
    path = write_table(tmp_path / "a.csv", rows_of(20, classes=("low", "high")))
    data = make(path, labels=("low", "middle", "high"))
    assert data.label_names == ("low", "middle", "high")
    assert set(data.read("train").labels.tolist()) == {0, 2}


BAD = [("a text", "x"), ("another", "y")] * 2


@pytest.mark.fault(
    "A row of a user's own texts has no text, no label, an unknown one, no number",
    "An error with file and line, and what is known; of many rows the first three and their number",
)
@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([*BAD, (" ", "x")], {}, "line 6 has no text in 'review'. Mend or remove it"),
        ([*BAD, ("text", " ")], {}, "line 6 has no label in 'stars'"),
        (
            [*BAD, ("text", "z")],
            {},
            "line 6 is the only one of its class, 'z'. .*two examples or more",
        ),
        ([("a", 1), ("b", 2), ("c", 3.5)], {}, "3 rows .*texts.py:regression"),
        (
            [*BAD, ("text", "z")],
            {"labels": ("x", "y")},
            "line 6 has the label 'z', which is none of data.labels. .*Known: x, y",
        ),
        ([("a", "x"), ("b", "x")], {}, "all 2 rows have the label 'x'"),
        (
            [("a", "1.0"), ("b", "2.0"), ("c", "nan"), ("d", "NA")] * 2,
            {},
            "4 rows .*line 4 has no label but 'nan'; .*line 5 has no label but 'NA'.*data.labels",
        ),
        (
            [(f"text {n}", int(n == 9)) for n in range(30)],
            {"regression": True, "train_examples": 3},
            "The 3 texts to train on all have the score 0, .*data.train_examples is 3",
        ),
        (
            [("a", 1), ("b", "nan")],
            {"regression": True},
            "line 3 has the score 'nan'; expected a finite number",
        ),
        (
            [("a", 1), ("b", "1e400")],
            {"regression": True},
            "line 3 has the score '1e400'; expected a finite",
        ),
        (
            [("a", 1), ("b", "3,5")],
            {"regression": True},
            "line 3 has the score '3,5'; expected a number",
        ),
        ([("a", 2), ("b", 2)], {"regression": True}, "All 2 scores .* are 2"),
        (
            [*BAD, *BAD],
            {"validation_share": 0.001},
            "validation_share is 0.001, which of the 8 texts .* is none",
        ),
        (rows_of(20), {"train_examples": 100}, "data.train_examples is 100; expected 0 .all. to"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, settings, message) -> None:
    path = write_table(tmp_path / "a.csv", rows)
    with pytest.raises(ConfigError, match=message):
        make(path, **settings).read("train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"review": null, "stars": 1}', "line 5 has no text in 'review'"),
        ('{"review": 3, "stars": 1}', "line 5 has no text in 'review' but 3"),
        ('{"review": "a", "stars": null}', "line 5 has no label"),
        ('{"review": "a", "stars": NaN}', "line 5 has the label nan; expected a finite number"),
        ('{"review": "a", "stars": [1, 2]}', "line 5 has the labels .1, 2.; expected one label"),
        (
            '{"review": "a", "stars": {"x": 1}}',
            "line 5 has the label .*; expected a word or a number",
        ),
    ],
)
def test_json_that_is_no_text_or_label_is_named(tmp_path, line, message) -> None:
    path = write_table(tmp_path / "a.jsonl", rows_of(4))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=message):
        make(path).read("train")


def test_a_score_that_only_python_takes_for_a_number_is_named(tmp_path) -> None:
    path = write_table(tmp_path / "a.csv", [("a", "1"), ("b", "1_5")])
    with pytest.raises(ConfigError, match="line 3 has the score '1_5'; expected a number"):
        make(path, regression=True).read("train")


def test_a_score_of_too_many_digits_is_named(tmp_path) -> None:
    path = write_table(tmp_path / "a.jsonl", [("a", 1), ("b", 10**400)])
    with pytest.raises(ConfigError, match="line 2 has the score 1000.*; expected a finite number"):
        make(path, regression=True).read("train")


def test_missing_numbers_may_be_a_class_by_name(tmp_path) -> None:
    path = write_table(
        tmp_path / "a.csv", [(f"text {n}", (1, 2, "none")[n % 3]) for n in range(30)]
    )
    assert make(path, labels=("1", "2", "none")).examples == {"train": 27, "validation": 3}


def test_classes_that_look_alike_are_said(tmp_path, checkpoint) -> None:
    labels = ("Good", "good", "bad", "very  bad", "very bad", "Bad!")
    rows = [(f"cat {n}", labels[n % 6]) for n in range(60)]
    said = " ".join(make(write_table(tmp_path / "a.csv", rows), checkpoint).description())
    assert "not seen alone: 'Good' and 'good', 'very  bad' and 'very bad'. They are" in said
    labels = ("caf\u00e9", "cafe\u0301", "bar", "ba\u200br")
    rows = [(f"cat {n}", labels[n % 4]) for n in range(60)]
    said = " ".join(make(write_table(tmp_path / "c.csv", rows), checkpoint).description())
    assert r"'bar' and 'ba\u200br', 'cafe\u0301' and 'caf\xe9'. They are" in said
    rows = [(f"cat {n}", ("good", "bad")[n % 2]) for n in range(60)]
    said = " ".join(make(write_table(tmp_path / "b.csv", rows), checkpoint).description())
    assert "alone" not in said


def test_classes_that_may_be_scores_are_said(tmp_path, checkpoint) -> None:
    for labels, may_be in (((0.5, 1.5), True), ((1, 5), False), (("0.5", "high"), False)):
        rows = [(f"cat {n}", labels[n % 2]) for n in range(60)]
        said = " ".join(make(write_table(tmp_path / "a.csv", rows), checkpoint).description())
        assert ("If the labels are scores, take --config=" in said) == may_be


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_was_never_trained_on_is_named(tmp_path, split) -> None:
    other = write_table(tmp_path / "other.csv", [("a", 1), ("b", 3)])
    data = make(write_table(tmp_path / "a.csv", rows_of(20)), **{split: str(other)})
    with pytest.raises(
        ConfigError, match=r"other.csv, line 3 has the label '3', which .*a.csv does"
    ):
        _ = data.found  # which a run asks for before it has a folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ""}, "data.train is empty; name your file"),
        ({"text": ""}, "data.text is empty"),
        ({"label": "review"}, "data names a column twice: review, review"),
        ({"validation_share": 0.0}, "validation_share is 0.0; expected a number between 0 and 1"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"labels": ("a", "a")}, "data.labels is .*each once"),
        ({"labels": ("a",)}, "data.labels is .*two or more"),
        ({"split_seed": -1}, "data.split_seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        OwnTexts(**{"train": "a.csv", "text": "review", "label": "stars", **settings})
