"""What alignment costs: real steps of a tiny model, and steps whose cost is known."""

from __future__ import annotations

import functools
import math
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train.benchmarks.__main__ as benchmarks
from align_jax import networks
from train.benchmarks import alignment_cost, turns
from train.benchmarks.alignment_cost import Step

TINY = {"vocab_size": 30_000, "hidden_size": 8, "layers": 1, "heads": 2, "mlp_size": 8}
COST = alignment_cost.Cost("tiny", 4, 16, "ct", 0.5, 2.0, (1.0, 1.5, 4.0), 3.0, 1.25, 1.125)


@pytest.fixture
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(alignment_cost, "MODELS", {"tiny": (TINY, (4, 4))})
    monkeypatch.setattr(alignment_cost, "TRACINGS", 1)


@functools.cache
def step(method: str) -> Step:
    """Of four texts of eight tokens; compiled once for all tests."""
    return Step("tiny", method, alignment_cost.random_batch(4, 8))


def operations(method: str) -> float:
    """Of such a step, which for them alone need not be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda _: None)
        patch.setattr(alignment_cost, "temporary_memory", lambda _: 0.0)
        return Step("tiny", method, alignment_cost.random_batch(4, 8)).flops


@pytest.mark.thorough
def test_every_method_takes_real_steps(tiny, monkeypatch) -> None:
    monkeypatch.setattr(alignment_cost, "Step", lambda _name, method, _batch: step(method))
    costs = list(alignment_cost.measure(["tiny"], [8], ["energy", "ct"], turns=2))
    assert [(cost.tokens, cost.method) for cost in costs] == [
        (8, method) for method in ("none", "energy", "ct")
    ]
    for cost in costs:
        assert cost.batch == 4
        assert cost.milliseconds > 0
        assert len(cost.ratios) == 2
        plain = cost.method == "none"
        assert (statistics.median(cost.ratios) == 1) == plain
        assert (cost.flops_ratio > 1) != plain
        assert math.isfinite(cost.memory_ratio)


def test_each_length_is_beside_a_plain_model_of_its_own(tiny, monkeypatch) -> None:
    class Fake:
        """CT needs twice of what the plain model needs for its tokens."""

        def __init__(self, name, method, batch) -> None:
            factor = {"none": 1, "ct": 2}[method]
            self.tracing = self.memory = self.flops = factor * batch["input_ids"].shape[1]

        def __call__(self) -> None:
            pass

    monkeypatch.setattr(alignment_cost, "Step", Fake)
    costs = list(alignment_cost.measure(["tiny"], [8, 16], ["ct"], turns=1, batch=3))
    assert [(x.tokens, x.method, x.batch, x.memory, x.memory_ratio, x.flops_ratio)
            for x in costs] == [
        (8, "none", 3, 8, 1, 1), (8, "ct", 3, 16, 2, 2),
        (16, "none", 3, 16, 1, 1), (16, "ct", 3, 32, 2, 2),
    ]  # fmt: skip


@pytest.mark.thorough
def test_operations_are_counted_without_loops(tiny, monkeypatch) -> None:
    """XLA counts a loop's body once; however the networks are cut up, the count is of all."""
    whole = step("ct").flops
    monkeypatch.setattr(networks, "CHUNK_SIZE", 16)
    assert operations("ct") == whole


@pytest.mark.thorough
def test_fewer_tokens_and_samples_take_fewer_operations(tiny) -> None:
    fewest, drawn = operations("energy:2:4"), operations("energy:2")
    assert step("none").flops < fewest < drawn < step("energy").flops


@pytest.mark.parametrize("methods", ["sinkhorn", "ct:few", "ct:", "ct:32:0", "ct:32:8:2"])
def test_a_method_that_is_none_is_refused(methods, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", f"--methods={methods}"])
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main()
    assert "--methods" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_step_trains(tiny) -> None:
    before = [x.copy() for x in _leaves(step("ct"))]
    step("ct")()
    assert all((x != y).any() for x, y in zip(before, _leaves(step("ct")), strict=True))


@pytest.mark.thorough
def test_attention_that_is_found_takes_the_same_step(tiny) -> None:
    written, found = step("energy"), step("aligned-energy")
    found._carry = jax.tree.map(jnp.copy, written._carry)
    written()
    found()
    for one, other in zip(*map(jax.tree.leaves, (written._carry, found._carry)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def _leaves(step: Step) -> list:
    params = step._carry[0]
    layer = params["encoder"]["layer_0"]["attention"]
    return [np.asarray(layer[name]["kernel"]) for name in ("query", "key")]


def test_turns_alternate_and_the_first_is_left_out() -> None:
    calls: list[str] = []
    now, seconds = [0.0], {"a": 1.0, "b": 3.0}

    def step(name):
        calls.append(name)
        now[0] += seconds[name]

    steps = {name: functools.partial(step, name) for name in seconds}
    times = turns.timed_in_turns(steps, turns=3, clock=lambda: now[0])
    assert "".join(calls) == "abbaabba"
    assert times == {"a": [1.0] * 3, "b": [3.0] * 3}
    assert turns.ratios(times, "a") == {"a": [1.0] * 3, "b": [3.0] * 3}


def test_a_row_of_the_table() -> None:
    assert "1.50 [1.00, 4.00]" in COST.row()
    assert len(COST.row()) == len(alignment_cost.HEADER)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--turns=0", "--turns: must be at least 1, got 0."),
        ("--methods=gna", "'gna' is none of gan, ot"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, capsys, flag: str, message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.benchmarks", flag])
    with pytest.raises(SystemExit) as status:
        benchmarks.main()
    assert status.value.code == 2
    assert message in capsys.readouterr().err
