"""Every task's config holds the paper's settings and names metrics that its task measures."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax import AlignmentConfig
from tests.train.configs.schedule import warmup
from train.configs.glue import TABLE_7, get_config
from train.data.glue import GLUE
from train.registry import look_up
from train.step.state import AlignmentTerm
from train.tasks import TASKS


@pytest.mark.parametrize("model", ["", ",minilm"])
@pytest.mark.parametrize("task", GLUE)
def test_what_is_watched_and_reported_is_measured(task: str, model: str) -> None:
    config = get_config(task + model).lock()
    settings = config.task.to_dict()
    made = look_up("task", settings.pop("name"), TASKS)(**settings)
    numbers = {"label": np.array([0, 1, 1]), "prediction": np.array([0, 1, 0])}
    measured = {"accuracy", "ece", *made.corpus_metrics(numbers)}
    for column in config.eval.report:
        split, _, metric = column.rpartition("/")
        assert metric in measured
        assert not split or split in config.eval.final
    split, metric = config.train.monitor.removesuffix(":max").split("/")
    assert split in config.eval.during
    assert metric in measured
    assert set(config.eval.during) <= set(GLUE[task].splits)
    assert 0 < warmup(config) < config.train.steps
    assert config.data.both_orders == (bool(model) and task in ("mrpc", "qqp", "stsb"))


def test_the_settings_are_those_of_table_7() -> None:
    assert set(TABLE_7) == set(GLUE)
    config = get_config("qqp")
    assert config.model.pretrained == "albert/albert-base-v2"
    assert (config.optimizer.learning_rate, config.data.batch_size) == (5e-5, 128)
    assert (config.model.dropout, config.model.classifier_dropout) == (0.1, 0.1)
    assert (config.train.steps, warmup(config)) == (14000, 1000)
    assert config.data.max_length == 512


def test_the_weight_is_the_methods_own_and_not_the_papers() -> None:
    """0.01 of Table 7 stands where it is asked for."""
    section = get_config("mrpc").lock().alignment
    assert section.weight is None
    section.weight = 0.01  # a number may stand there
    settings = {"gan": 0.1, "ct": 0.1, "ot": 1.0, "mmd": 1.0, "energy": 1.0}
    for method, weight in settings.items():
        assert AlignmentTerm(AlignmentConfig(method)).weight == weight
        assert AlignmentTerm(AlignmentConfig(method), weight=0.01).weight == 0.01


def test_the_tokenizer_follows_the_model() -> None:
    config = get_config("mrpc").lock()
    config.model.pretrained = "google-bert/bert-base-uncased"
    assert config.data.tokenizer == "google-bert/bert-base-uncased"


@pytest.mark.parametrize("arg", ["mprc", "mrpc,large"])
def test_what_does_not_exist_is_named(arg: str) -> None:
    wrong = arg.rpartition(",")[2]
    with pytest.raises(ValueError, match=f"glue.py: .*'{wrong}'; .*(known|expected)"):
        get_config(arg)
