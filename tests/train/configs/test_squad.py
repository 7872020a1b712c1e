"""SQuAD's configs hold the paper's settings and name metrics that the task measures."""

from __future__ import annotations

import pytest

from tests.train.configs.schedule import warmup
from train.configs.squad import get_config
from train.registry import look_up
from train.tasks import TASKS
from train.tasks.answers import Answer, Answers, squad_metrics


@pytest.mark.parametrize("arg", ["v1", "v2", "v1,minilm", "v2,minilm"])
def test_what_is_watched_and_reported_is_measured(arg: str) -> None:
    config = get_config(arg).lock()
    settings = config.task.to_dict()
    made = look_up("task", settings.pop("name"), TASKS)(**settings)
    assert made.unanswerable == arg.startswith("v2")
    answers = [Answers((Answer("x", 0, 1, 0.0),), -1.0)]
    measured = squad_metrics(answers, [["x"]], unanswerable=made.unanswerable)
    assert set(config.eval.report) <= set(measured)
    assert config.train.monitor == "validation/f1:max"
    assert config.data.tokenizer == config.model.pretrained


def test_the_settings_are_those_of_table_7() -> None:
    one, two = get_config("v1"), get_config("v2")
    assert (one.data.version, two.data.version) == ("v1.1", "v2.0")
    assert one.data.batch_size == two.data.batch_size == 48
    assert (one.optimizer.learning_rate, two.optimizer.learning_rate) == (5e-5, 3e-5)
    assert (one.train.steps, two.train.steps) == (3649, 8144)
    assert (warmup(one), warmup(two)) == (365, 814)
    assert (one.data.max_length, two.data.max_length) == (384, 512)
    assert one.model.dropout == 0.0


@pytest.mark.parametrize("arg", ["v3", "v2,large"])
def test_what_does_not_exist_is_named(arg: str) -> None:
    wrong = arg.rpartition(",")[2]
    with pytest.raises(ValueError, match=f"squad.py: .*'{wrong}'; .*(known|expected)"):
        get_config(arg)
