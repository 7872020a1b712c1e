"""From one domain to others: halves, corpora of different sources, and the files' formats."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from tests.train.tiny_glue import BUCKETS
from tests.train.tiny_transfer import OTHER, SIZES, write_domains
from train.data.transfer import DOMAINS, Transfer
from train.data.transfer_files import read_labelled
from train.registry import ConfigError


def make(checkpoint, files, name, **settings) -> Transfer:
    defaults = {"batch_size": 8, "eval_batch_size": 4, "max_length": 32, "buckets": BUCKETS}
    given = {**defaults, "source": "files", "files": str(files), **settings}
    return Transfer(name, tokenizer=checkpoint, **given)


@pytest.mark.parametrize("name", DOMAINS)
def test_every_task_trains_and_evaluates_both_halves(checkpoint, tmp_path, name) -> None:
    write_domains(tmp_path, name)
    data, domains = make(checkpoint, tmp_path, name), DOMAINS[name]
    batch = next(data.train_batches())
    assert batch["input_ids"].ndim == (3 if domains.choices > 1 else 2)
    assert set(data.example_batch()) == set(batch)
    assert data.example_batch()["input_ids"].shape[:-1] == batch["input_ids"].shape[:-1]
    assert data.examples["train"] == SIZES["train"]

    pairs = [("validation", "test", SIZES["validation"])]
    pairs += [(f"{corpus.name}_validation", corpus.name, OTHER) for corpus in domains.targets]
    for first, second, size in pairs:
        ids = [
            np.concatenate([b["id"][b["mask"]] for b in data.eval_batches(split)])
            for split in (first, second)
        ]
        assert sorted(np.concatenate(ids)) == list(range(size))
        assert len(ids[0]) - len(ids[1]) in (0, 1)
        assert data.examples[first] == len(ids[0])


def test_the_halves_are_those_of_their_seed_alone(checkpoint, tmp_path) -> None:
    write_domains(tmp_path, "nli")
    first, same, other = (
        make(checkpoint, tmp_path, "nli", seed=seed, half_seed=half).read("test").ids.tolist()
        for seed, half in ((0, 0), (1, 0), (0, 1))
    )
    assert first == same
    assert first != other


def test_a_choice_is_between_the_context_with_each_ending(checkpoint, tmp_path) -> None:
    write_domains(tmp_path, "commonsense")
    data = make(checkpoint, tmp_path, "commonsense")
    batch, examples = next(data.eval_batches("test")), data.read("test")
    assert batch["input_ids"].shape[:2] == (4, 4)
    context, *endings = examples.texts(2)
    for number, ending in enumerate(endings):
        alone = data.text_tokenizer.encode([context], [ending], buckets=BUCKETS)
        length = alone["attention_mask"].sum()
        for name, array in alone.items():
            np.testing.assert_array_equal(batch[name][2, number, :length], array[0, :length])
        assert batch["attention_mask"][2, number].sum() == length
    np.testing.assert_array_equal(
        data.inputs([examples.texts(2)])["input_ids"].sum(), batch["input_ids"][2].sum()
    )


def test_prepared_corpora_are_read_and_undecided_examples_left_out(
    checkpoint, tmp_path, monkeypatch
) -> None:
    def example(number):
        return {"premise": b"cat", "hypothesis": b"two dogs", "label": number % 4 - 1}

    asked = []

    class Source:
        def __len__(self):
            return 12

        def __getitems__(self, rows):
            return [example(row) for row in rows]

    def builder(name, module, folder):
        def source(split):
            asked.append((name, split))
            return Source()

        return types.SimpleNamespace(as_data_source=source)

    monkeypatch.setattr("train.data.transfer.prepared_builder", builder)
    data = make(checkpoint, tmp_path, "nli", source="tfds")
    assert data.examples == {
        "train": 9, "validation": 5, "test": 4, "mnli": 4, "mnli_validation": 5,
    }  # fmt: skip
    assert asked == [
        ("snli", "train"), ("snli", "validation"), ("glue/mnli", "validation_matched"),
    ]  # fmt: skip
    assert set(data.read("train").labels.tolist()) == {0, 1, 2}
    assert 0 not in data.read("train").ids  # the first has no label


def test_a_missing_file_is_named_with_its_form(checkpoint, tmp_path) -> None:
    write_domains(tmp_path, "paraphrase")
    (tmp_path / "twitterppdb.jsonl").unlink()
    with pytest.raises(ConfigError, match="twitterppdb.jsonl.*sentence1, sentence2 and label"):
        _ = make(checkpoint, tmp_path, "paraphrase").examples


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"domains": "nil"}, 'did you mean "nli"'), ({"source": "hub"}, "known: tfds, files")],
)
def test_bad_settings_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Transfer(**settings)


def test_published_files_are_read_as_they_are(tmp_path) -> None:
    twitter = tmp_path / "twitterppdb.txt"
    twitter.write_text("a\tb\t(4, 6)\thttp\nc\td\t(3, 6)\thttp\ne\tf\t(0, 6)\thttp\n")
    assert read_labelled(twitter, ("sentence1", "sentence2"), ("no", "yes")) == (
        [["a", "e"], ["b", "f"]], [1, 0],
    )  # fmt: skip
    fields, labels = DOMAINS["commonsense"].fields, DOMAINS["commonsense"].labels
    swag = tmp_path / "swag-train.csv"
    swag.write_text(
        ",video-id,startphrase,sent1,sent2,ending0,ending1,ending2,ending3,label\n"
        '0,x,"She said, ""no"". He",She,He,w,x,y,z,2\n'
    )
    columns, found = read_labelled(swag, fields, labels)
    assert [column[0] for column in columns] == ['She said, "no". He', "w", "x", "y", "z"]
    assert found == [2]
    hellaswag = tmp_path / "hellaswag.jsonl"
    hellaswag.write_text(json.dumps({"ctx": "A", "endings": list("wxyz"), "label": 3}) + "\n")
    assert read_labelled(hellaswag, fields, labels) == ([["A"], *([x] for x in "wxyz")], [3])


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("a.jsonl", "{", "line 1 is not JSON"),
        pytest.param("a.jsonl", "[" * 100_000, "line 1 is not JSON", id="nested without end"),
        ("a.jsonl", "[1]", "line 1 is no JSON object"),
        ("a.jsonl", '{"sentence": 3, "label": 1}', "line 1: .*sentence is none"),
        ("a.jsonl", '{"sentence": "a", "label": 2}', "line 1 has the label 2; expected 0 to 1, or"),
        ("a.jsonl", '{"sentence": "a", "label": -2}', "line 1 has the label -2"),
        ("a.jsonl", '{"sentence": "a"}', "line 1 has the label None"),
        ("a.jsonl", "", "holds no examples"),
        ("a.txt", "a\tb\tyes", r"line 1: .*such as \(4, 6\)"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, line, message) -> None:
    (tmp_path / name).write_text(line)
    with pytest.raises(ConfigError, match=message):
        read_labelled(tmp_path / name, ("sentence",), ("negative", "positive"))


def test_examples_without_a_label_are_read(tmp_path) -> None:
    """People did not agree on some of SNLI's; the data source leaves these out."""
    lines = ({"sentence": "a", "label": label} for label in (-1, "-1", "1"))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_labelled(tmp_path / "a.jsonl", ("sentence",), ("no", "yes"))[1] == [-1, -1, 1]


def test_a_label_may_be_a_name(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"sentence": "a", "label": "positive"}\n\n')
    found = read_labelled(tmp_path / "a.jsonl", ("sentence",), ("negative", "positive"))
    assert found == ([["a"]], [1])


@pytest.mark.thorough
def test_the_real_reviews_and_sst2_are_read_whole(checkpoint, real_data, monkeypatch) -> None:
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("ALIGN_JAX_DATA", str(real_data))
    data = Transfer("sentiment", tokenizer=checkpoint, train_examples=100)
    sizes = {"train": 100, "validation": 436, "test": 436}
    assert data.examples == sizes | dict.fromkeys(data.splits[3:], 1000)
    for name in ("books", "dvd", "airline"):
        halves = [data.read(split).labels for split in (name, f"{name}_validation")]
        assert sum(labels.sum() for labels in halves) == 1000
