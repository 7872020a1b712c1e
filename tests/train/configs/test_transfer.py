"""Every config of the transfers trains on the tiny checkpoint and reports what it names."""

from __future__ import annotations

import io
import json

import jax
import numpy as np
import pytest
import rich.console
import sklearn.metrics

from align_jax.pretrained import load
from tests.train.commands import run_quietly
from tests.train.configs.schedule import warmup
from tests.train.tiny_transfer import tiny_config, write_domains
from train import sweep
from train.configs import digits
from train.configs.transfer import get_config
from train.data.digits import Digits
from train.data.transfer import DOMAINS
from train.predict import export, predict
from train.predictor import restore_predictor
from train.registry import ConfigError
from train.run.evaluation import check_eval
from train.tasks.classification import Classification
from train.tasks.vqa import QuestionAnswering


@pytest.mark.parametrize("model", ["", ",minilm"])
@pytest.mark.parametrize("name", DOMAINS)
def test_what_is_reported_is_evaluated(name, model) -> None:
    config = get_config(name + model).lock()
    assert {column.partition("/")[0] for column in config.eval.report} == set(config.eval.final)
    assert warmup(config) < config.train.steps
    assert config.eval.temperature_split not in config.eval.final


def test_the_settings_are_the_papers() -> None:
    config = get_config("nli")
    assert config.model.pretrained == "google-bert/bert-base-uncased"
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (2e-5, 0.0)
    assert (config.data.batch_size, config.optimizer.clip_norm) == (32, 1.0)
    assert config.train.steps == 3 * (549_367 // 32)
    assert get_config("sentiment,minilm").data.train_examples == 10_000


@pytest.mark.parametrize("arg", ["nil", "nli,large"])
def test_what_does_not_exist_is_named(arg) -> None:
    wrong = arg.rpartition(",")[2]
    with pytest.raises(ValueError, match=f"transfer.py: .*'{wrong}'; .*(known|expected)"):
        get_config(arg)


@pytest.fixture(scope="module")
def sentiment(checkpoint, tmp_path_factory):
    """A sweep of one run, and its folder."""
    data, folder = (tmp_path_factory.mktemp(name) for name in ("data", "sentiment"))
    write_domains(data, "sentiment")
    config = tiny_config(checkpoint, data, "sentiment")
    config.eval.mmd_examples = 0
    console = rich.console.Console(file=io.StringIO(), width=300)
    devices = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_step_times", lambda *_: {})
        patch.setattr(jax, "local_devices", lambda: devices)
        sweep.sweep(config, ["none"], [0], folder / "sweep", console)
    return folder / "sweep"


@pytest.fixture(scope="module")
def commonsense(checkpoint, tmp_path_factory):
    """The folder of an aligned run on choices between texts."""
    data, folder = (tmp_path_factory.mktemp(name) for name in ("data", "commonsense"))
    write_domains(data, "commonsense")
    run_quietly(tiny_config(checkpoint, data, "commonsense", "gan"), folder / "run")
    return folder / "run"


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sentiment", "commonsense"])
def test_a_run_reports_every_domain_before_and_after_scaling(name, tmp_path, request) -> None:
    run = request.getfixturevalue(name)
    run = run / "none-seed0" if name == "sentiment" else run
    result = json.loads((run / "result.json").read_text())
    others = [corpus.name for corpus in DOMAINS[name].targets]
    assert set(result["metrics"]) == {"validation", "test", *others}
    other = others[0]
    temperatures = {result["metrics"][split]["temperature"] for split in ("test", *others)}
    assert len(temperatures) == 1
    assert "temperature" not in result["metrics"]["validation"]

    data, state = restore_predictor(run)
    examples = data.read(other)
    texts = [examples.texts(row) for row in range(len(examples))]
    answers = list(predict(data, state, texts, batch_size=4))
    probabilities = np.array([list(x["probabilities"].values()) for x in answers])
    measured = result["metrics"][other]
    assert measured["accuracy"] == pytest.approx(
        (probabilities.argmax(1) == examples.labels).mean()
    )
    nll = sklearn.metrics.log_loss(
        examples.labels, probabilities, labels=range(probabilities.shape[1])
    )
    assert measured["nll"] == pytest.approx(nll, rel=1e-4)
    truth = np.eye(probabilities.shape[1])[examples.labels]
    assert measured["brier"] == pytest.approx(
        ((probabilities - truth) ** 2).sum(1).mean(), rel=1e-4
    )
    scaled = np.log(probabilities) / temperatures.pop()
    scaled = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    nll = sklearn.metrics.log_loss(examples.labels, scaled, labels=range(scaled.shape[1]))
    assert measured["nll_scaled"] == pytest.approx(nll, rel=1e-4)
    if name == "commonsense":
        assert np.isfinite(result["alignment"])
    export(data, state, tmp_path / "export")
    head = "multiple_choice" if name == "commonsense" else "classification"
    assert load(tmp_path / "export", head=head).report.fresh == ()


def test_a_sweeps_table_has_a_column_for_each_domain(sentiment) -> None:
    row = json.loads((sentiment / "table.json").read_text())["rows"]["none"]
    for split in ("test", "books", "dvd", "airline"):
        for metric in ("accuracy", "ece", "ece_scaled"):
            assert 0.0 <= row[f"{split} {metric}"]["mean"] <= 1.0


def test_a_temperature_needs_logits() -> None:
    config = digits.get_config().eval
    config.temperature_split = "validation"
    check_eval(config, Digits(), Classification())
    with pytest.raises(ConfigError, match="'validation', but QuestionAnswering is no class"):
        check_eval(config, Digits(), QuestionAnswering())
