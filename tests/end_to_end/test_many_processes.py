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
    final_params,
    finish,
    start,
    start_together,
    tiny_config,
)
from tests.train.commands import run_quietly
from train.devices.hosts import HEARTBEAT_SECONDS
from train.run.log import read_records

pytestmark = pytest.mark.thorough
# The widths are those from which FSDP cuts a kernel (`partition.LEAST_SIZE`).
SHORT = {
    "train__steps": 8, "eval__every": 4, "optimizer__epsilon": 1e-3,
    "model__hidden_size": 64, "model__mlp_size": 64,
}  # fmt: skip


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        final_params(one),
        final_params(other),
    )
    losses = [
        [(r["step"], r["split"], r["loss"]) for r in read_records(folder)]
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


CUT = {"train__mesh_fsdp": True, "train__mesh_model": 2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    """The same run in this process on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run_quietly(tiny_config(**SHORT), workdir)
    return workdir


@pytest.mark.parametrize(("processes", "devices", "options"), [(2, 2, CUT), (4, 1, {})])
def test_many_processes_train_the_model_of_one(
    tmp_path, alone, processes, devices, options
) -> None:
    workdir = tmp_path / "run"
    for process in start_together(workdir, processes, devices, **SHORT, **options):
        finish(process)
    assert_same_run(workdir, alone)
    result = json.loads((workdir / "result.json").read_text())
    whole = json.loads((alone / "result.json").read_text())
    assert result["metrics"]["validation"] == pytest.approx(
        whole["metrics"]["validation"], rel=1e-3
    )


@pytest.mark.fault(
    "One of several processes is killed",
    "The others end with a message; started again, all go on",
)
def test_one_killed_process_ends_the_others_and_a_restart_goes_on(tmp_path, alone) -> None:
    workdir = tmp_path / "run"
    processes = start_together(workdir, 2, **SHORT | {"train__steps": 100_000})
    wait_for_checkpoint(workdir, 8, processes)
    processes[1].kill()
    killed = time.monotonic()
    _, errors = processes[0].communicate(timeout=3 * HEARTBEAT_SECONDS)
    assert processes[0].returncode != 0
    assert time.monotonic() - killed < 2 * HEARTBEAT_SECONDS
    # JAX's own service, which ends the process, and the step that waits may notice first.
    assert "another task died" in errors or "another process ended" in errors, errors

    saved = (workdir / "checkpoints").iterdir()
    reached = max(int(path.name) for path in saved if path.name.isdigit())
    for process in start_together(workdir, 2, **SHORT | {"train__steps": reached + 4}):
        finish(process)
    steps = [r["step"] for r in read_records(workdir) if r["split"] == "validation"]
    assert steps[-1] == reached + 4
    assert steps == sorted(set(steps))


@pytest.mark.fault(
    "SIGTERM for one process or for one of two",
    "All save after the same step and exit with status 143; started again, they go on",
)
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_exits(tmp_path, processes) -> None:
    workdir, endless = tmp_path / "run", SHORT | {"train__steps": 100_000}
    if processes == 1:
        running = [start(workdir, **endless)]
    else:
        running = start_together(workdir, processes, **endless)
    wait_for_checkpoint(workdir, 4, running)
    running[-1].terminate()
    messages = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [128 + signal.SIGTERM] * processes
    stopped = {re.search(r"saved its state after step (\d+)", text)[1] for text in messages}
    assert len(stopped) == 1, messages
    assert (workdir / "checkpoints" / stopped.pop()).is_dir()


@pytest.mark.fault(
    "A batch that the processes cannot share equally",
    "Refused, with the number that would do",
)
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path) -> None:
    processes = start_together(tmp_path / "run", 2, **SHORT, data__batch_size=15)
    messages = []
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        messages.append(errors)
    assert any("expected a multiple of 2" in text for text in messages), messages
