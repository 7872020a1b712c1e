"""Runs that are killed at any moment, started again, end like one that never was."""

from __future__ import annotations

import pathlib
import random
import signal
import time

import jax
import numpy as np
import pytest

from tests.end_to_end.processes import finish, saved_params, start
from train.run.log import read_records


@pytest.mark.fault(
    "SIGKILL at a random moment, half of them during a save (1 and 4 devices)",
    "The same command goes on; the final parameters are bitwise those of a run never killed",
)
@pytest.mark.thorough
@pytest.mark.parametrize(("devices", "method"), [(1, "gan"), (4, "energy")])
def test_a_run_killed_at_random_ends_like_one_that_was_not(tmp_path, devices, method) -> None:
    """Once while a checkpoint is being written, once at any time."""
    run = {"alignment__method": method, "eval__mmd_examples": 0}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole, devices=devices, fork_of=0, **run))
    rng = random.Random(devices)

    def killed(save: bool) -> bool:
        """Starts the run and kills it; returns whether that was while it wrote a checkpoint."""
        process = start(cut, devices=devices, fork_of=1, **run)
        marked = _wait_for_a_sign(process, cut, save)
        time.sleep(rng.uniform(0.0, 0.02 if save else 0.1))
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return marked and bool(list((cut / "checkpoints").glob("*tmp*")))

    assert any(killed(save=True) for _ in range(3))  # a save may be over sooner than it is hit
    killed(save=False)
    finish(start(cut, devices=devices, fork_of=0, **run))

    jax.tree.map(np.testing.assert_array_equal, saved_params(cut), saved_params(whole))
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
