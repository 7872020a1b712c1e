"""SQuAD from the official files and as TFDS prepares it: windows, answers, bad files."""

from __future__ import annotations

import importlib
import json
import types

import numpy as np
import pytest

from tests.train.tiny_squad import CONTEXT, write_squad
from train.data.squad import FILES, Squad
from train.data.squad_files import read_json
from train.registry import ConfigError


@pytest.fixture
def source(checkpoint, tmp_path):
    write_squad(tmp_path)

    def make(**settings) -> Squad:
        settings = {
            "source": "json", "folder": str(tmp_path), "max_length": 16, "stride": 3,
            "max_question": 6, "batch_size": 4, "eval_batch_size": 5, "buckets": (16,), **settings,
        }  # fmt: skip
        return Squad(tokenizer=checkpoint, **settings)

    return make


def test_batches_hold_what_the_task_reads(source) -> None:
    data = source()
    (first, *_) = batches = list(data.eval_batches("validation"))
    assert first["input_ids"].shape == (5, 16)
    assert set(first) == set(data.example_batch()) == set(next(data.train_batches()))
    counted = sum(int(batch["mask"].sum()) for batch in batches)
    assert counted == len(data.references("validation").offsets) > data.examples["validation"]


def test_the_answer_lies_where_the_labels_say(source) -> None:
    data = source()
    windows, found = data.references("train"), set()
    arrays = windows.texts.arrays
    for row, offsets in enumerate(windows.offsets):
        question = windows.questions[arrays["id"][row]]
        start, end = arrays["start"][row], arrays["end"][row]
        if start == 0:
            assert end == 0
            continue
        text = question.context[offsets[start, 0] : offsets[end, 1]]
        assert text == question.answers[0]
        found.add(question.identity)
    assert found == {x.identity for x in windows.questions if x.answers}


def test_a_window_that_cuts_the_answer_off_does_not_hold_it(source) -> None:
    data = source()
    windows = data.references("train")
    for row, offsets in enumerate(windows.offsets):
        question = windows.questions[windows.texts.arrays["id"][row]]
        if not question.answers:
            continue
        first, last = windows.texts.arrays["context"][row]
        begin = question.starts[0]
        whole = offsets[first, 0] <= begin and begin + len(question.answers[0]) <= offsets[last, 1]
        assert (windows.texts.arrays["start"][row] > 0) == whole


def test_an_answer_inside_a_word_takes_the_word(tmp_path, source) -> None:
    write_squad(tmp_path, answers=[("og", CONTEXT.index("og"))])
    windows = source().references("train")
    row = int(np.flatnonzero(windows.texts.arrays["start"])[0])
    start, end = (windows.texts.arrays[x][row] for x in ("start", "end"))
    covered = CONTEXT[windows.offsets[row][start, 0] : windows.offsets[row][end, 1]]
    assert "og" in covered
    assert covered in "dogs"


def test_training_depends_on_seed_and_step_alone(source) -> None:
    some = source(seed=1).train_batches()
    third = [next(some) for _ in range(3)][2]
    again = next(source(seed=1).train_batches(2))
    np.testing.assert_array_equal(third["window"], again["window"])
    other = next(source(seed=2).train_batches(2))
    assert (third["window"] != other["window"]).any()


def test_an_epoch_counts_windows(source) -> None:
    data = source(batch_size=2)
    assert data.steps_per_epoch == len(data.tokenized("train")) // 2
    assert data.steps_per_epoch > data.examples["train"] // 2


def test_a_subset_is_the_same_for_every_seed(source) -> None:
    ids = [
        [x.identity for x in source(train_examples=3, seed=seed).references("train").questions]
        for seed in (0, 1)
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 3
    with pytest.raises(ConfigError, match=r"train_examples is 99; expected 0 \(all\) to 8"):
        _ = source(train_examples=99).examples


def test_what_tfds_prepares_reads_as_the_official_file(tmp_path, source) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    write_squad(tmp_path)
    module = importlib.import_module("tensorflow_datasets.datasets.squad.squad_dataset_builder")
    builder = tfds.builder("squad/v2.0", data_dir=tmp_path, file_format="array_record")
    assert isinstance(builder, module.Builder)
    files = types.SimpleNamespace(
        download_and_extract=lambda urls: {
            name: str(tmp_path / f"{FILES['train' if 'train' in name else 'validation']}-v2.0.json")
            for name in urls
        },
        downloaded_size=0,
    )
    builder._make_download_manager = lambda **_: files
    builder.download_and_prepare()

    prepared, official = source(source="tfds"), source()
    for split in FILES:
        theirs, ours = (
            {x.identity: x for x in data.references(split).questions}
            for data in (prepared, official)
        )
        assert theirs == ours
    assert next(prepared.train_batches())["input_ids"].shape == (4, 16)


def test_the_real_sample(checkpoint, real_data) -> None:
    data = Squad(
        source="json", folder=str(real_data / "squad"), tokenizer=checkpoint, max_length=40,
        max_question=12, stride=16, batch_size=4,
    )  # fmt: skip
    assert data.examples == {"train": 14, "validation": 14}
    windows = data.references("validation")
    assert windows.questions[0].answers == ("France",)
    assert sum(not x.answers for x in windows.questions) > 0
    # The answers are shorter than what two windows share, so each is whole in one of them.
    held = {
        windows.texts.arrays["id"][row] for row in np.flatnonzero(windows.texts.arrays["start"])
    }
    assert held == {i for i, x in enumerate(windows.questions) if x.answers}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "v3"}, "data.version is 'v3'; known: v1.1, v2.0"),
        ({"source": "web"}, "data.source is 'web'"),
        ({"batch_size": 0}, "data.batch_size is 0; expected >= 1"),
    ],
)
def test_settings_out_of_range_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Squad(**settings)


def test_windows_without_room_are_refused(source) -> None:
    with pytest.raises(ConfigError, match=r"config.data: max_length 16.*leaves"):
        source(stride=12).references("train")


def test_what_does_not_exist_is_named(source, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no split 'test'; known: train, validation"):
        source().eval_batches("test")
    with pytest.raises(ConfigError, match=r"train-v1.1.json cannot be read.*SQuAD-explorer"):
        _ = source(version="v1.1").examples
    with pytest.raises(ConfigError, match=r"squad/v2.0 is not prepared.*download_and_prepare"):
        _ = source(source="tfds", folder=str(tmp_path / "none")).examples


def entry(**change):
    return {"id": "q", "question": "two?", "answers": [], "is_impossible": True, **change}


def paragraphs(*entries, context="two dogs"):
    return {"data": [{"paragraphs": [{"context": context, "qas": list(entries)}]}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        pytest.param("[" * 100_000, "is not JSON", id="nested without end"),
        ("[]", "the file should have 'data', of type list"),
        ({"data": [3]}, r"data\[0\] should have 'paragraphs'"),
        ({"data": []}, "holds no questions"),
        (paragraphs({"id": "q"}), r"data\[0\].paragraphs\[0\].qas\[0\] should have 'answers'"),
        (paragraphs(entry(question=1)), "should have 'question', of type str"),
        (paragraphs(entry(answers=[{"text": "two", "answer_start": 0}])), "but has answers"),
        (
            paragraphs(entry(answers=[{"text": "two", "answer_start": True}], is_impossible=False)),
            "should have 'answer_start', of type int",
        ),
        (paragraphs(entry(), context=3), "should have 'context'"),
    ],
)
def test_bad_files_are_explained(tmp_path, content, message) -> None:
    path = tmp_path / "dev-v2.0.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_json(path)


@pytest.mark.parametrize(
    ("change", "context", "message"),
    [
        ({"question": " "}, "two dogs", "question q has no text, or no context"),
        ({}, "", "question q has no text, or no context"),
        ({"answers": [{"text": "cat", "answer_start": 4}]}, "two dogs", "'cat' at character 4"),
        ({"answers": [{"text": "s", "answer_start": -1}]}, "two dogs", "at character -1"),
        ({"answers": [{"text": "", "answer_start": 0}]}, "two dogs", "the answer ''"),
    ],
)
def test_questions_that_nothing_can_be_learnt_from_are_named(
    source, tmp_path, change, context, message
) -> None:
    (tmp_path / "dev-v2.0.json").write_text(
        json.dumps(paragraphs(entry(is_impossible=False, **change), context=context))
    )
    with pytest.raises(ConfigError, match=message):
        source().references("validation")
