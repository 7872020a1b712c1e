"""The questions' configs: what is reported is measured, and a run from questions to table."""

from __future__ import annotations

import io
import pathlib

import jax
import numpy as np
import pytest
import rich.console

from tests.train import tiny_vqa
from tests.train.commands import run_quietly
from tests.train.configs.schedule import warmup
from train import sweep
from train.configs.vqa import get_config
from train.data import DATA
from train.data.visual_questions import NOISY
from train.predict import export, predict
from train.predictor import restore_predictor
from train.registry import ConfigError, look_up
from train.tasks.vqa import QuestionAnswering

ALWAYS = {"accuracy", "ece", "pavpu", "certain", "vqa_accuracy"}


@pytest.mark.parametrize("arg", ["easy", "v2"])
def test_what_is_watched_and_reported_is_measured(arg: str) -> None:
    config = get_config(arg).lock()
    splits = look_up("data", config.data.name, DATA).clean_splits
    known = {*splits, *(split + NOISY for split in splits)}
    assert {*config.eval.final, *config.eval.during, config.eval.mmd_split} <= known
    for column in config.eval.report:
        split, _, metric = column.rpartition("/")
        assert metric in ALWAYS
        assert not split or split in config.eval.final
    assert config.eval.stochastic_passes == 20


def test_the_published_schedule() -> None:
    config = get_config("v2")
    assert config.optimizer.learning_rate == 1e-4
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.98)
    epochs = np.array([warmup(config), *config.optimizer.decay_at]) * 64 / 443_757
    np.testing.assert_allclose(epochs, [3, 10, 12], atol=0.01)
    assert config.data.batch_size == 64
    with pytest.raises(ValueError, match="there is no data set 'v3'"):
        get_config("v3")


def tiny(config):
    """The same experiment with a model of next to nothing."""
    config.model.update(
        {"word_features": 8, "hidden_size": 8, "layers": 1, "heads": 2, "mlp_size": 8,
         "reduction_size": 8, "fused_size": 8}
    )  # fmt: skip
    config.data.batch_size = config.data.eval_batch_size = 4
    config.optimizer.warmup_steps = 1
    config.optimizer.update({"decay": "linear", "decay_at": ()})
    config.train.update({"steps": 2, "log_every": 1, "checkpoint_every": 2})
    config.eval.update({"every": 2, "stochastic_passes": 2, "mmd_examples": 4})
    return config.lock()


def tiny_v2(folder: pathlib.Path):
    """A run on files of VQA v2's form."""
    folder.mkdir()
    tiny_vqa.write_vqa(folder, transposed=True)
    config = get_config("v2")
    config.data.update(
        {"folder": str(folder), "region_features": tiny_vqa.FEATURES, "max_regions": 3,
         "answers_above": 1}
    )  # fmt: skip
    return tiny(config)


def tiny_easy(folder: pathlib.Path):
    """A run on pictures of easy-VQA's form."""
    folder.mkdir()
    tiny_vqa.write_easy_vqa(folder, copies=4)
    config = get_config("easy")
    config.data.update({"folder": str(folder), "patch_size": 32, "validation_fraction": 0.2})
    config.eval.final = ("validation_noisy", "validation")
    return tiny(config)


@pytest.mark.thorough
def test_a_sweep_ends_in_a_table_and_pictures(tmp_path, monkeypatch, one_device) -> None:
    monkeypatch.setattr(sweep, "_step_times", lambda *_: {})  # no column is asserted of them
    config = tiny_v2(tmp_path / "data")
    console = rich.console.Console(file=io.StringIO(), width=200)
    rows = sweep.sweep(config, ["none", "ct"], [0], tmp_path / "sweep", console)
    for row in rows.values():
        assert all(0.0 <= row[name].mean <= 1.0 for name in list(row)[:5])
    assert rows["ct"]["parameters"].mean > rows["none"]["parameters"].mean
    drawn = {path.name for path in (tmp_path / "sweep").glob("*.png")}
    assert drawn == {"picture.png", "attention.png", "reliability.png"}
    answers_as_evaluated(tmp_path / "sweep" / "ct-seed0", tmp_path)


@pytest.mark.thorough
def test_a_run_on_easy_vqa_answers_new_questions(tmp_path) -> None:
    """On made-up pictures; tests/train/data/test_vqa.py reads the published ones."""
    config = tiny_easy(tmp_path / "data")
    # The sweep measures the clouds of the same model, and takes its passes with dropout.
    config.eval.update({"mmd_examples": 0, "stochastic_passes": 0})
    result = run_quietly(config, tmp_path / "run")
    assert set(result["metrics"]) == {"validation", "validation_noisy"}
    answers_as_evaluated(tmp_path / "run", tmp_path)


def answers_as_evaluated(folder: pathlib.Path, empty: pathlib.Path) -> None:
    """A run says of the data's own pictures, file by file, what it says when it is evaluated."""
    data, state = restore_predictor(folder)
    batch = next(data.eval_batches("validation"))

    @jax.jit
    def probabilities(state, batch):
        outputs = state.task.apply(state.model, {"params": state.params}, batch, train=False)
        return QuestionAnswering().probabilities(outputs)

    expected = probabilities(state, batch)
    questions = [(data.question_text(i), str(data.picture_path(i))) for i in batch["id"][:3]]
    for row, answer in enumerate(predict(data, state, questions, batch_size=2)):
        assert answer["label"] == data.answers[int(expected[row].argmax())]
        for name, probability in answer["probabilities"].items():
            place = data.answers.index(name)
            assert probability == pytest.approx(float(expected[row, place]), abs=1e-5)
    with pytest.raises(ConfigError, match=r"missing\.png"):
        next(predict(data, state, [("what is it?", str(empty / "missing.png"))]))
    with pytest.raises(ConfigError, match="MCAN is no model that transformers has"):
        export(data, state, empty / "exported")
