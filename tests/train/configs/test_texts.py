"""A user's own texts from the file to a model, its predictions and its export."""

from __future__ import annotations

import io
import json
import pathlib

import jax
import numpy as np
import pytest
import rich.console

from align_jax.pretrained import load
from tests.pretrained import checkpoints
from tests.train.commands import command, run_quietly
from tests.train.tiny_texts import rows_of, tiny_config, write_table
from train import sweep
from train.configs.texts import get_config
from train.experiment.experiment import settled_config
from train.predict import export, predict, table_texts
from train.predictor import restore_predictor
from train.registry import ConfigError
from train.run import loop
from train.run.folder import CheckpointError, check_same_experiment


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> pathlib.Path:
    return write_table(tmp_path_factory.mktemp("reviews") / "reviews.csv", rows_of(80))


@pytest.fixture(scope="module")
def trained(checkpoint, reviews, tmp_path_factory):
    """A run's folder, and what was printed."""
    folder = tmp_path_factory.mktemp("run")
    console = rich.console.Console(file=io.StringIO(), width=200)
    config = tiny_config(checkpoint, reviews)
    loop.run(config, folder, devices=jax.local_devices()[:1], console=console)
    return folder, console.file.getvalue()


def test_the_run_keeps_what_it_found(trained) -> None:
    folder, printed = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["labels"] == ["1", "5"]
    # Nine batches of 72 texts, six epochs.
    assert (config["train"]["steps"], config["eval"]["every"]) == (54, 9)
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"]["validation"]["accuracy"] == 1.0
    assert "Classes (train + validation): 1: 36 + 4; 5: 36 + 4." in printed


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_predictions_have_the_files_labels(trained, tmp_path, ending) -> None:
    data, state = restore_predictor(trained[0])
    new = rows_of(7)
    path = write_table(tmp_path / f"new.{ending}", new)
    if ending == "jsonl":
        done = [(json.loads(line)["review"],) for line in path.read_text().splitlines()]
    else:
        done = table_texts(path, data.fields)
    assert done == [(text,) for text, _ in new]
    answers = list(predict(data, state, done, batch_size=8))
    assert [answer["label"] for answer in answers] == [str(label) for _, label in new]


def test_bad_rows_to_predict_are_named(tmp_path) -> None:
    path = write_table(tmp_path / "new.csv", [("a", 1), (" ", 1), ("", 2)])
    with pytest.raises(ConfigError, match=r"2 rows .*line 3 has no text in 'review'; .*line 4"):
        table_texts(path, ("review",))
    with pytest.raises(ConfigError, match=r"no column 'reviw' .text 1 of the run.*\"review\""):
        table_texts(path, ("reviw",))


def test_the_command_predicts_a_table_and_exports_the_names(trained, tmp_path) -> None:
    path, exported = write_table(tmp_path / "new.csv", rows_of(3)), tmp_path / "export"
    done = command(
        f"--checkpoint={trained[0]}", f"--input={path}", f"--export={exported}",
        module="train.predict", forked=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["1", "5", "1"]
    assert json.loads((exported / "config.json").read_text())["id2label"] == {"0": "1", "1": "5"}


def test_an_export_cuts_texts_where_the_run_does(trained, tmp_path) -> None:
    data, state = restore_predictor(trained[0])
    assert data.max_length < data.text_tokenizer.max_length  # else there would be nothing to lose
    export(data, state, tmp_path / "export")
    texts = [text for text, _ in rows_of(4)]
    long = [" ".join([text, *texts * 9]) for text in texts]
    found = load(tmp_path / "export").predict(long)
    for one, ours in zip(found, predict(data, state, [(text,) for text in long]), strict=True):
        np.testing.assert_allclose(
            list(one.probabilities.values()), list(ours["probabilities"].values()), atol=1e-6
        )
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "export", trust_remote_code=True
    )(long, truncation=True)
    assert {len(ids) for ids in theirs["input_ids"]} == {data.max_length}


def test_the_command_goes_on_and_refuses_changed_data(checkpoint, reviews, trained) -> None:
    check_same_experiment(trained[0], settled_config(tiny_config(checkpoint, reviews)))
    other = write_table(reviews.parent / "more.csv", rows_of(82))
    with pytest.raises(CheckpointError, match=r"data.fingerprint was .*data.train was"):
        check_same_experiment(trained[0], settled_config(tiny_config(checkpoint, other)))


def test_mistakes_of_the_command_end_in_one_line(tmp_path) -> None:
    path = write_table(tmp_path / "a.csv", [("a", 1), ("b", 1), (" ", 2)])
    done = command(
        "--config=train/configs/texts.py", f"--config.data.train={path}",
        "--config.data.text=review", "--config.data.label=stars", f"--workdir={tmp_path / 'run'}",
        forked=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        f"error: {path}, line 4 has no text in 'review'. Mend or remove it."
    ]
    assert not (tmp_path / "run").exists()


def test_scores_of_any_size_are_learnt_and_exported_in_their_unit(checkpoint, tmp_path) -> None:
    rows = rows_of(160, classes=(10_000, 10_400))
    config = tiny_config(checkpoint, write_table(tmp_path / "a.csv", rows), "regression")
    result = run_quietly(config, tmp_path / "run")
    metrics = result["metrics"]["validation"]
    assert metrics["pearson"] > 0.9
    assert metrics["absolute_error"] < 120  # 200 for the mean alone
    assert metrics["loss"] < 0.5  # in variances
    data, state = restore_predictor(tmp_path / "run")
    texts = [(text,) for text, _ in rows[:8]]
    scores = np.array([answer["score"] for answer in predict(data, state, texts, 8)])
    assert np.abs(scores - [label for _, label in rows[:8]]).mean() < 120
    export(data, state, tmp_path / "export")
    loaded = load(tmp_path / "export")
    batch = data.inputs(texts)
    found = jax.jit(loaded.model.apply)({"params": loaded.params}, **batch)
    np.testing.assert_allclose(found[:, 0], scores, rtol=1e-5)


@pytest.mark.usefixtures("one_device")
def test_a_sweep_compares_on_the_same_texts(checkpoint, reviews, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "_step_times", lambda *_: {})
    console = rich.console.Console(file=io.StringIO(), width=300)
    config = tiny_config(checkpoint, reviews)
    sweep.sweep(config, ["none"], [0], tmp_path / "sweep", console)
    monkeypatch.setattr(sweep, "write_pictures", lambda *_: [])  # those are drawn again
    sweep.sweep(config, ["none"], [0], tmp_path / "sweep", console)
    assert "finished before" in console.file.getvalue()
    assert "accuracy" in (tmp_path / "sweep" / "table.md").read_text()


@pytest.mark.parametrize("kind", ["", "classification", "regression"])
def test_what_is_reported_goes_with_the_task(kind) -> None:
    config = get_config(kind)
    assert config.task.name == f"text_{kind or 'classification'}"
    assert config.data.regression == (kind == "regression")
    assert config.alignment.method == "none"


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="texts.py: there is no task 'scores'; .*known: class"):
        get_config("scores")


@pytest.mark.slow
def test_minilm_learns_real_reviews(real_data, tmp_path) -> None:
    """Three epochs over 200 that are cut, the settings as they are otherwise."""
    checkpoints.minilm()
    source = real_data / "sentiment" / "books.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))[:350]]
    pairs = [(row["sentence"], row["label"]) for row in rows]
    config = get_config()
    config.data.update({
        "train": str(write_table(tmp_path / "train.csv", pairs[:200])), "text": "review",
        "test": str(write_table(tmp_path / "test.tsv", pairs[200:])), "label": "stars",
    })  # fmt: skip
    config.train.min_steps = 0
    config.data.update({"max_length": 48, "buckets": (48,)})  # one compilation
    config.eval.mmd_examples = 0  # the config's yardsticks are asserted of small models
    result = run_quietly(config.lock(), tmp_path / "run")
    assert result["metrics"]["test"]["accuracy"] > 0.7
