"""Starting the training command in processes of its own."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

from ml_collections import ConfigDict

from tests.conftest import QUICK_FLAGS, ROOT
from train.configs import digits
from train.run.folder import read_config
from train.run.loop import restore_run

_STARTED: list[subprocess.Popen[str]] = []

# The digits, four tokens, one layer: a run takes seconds.
TINY = {
    "model.patch_size": 4, "model.hidden_size": 16, "model.layers": 1, "model.heads": 2,
    "model.mlp_size": 16, "model.dropout": 0.1, "data.batch_size": 16, "optimizer.warmup_steps": 0,
    "alignment.method": "ct", "eval.mmd_examples": 8, "train.steps": 60, "train.log_every": 10,
    "train.checkpoint_every": 4, "eval.every": 20, "eval.final": ("validation",),
}  # fmt: skip


def tiny_config(**changes: Any) -> ConfigDict:
    """What `start` trains, for a run in this process."""
    config = digits.get_config()
    config.update_from_flattened_dict(_values(changes))
    return config.lock()


def _values(changes: dict[str, Any]) -> dict[str, Any]:
    return TINY | {key.replace("__", "."): value for key, value in changes.items()}


def start(
    workdir: pathlib.Path, *flags: str, devices: int = 1, **changes: Any
) -> subprocess.Popen[str]:
    """Starts `python -m train` on the tiny config.

    Args:
        workdir: the run's folder.
        flags: more of the command's flags.
        devices: how many devices the process gets.
        changes: of the config, `train__steps=4`.
    """
    command = [
        sys.executable, "-m", "train", "--config=train/configs/digits.py",
        f"--workdir={workdir}", *flags,
        *(f"--config.{key}={value}" for key, value in _values(changes).items()),
    ]  # fmt: skip
    quick = [flag for flag in os.environ["XLA_FLAGS"].split() if flag in QUICK_FLAGS.split()]
    environment = os.environ | {
        "XLA_FLAGS": " ".join([f"--xla_force_host_platform_device_count={devices}", *quick]),
        "JAX_PLATFORMS": "cpu",
        "ALIGN_JAX_CACHE": "",  # the tests' own cache is used
    }
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    _STARTED.append(process)
    return process


def kill_all() -> None:
    """Kills whatever `start` started and is still running."""
    while _STARTED:
        _STARTED.pop().kill()


def start_together(
    workdir: pathlib.Path, processes: int, devices: int = 1, **changes: Any
) -> list[subprocess.Popen[str]]:
    """Starts several that train one model over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            workdir, f"--coordinator=127.0.0.1:{port}", f"--processes={processes}",
            f"--process={number}", devices=devices, train__parallel="mesh", **changes,
        )
        for number in range(processes)
    ]  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """Waits for a successful end; returns what was written to standard error."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return errors


def final_params(workdir: pathlib.Path) -> Any:
    """The parameters of a run's last checkpoint."""
    return restore_run(workdir, ConfigDict(read_config(workdir)))[1].params
