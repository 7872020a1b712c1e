"""Several processes on this machine train one model over loopback."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import time

import jax
import numpy as np
import pytest

from tests.end_to_end.processes import (
    finish,
    saved_params,
    start,
    start_together,
    tiny_config,
)
from tests.train.commands import run_quietly
from train.devices.hosts import HEARTBEAT_SECONDS
from train.run.log import read_records

pytestmark = pytest.mark.thorough
# The widths are those from which FSDP cuts a kernel (`partition.LEAST_SIZE`), and batches can be
# shared by two processes and by three. The rate stays, so that a longer run begins like this one.
SHORT = {
    "train__steps": 8, "train__log_every": 4, "eval__every": 4,
    "data__batch_size": 12, "data__eval_batch_size": 252, "alignment__method": "gan",
    "optimizer__epsilon": 1e-3, "optimizer__decay": "constant",
    "model__hidden_size": 64, "model__mlp_size": 64,
}  # fmt: skip
ENDLESS = SHORT | {
    "train__steps": 100_000, "train__keep_checkpoints": 100_000, "eval__mmd_examples": 0
}  # fmt: skip


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Up to the last step of a short one."""
    last = SHORT["train__steps"]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        saved_params(one, last),
        saved_params(other, last),
    )
    losses = [
        [(r["step"], r["split"], r["loss"]) for r in read_records(folder) if r["step"] <= last]
        for folder in (one, other)
    ]
    assert [x[:2] for x in losses[0]] == [x[:2] for x in losses[1]]
    np.testing.assert_allclose([x[2] for x in losses[0]], [x[2] for x in losses[1]], rtol=1e-4)


def wait_for_checkpoint(workdir: pathlib.Path, step: int, processes, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not (workdir / "checkpoints" / str(step)).exists():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline, f"no checkpoint of step {step} in {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    """The same run in this process on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run_quietly(tiny_config(**SHORT), workdir)
    return workdir


def test_two_processes_train_the_model_of_one(tmp_path, alone) -> None:
    """Of two devices each, with all that a mesh can do."""
    workdir = tmp_path / "run"
    cut = {"train__mesh_fsdp": True, "train__mesh_model": 2}
    for process in start_together(workdir, 2, devices=2, **SHORT | cut):
        finish(process)
    assert_same_run(workdir, alone)
    result = json.loads((workdir / "result.json").read_text())
    whole = json.loads((alone / "result.json").read_text())
    assert result["metrics"]["validation"] == pytest.approx(
        whole["metrics"]["validation"], rel=1e-3
    )


SIGTERM = pytest.mark.fault(
    "SIGTERM for one process or for one of two",
    "All save after the same step and exit with status 143; started again, they go on",
)


@SIGTERM
@pytest.mark.fault(
    "One of several processes is killed",
    "The others end with a message; started again, all go on",
)
def test_one_killed_of_three_ends_the_others_and_a_signal_stops_all(tmp_path, alone) -> None:
    """Which until then have trained the model of one; two of them can go on."""
    workdir = tmp_path / "run"
    processes = start_together(workdir, 3, **ENDLESS)
    wait_for_checkpoint(workdir, 8, processes)
    processes[1].kill()
    killed = time.monotonic()
    for process in (processes[0], processes[2]):
        _, errors = process.communicate(timeout=3 * HEARTBEAT_SECONDS)
        assert process.returncode != 0
        assert time.monotonic() - killed < 2 * HEARTBEAT_SECONDS
        # JAX's own service, which ends the process, and the step that waits may notice first.
        assert "another task died" in errors or "another process ended" in errors, errors
    assert_same_run(workdir, alone)

    saved = (workdir / "checkpoints").iterdir()
    reached = max(int(path.name) for path in saved if path.name.isdigit())
    processes = start_together(workdir, 2, **ENDLESS)
    wait_for_checkpoint(workdir, reached + 4, processes)
    stopped = stopped_by_a_signal(workdir, processes)
    steps = [r["step"] for r in read_records(workdir) if r["split"] == "validation"]
    assert steps == list(range(0, stopped + 1, 4))  # as of a run that never ended


@SIGTERM
def test_sigterm_saves_and_exits(tmp_path) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, fork_of=0, **ENDLESS)
    wait_for_checkpoint(workdir, 4, [process])
    stopped_by_a_signal(workdir, [process])


def stopped_by_a_signal(workdir: pathlib.Path, processes) -> int:
    """Sends SIGTERM to the last of them; returns the step after which all have saved and ended."""
    processes[-1].terminate()
    messages = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * len(processes)
    stopped = {re.search(r"saved its state after step (\d+)", text)[1] for text in messages}
    assert len(stopped) == 1, messages
    (step,) = stopped
    assert (workdir / "checkpoints" / step).is_dir()
    return int(step)


@pytest.mark.fault(
    "A batch that the processes cannot share equally",
    "Refused, with the number that would do",
)
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path) -> None:
    processes = start_together(tmp_path / "run", 2, **SHORT | {"data__batch_size": 15})
    messages = []
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        messages.append(errors)
    assert any("expected a multiple of 2" in text for text in messages), messages
