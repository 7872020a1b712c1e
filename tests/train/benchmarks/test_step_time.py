"""The benchmark of step times, on steps whose cost is known."""

from __future__ import annotations

import functools

import jax
import pytest

from train.benchmarks import step_time


def test_ratios_are_those_of_the_steps_and_turns_alternate(tiny_config, monkeypatch) -> None:
    now, seconds, calls = [0.0], {"none": 1.0, "ct": 2.0, "ot": 4.0}, []

    def stepper(config, devices):
        method = config.alignment.method

        def step() -> None:
            calls.append(method)
            now[0] += seconds[method]

        return step

    monkeypatch.setattr(step_time, "stepper", stepper)
    timed = functools.partial(step_time.timed_in_turns, clock=lambda: now[0])
    monkeypatch.setattr(step_time, "timed_in_turns", timed)
    times = step_time.measure_step_times(tiny_config(), ["ct", "ot"], turns=5)
    assert list(times) == ["none", "ct", "ot"]
    assert {method: value.ratio for method, value in times.items()} == seconds
    assert times["ot"].milliseconds == 4000.0
    turns = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(turns) == 5 + step_time.WARM_UP
    assert all(set(turn) == set(seconds) for turn in turns)
    assert {turn[0] for turn in turns} == set(seconds)


@pytest.mark.thorough
def test_real_steps_are_timed(tiny_config) -> None:
    devices = jax.local_devices()[:1]
    times = step_time.measure_step_times(tiny_config(), ["energy"], turns=2, devices=devices)
    assert all(value.milliseconds > 0 for value in times.values())
    assert list(times) == ["none", "energy"]
