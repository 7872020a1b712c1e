"""A long run with many checkpoints: memory, threads and open files stay as they are."""

from __future__ import annotations

import pathlib
import time

import numpy as np
import pytest

from tests.conftest import QUICK_FLAGS
from tests.end_to_end.processes import finish, start

STEPS, EVERY = 2000, 50
MOST_GROWTH = 10.0  # MiB per 1,000 steps; noise between checkpoints is of some MiB


def measured(process: pathlib.Path) -> tuple[float, int, int]:
    """Resident memory in MiB, number of threads, number of open files."""
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    memory = float(status["VmRSS"].split()[0]) / 1024
    return memory, int(status["Threads"]), len(list((process / "fd").iterdir()))


@pytest.mark.slow
@pytest.mark.fault(
    f"{STEPS:,} steps with a checkpoint every {EVERY}",
    f"Memory grows by less than {MOST_GROWTH:.0f} MiB per 1,000 steps; no threads or files leak",
)
def test_a_long_run_leaks_nothing(tmp_path, monkeypatch, record_property) -> None:
    workdir = tmp_path / "run"
    monkeypatch.setenv("XLA_FLAGS", QUICK_FLAGS)  # what leaks is not what XLA has compiled
    process = start(
        workdir, train__steps=STEPS, train__checkpoint_every=EVERY, train__log_every=EVERY,
        train__keep_checkpoints=2, eval__every=0, eval__at_start=False, eval__final=(),
        eval__mmd_examples=0,
    )  # fmt: skip
    # The least seen between two saves: orbax starts and ends threads and files with each.
    samples: dict[int, tuple[float, int, int]] = {}
    while process.poll() is None:
        saves = (workdir / "checkpoints").glob("*") if workdir.exists() else []
        step = max((int(path.name) for path in saves if path.name.isdigit()), default=0)
        if STEPS // 4 < step < STEPS:
            now = measured(pathlib.Path("/proc") / str(process.pid))
            samples[step] = tuple(map(min, samples.get(step, now), now))
        time.sleep(0.05)
    finish(process)

    steps = np.array(list(samples))
    memory, threads, files = np.array(list(samples.values())).T
    slope = float(np.polyfit(steps, memory, 1)[0] * 1000)
    record_property("MiB per 1,000 steps", slope)
    print(f"{slope:.2f} MiB per 1,000 steps at {memory.mean():.0f} MiB; {threads=}; {files=}")
    assert len(steps) > 10
    assert slope < MOST_GROWTH
    # A leak of one with each save would raise the least of the second half by half of the saves.
    half = len(steps) // 2
    assert threads[half:].min() < threads[:half].min() + half / 2
    assert files[half:].min() < files[:half].min() + half / 2
