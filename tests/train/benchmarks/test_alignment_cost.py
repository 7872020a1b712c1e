"""What alignment costs: real steps of a tiny model, and steps whose cost is known."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys

import pytest

from align_jax import networks
from train.benchmarks import alignment_cost, cost_report

TINY = {"vocab_size": 30_000, "hidden_size": 8, "layers": 1, "heads": 2, "mlp_size": 8}
COST = alignment_cost.Cost("tiny", 4, 16, "ct", 2.0, (1.0, 1.5, 4.0), 3.0, 1.25, 1.125)


@pytest.fixture
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(alignment_cost, "MODELS", {"tiny": (TINY, (4, 4))})


def test_every_method_takes_real_steps(tiny) -> None:
    costs = list(alignment_cost.measure(["tiny"], [8, 16], ["gan", "ct"], turns=2))
    assert [(cost.tokens, cost.method) for cost in costs] == [
        (tokens, method) for tokens in (8, 16) for method in ("none", "gan", "ct")
    ]
    for cost in costs:
        assert cost.batch == 4
        assert cost.milliseconds > 0
        assert len(cost.ratios) == 2
        plain = cost.method == "none"
        assert (cost.ratio == 1) == plain
        assert (cost.flops_ratio > 1) != plain
        assert math.isfinite(cost.memory_ratio)


def test_operations_are_counted_without_loops(tiny, monkeypatch) -> None:
    """XLA counts a loop's body once; however the networks are cut up, the count is of all."""
    batch = alignment_cost.random_batch(4, 8)
    flops = []
    for chunk in (2**18, 16):
        monkeypatch.setattr(networks, "CHUNK_SIZE", chunk)
        flops.append(alignment_cost.Step("tiny", "gan", batch).flops)
    assert flops[0] == flops[1]


def test_a_step_trains(tiny) -> None:
    step = alignment_cost.Step("tiny", "ct", alignment_cost.random_batch(4, 8))
    before = [x.copy() for x in _leaves(step)]
    step()
    assert all((x != y).any() for x, y in zip(before, _leaves(step), strict=True))


def _leaves(step: alignment_cost.Step) -> list:
    params = step._carry[0]
    return [params["encoder"]["layer_0"]["attention"][name]["kernel"] for name in ("query", "key")]


def test_turns_alternate_and_the_first_is_left_out() -> None:
    calls: list[str] = []
    now, seconds = [0.0], {"a": 1.0, "b": 3.0}

    def step(name):
        calls.append(name)
        now[0] += seconds[name]

    steps = {name: functools.partial(step, name) for name in seconds}
    times = alignment_cost.timed_in_turns(steps, turns=3, clock=lambda: now[0])
    assert "".join(calls) == "abbaabba"
    assert times == {"a": [1.0] * 3, "b": [3.0] * 3}


def test_long_clouds_need_no_matrix() -> None:
    cost = alignment_cost.measure_long(4096, turns=1)
    assert 0 < cost.memory < 4096**2 * 4 / alignment_cost.MIB


def test_the_report(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    assert "1.500 [1.000, 4.000]" in cost_report.row(COST)
    assert len(cost_report.row(COST)) == len(cost_report.HEADER)
    long = alignment_cost.LongCost(32_768, 1.0, 2.0)
    cost_report.write(tmp_path, "cpu", [COST], [long], "CPU time")
    written = json.loads((tmp_path / "costs.json").read_text())
    assert written["clock"] == "CPU time"
    assert written["steps"][0]["ratio"] == 1.5
    assert written["long"][0]["tokens"] == 32_768
    assert (tmp_path / "costs.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--methods=gna", "'gna' is none of gan, ot"), ("--turns=0", "--turns must be at least 1")],
)
def test_bad_arguments_are_named(argument, message) -> None:
    command = [sys.executable, "-m", "train.benchmarks", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
