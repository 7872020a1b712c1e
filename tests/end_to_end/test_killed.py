"""Runs that are killed at any moment, started again, end like one that never was."""

from __future__ import annotations

import pathlib
import random
import signal
import time

import jax
import numpy as np
import pytest

from tests.end_to_end.processes import final_params, finish, start
from train.run.log import read_records

STEPS = 120


@pytest.mark.fault(
    "SIGKILL at a random moment, half of them during a save (1 and 4 devices)",
    "The same command goes on; the final parameters are bitwise those of a run never killed",
)
@pytest.mark.thorough
@pytest.mark.parametrize(("devices", "times"), [(1, 4), (4, 2)])
def test_a_run_killed_at_random_ends_like_one_that_was_not(tmp_path, devices, times) -> None:
    """Half of the kills come while a checkpoint is being written, the others at any time."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole, devices=devices, train__steps=STEPS))

    rng = random.Random(devices)
    kills = during_saves = 0
    while kills < times:
        process = start(cut, devices=devices, train__steps=STEPS)
        marked = _wait_for_a_sign(process, cut, save=kills % 2 == 0)
        time.sleep(rng.uniform(0.0, 0.02 if kills % 2 == 0 else 0.5))
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        during_saves += marked and bool(list((cut / "checkpoints").glob("*tmp*")))
    finish(start(cut, devices=devices, train__steps=STEPS))

    assert during_saves >= 1
    jax.tree.map(np.testing.assert_array_equal, final_params(cut), final_params(whole))
    evaluations = [
        [(r["step"], r["loss"]) for r in read_records(folder) if r["split"] == "validation"]
        for folder in (cut, whole)
    ]
    assert evaluations[0] == evaluations[1]


def _wait_for_a_sign(process, folder: pathlib.Path, save: bool) -> bool:
    """Returns when a checkpoint is being written, or when the run has begun to train."""
    saves = folder / "checkpoints"
    known = {path.name for path in saves.glob("*")} if saves.exists() else set()
    while process.poll() is None:
        names = {path.name for path in saves.glob("*")} if saves.exists() else set()
        new = names - known
        if any("tmp" in name for name in new) if save else new:
            return True
        time.sleep(0.002)
    return False
