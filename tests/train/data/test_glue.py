"""GLUE: every task's batches, and what is wrong with data is said."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.train.commands import run_quietly
from tests.train.tiny_glue import BUCKETS, SIZES, fake_glue, tiny_config
from train.data.glue import GLUE, Glue
from train.data.prepared import prepared_builder
from train.data.squad_files import read_prepared
from train.registry import ConfigError


def make(checkpoint, dataset="mrpc", **settings) -> Glue:
    defaults = {"batch_size": 8, "eval_batch_size": 4, "max_length": 32, "buckets": BUCKETS}
    return Glue(dataset, tokenizer=checkpoint, **{**defaults, **settings})


@pytest.mark.parametrize("dataset", GLUE)
def test_every_task_trains_and_evaluates_each_example_once(
    checkpoint, monkeypatch, dataset
) -> None:
    fake_glue(monkeypatch, dataset)
    data, task = make(checkpoint, dataset), GLUE[dataset]
    head = data.metadata.model
    assert head["num_labels"] == max(len(task.labels), 1)
    assert head["head"] == ("classification" if task.labels else "regression")

    batch = next(data.train_batches())
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] in BUCKETS
    assert batch["label"].dtype == (np.int32 if task.labels else np.float32)
    assert batch["token_type_ids"].any() == (len(task.fields) == 2)
    assert set(data.example_batch()) == set(batch)

    for split in task.splits:
        if split.startswith("validation"):
            rows = [b["id"][b["mask"]] for b in data.eval_batches(split)]
            assert sorted(np.concatenate(rows)) == list(range(100, 100 + SIZES["validation"]))
        elif split.startswith("test"):
            with pytest.raises(ConfigError, match=f"'{split}' has no labels"):
                data.eval_batches(split)


def test_batches_are_those_of_seed_and_step(checkpoint, monkeypatch) -> None:
    fake_glue(monkeypatch)
    first, again, other = (
        [b["id"] for b in itertools.islice(make(checkpoint, seed=seed).train_batches(start), 4)]
        for seed, start in ((0, 0), (0, 2), (1, 0))
    )
    np.testing.assert_array_equal(first[2:], again[:2])
    assert (np.array(first) != np.array(other)).any()


@pytest.mark.parametrize("new_subset", [False, True])
def test_a_subset_has_its_size_and_is_new_for_each_seed_where_asked_for(
    checkpoint, monkeypatch, new_subset
) -> None:
    fake_glue(monkeypatch)
    seen = []
    for seed in (0, 1):
        data = make(checkpoint, train_examples=16, seed=seed, new_subset=new_subset)
        assert data.examples["train"] == 16
        batches = itertools.islice(data.train_batches(), 2)
        seen.append(sorted(np.concatenate([b["id"] for b in batches])))
    assert (seen[0] != seen[1]) == new_subset
    assert len(set(seen[0])) == 16
    with pytest.raises(ConfigError, match="train_examples is 41; expected 0 .all. to 40"):
        _ = make(checkpoint, train_examples=41).examples


def test_both_orders_of_each_pair_are_trained_on_and_none_is_evaluated_twice(
    checkpoint, monkeypatch
) -> None:
    fake_glue(monkeypatch)
    data = make(checkpoint, both_orders=True, train_examples=16)
    assert data.examples["train"] == 32
    seen: dict[int, list[tuple[list[int], int]]] = {}
    for batch in itertools.islice(data.train_batches(), 4):
        for row, identity in enumerate(batch["id"].tolist()):
            tokens = batch["input_ids"][row, : batch["attention_mask"][row].sum()].tolist()
            seen.setdefault(identity, []).append((tokens, batch["label"][row].item()))
    assert len(seen) == 16
    one = data.text_tokenizer.encode(["cat"])
    separator = one["input_ids"][0, one["attention_mask"][0].sum() - 1]
    for (first, label), (second, same_label) in seen.values():
        end = first.index(separator) + 1
        assert second == [first[0], *first[end:], *first[1:end]]
        assert label == same_label
    rows = [b["id"][b["mask"]] for b in data.eval_batches("validation")]
    assert len(np.concatenate(rows)) == SIZES["validation"]
    with pytest.raises(ConfigError, match="a label of rte holds for one order.*mrpc, qqp, stsb"):
        make(checkpoint, "rte", both_orders=True)


def test_what_another_task_evaluates_is_not_trained_on(checkpoint, monkeypatch) -> None:
    builder = fake_glue(monkeypatch)
    train, validation = builder.examples["train"], builder.examples["validation"]
    for number, example in enumerate(train):
        example["sentence1"] = f"one of {number}".encode()
        example["sentence2"] = f"two of {number}".encode()
    train[3]["sentence2"] = validation[5]["sentence1"].upper() + b" ."
    train[7]["sentence1"] = builder.examples["test"][0]["sentence2"]
    assert make(checkpoint).examples["train"] == 40
    data = make(checkpoint, without_texts_of=("mrpc",))
    kept = [100 + number for number in range(40) if number not in (3, 7)]
    assert data.read("train").ids.tolist() == kept
    assert data.examples["train"] == 38
    few = make(checkpoint, without_texts_of=("mrpc",), train_examples=38)
    assert few.read("train").ids.tolist() == kept
    with pytest.raises(ConfigError, match="without_texts_of names 'mprc'.*\"mrpc\""):
        make(checkpoint, without_texts_of=("mprc",))


def test_longer_texts_are_cut_to_the_limit(checkpoint, monkeypatch) -> None:
    builder = fake_glue(monkeypatch)
    builder.examples["validation"][0]["sentence2"] = b"cat " * 200
    batch = next(make(checkpoint, max_length=12).eval_batches("validation"))
    assert batch["attention_mask"].sum(axis=1).max() == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "example 100 has the label 2; expected 0 to 1"),
        ({"label": -1}, "example 100 has the label -1"),
        ({"sentence1": b" ", "sentence2": b""}, "example 100 has no text"),
    ],
)
def test_bad_examples_are_named(checkpoint, monkeypatch, change, message) -> None:
    builder = fake_glue(monkeypatch)
    builder.examples["validation"][0].update(change)
    with pytest.raises(ConfigError, match=message):
        make(checkpoint).eval_batches("validation")


@pytest.mark.fault(
    "Invalid text in a data set or in what is to be labelled: half an emoji, wrong bytes",
    "An error with file, line and place, from every reader alike",
)
def test_prepared_text_of_wrong_bytes_is_named(checkpoint, monkeypatch) -> None:
    builder = fake_glue(monkeypatch)
    builder.examples["validation"][3]["sentence2"] = b"the caf\xe9"
    message = "'validation', example 103 is not UTF-8: it has the byte 0xe9 after 'the caf'"
    with pytest.raises(ConfigError, match=message):
        make(checkpoint).eval_batches("validation")
    record = {"id": b"q", "question": b"\xff", "context": b"", "answers": {"text": []}}
    with pytest.raises(ConfigError, match="^squad, example 0 is not UTF-8"):
        read_prepared([record], "squad")


def test_a_score_out_of_range_or_not_a_number_is_named(checkpoint, monkeypatch) -> None:
    builder = fake_glue(monkeypatch, "stsb")
    for label in (5.5, float("nan")):
        builder.examples["validation"][3]["label"] = label
        with pytest.raises(ConfigError, match="example 103 .*expected 0.0 to 5.0"):
            make(checkpoint, "stsb").eval_batches("validation")


def test_a_pair_may_have_one_empty_text(checkpoint, monkeypatch) -> None:
    builder = fake_glue(monkeypatch, "qqp")
    builder.examples["validation"][0]["question2"] = b""
    next(make(checkpoint, "qqp").eval_batches("validation"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "mprc"}, 'did you mean "mrpc"'),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"window": 0}, "data.window is 0"),
        ({"train_examples": -1}, "data.train_examples is -1"),
    ],
)
def test_bad_settings_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Glue(**settings)


def test_a_missing_split_is_named_with_the_nearest(checkpoint, monkeypatch) -> None:
    fake_glue(monkeypatch, "mnli")
    with pytest.raises(ConfigError, match="no split 'validation'; did you mean \"validation_"):
        make(checkpoint, "mnli").eval_batches("validation")


def test_a_data_set_that_is_not_prepared_says_the_command(tmp_path) -> None:
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ConfigError, match=r"tfds.builder\('glue/rte'.*array_record.*download_and"):
        prepared_builder("glue/rte", "tensorflow_datasets.text.glue", str(tmp_path))


@pytest.mark.parametrize(
    ("dataset", "size", "positive"),
    [("mrpc", 408, 279), ("cola", 1043, 721), ("sst2", 872, 444), ("stsb", 1500, None)],
)
def test_the_real_files_are_read_whole(checkpoint, real_data, dataset, size, positive) -> None:
    pytest.importorskip("tensorflow_datasets")
    data = make(checkpoint, dataset, folder=str(real_data / "tfds"), eval_batch_size=100)
    assert data.examples["validation"] == size
    batches = list(data.eval_batches("validation"))
    labels = np.concatenate([b["label"][b["mask"]] for b in batches])
    assert len(labels) == size
    if positive is not None:
        assert labels.sum() == positive


def test_an_example_is_shown_token_by_token(checkpoint, monkeypatch) -> None:
    fake_glue(monkeypatch).examples["validation"][0] |= {
        "sentence1": b"the dogs", "sentence2": b"a cat", "label": 1
    }  # fmt: skip
    data = make(checkpoint)
    shown = data.illustration(next(data.eval_batches("validation")))
    assert shown.words == ("[CLS]", "the", "dogs", "[SEP]", "a", "cat", "[SEP]")
    assert shown.title == "id 100 (equivalent)"
    assert shown.answers == GLUE["mrpc"].labels


def test_an_example_of_a_regression_is_shown_with_its_score(checkpoint, monkeypatch) -> None:
    fake_glue(monkeypatch, "stsb").examples["validation"][0]["label"] = 2.5
    data = make(checkpoint, "stsb")
    shown = data.illustration(next(data.eval_batches("validation")))
    assert (shown.title, shown.answers) == ("id 100 (2.50)", ())


def test_a_length_that_the_model_has_no_positions_for_is_a_config_error(
    checkpoint, monkeypatch
) -> None:
    fake_glue(monkeypatch)
    with pytest.raises(ConfigError, match=r"max_length is 100; expected .* at most 40"):
        next(make(checkpoint, max_length=100, buckets=(100,)).train_batches())


def test_a_split_without_labels_is_refused_before_training(
    checkpoint, monkeypatch, tmp_path
) -> None:
    fake_glue(monkeypatch)
    config = tiny_config(checkpoint).unlock()
    config.eval.final = ("test",)
    with pytest.raises(ConfigError, match="label"):
        run_quietly(config.lock(), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
