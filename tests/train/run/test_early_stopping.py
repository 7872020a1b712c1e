"""Patience over a sequence of evaluations worked out by hand."""

from __future__ import annotations

import pytest

from train.registry import ConfigError
from train.run.early_stopping import Criterion, EarlyStopping


def watcher(patience: int) -> EarlyStopping:
    return EarlyStopping(
        [Criterion.parse("v/loss:min"), Criterion.parse("v/accuracy:max")], patience
    )


def test_what_is_not_measured_or_nan_ranks_last() -> None:
    least, most = Criterion.parse("v/loss:min"), Criterion.parse("v/accuracy:max")
    values = [0.9, 0.1, float("nan")]
    assert max(values, key=lambda x: least.rank({"v/loss": x})) == 0.1
    assert max(values, key=lambda x: most.rank({"v/accuracy": x})) == 0.9
    assert least.rank({}) == most.rank({"v/accuracy": float("nan")}) == -float("inf")


def test_any_improvement_resets_the_patience_and_all_make_the_best() -> None:
    evaluations = [  # loss, accuracy, best?, evaluations waited
        (1.0, 0.5, True, 0),
        (0.9, 0.4, False, 0),
        (1.1, 0.6, False, 0),
        (0.8, 0.6, True, 0),
        (0.9, 0.5, False, 1),
        (0.9, 0.5, False, 2),
    ]
    stopping = watcher(patience=2)
    for loss, accuracy, best, waited in evaluations:
        assert not stopping.stop
        assert stopping.update({"v/loss": loss, "v/accuracy": accuracy}) is best
        assert stopping.waited == waited
    assert stopping.stop


def test_nan_is_never_the_best() -> None:
    stopping = watcher(patience=2)
    assert not stopping.update({"v/loss": float("nan"), "v/accuracy": float("nan")})
    assert stopping.waited == 1
    assert stopping.update({"v/loss": 1.0, "v/accuracy": 0.5})
    assert not stopping.update({"v/loss": float("nan"), "v/accuracy": 0.6})
    assert stopping.update({"v/loss": 0.9, "v/accuracy": 0.6})


def test_patience_zero_never_stops() -> None:
    stopping = watcher(patience=0)
    for loss in (1.0, 2.0, 3.0):
        stopping.update({"v/loss": loss, "v/accuracy": -loss})
    assert not stopping.stop


def test_restored_state_goes_on_counting() -> None:
    first, second = watcher(2), watcher(2)
    first.update({"v/loss": 1.0, "v/accuracy": 0.5})
    first.update({"v/loss": 2.0, "v/accuracy": 0.4})
    second.restore(first.to_json())
    second.update({"v/loss": 1.5, "v/accuracy": 0.4})
    assert second.stop


def test_bad_criteria_are_named() -> None:
    with pytest.raises(ConfigError, match="'loss' is no criterion"):
        Criterion.parse("loss")
    with pytest.raises(ConfigError, match='did you mean "v/accuracy"'):
        Criterion.parse("v/acuracy:max").value({"v/accuracy": 1.0, "v/loss": 2.0})
