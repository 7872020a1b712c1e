"""Starting the training command in processes of its own."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from tests.conftest import QUICK_FLAGS, ROOT
from tests.train import commands
from train.configs import digits
from train.run.folder import read_config
from train.run.loop import restore_run

_STARTED: list[subprocess.Popen[str] | Fork] = []

# The digits, four tokens, one layer: a run takes seconds.
TINY = {
    "model.patch_size": 4, "model.hidden_size": 16, "model.layers": 1, "model.heads": 2,
    "model.mlp_size": 16, "model.dropout": 0.1, "data.batch_size": 16, "optimizer.warmup_steps": 0,
    "alignment.method": "ct", "eval.mmd_examples": 8, "train.steps": 60, "train.log_every": 10,
    "train.checkpoint_every": 4, "eval.every": 20, "eval.final": ("validation",),
}  # fmt: skip


class Fork:
    """A fork of a `tests.end_to_end.fork_server`, with what tests use of `subprocess.Popen`.

    All forks of one server have sets in one order. What must not depend on that is run by forks of
    two of them, as it would be by processes of their own.
    """

    def __init__(self, server: int, arguments: Sequence[str], environment: Mapping[str, str]):
        self._server = commands.server("tests.end_to_end.fork_server", server)
        number, self._errors = tempfile.mkstemp(prefix="errors-")
        os.close(number)
        self.pid = self._ask({
            "module": "train", "arguments": arguments, "environment": environment,
            "files": [os.devnull, os.devnull, self._errors],
        })  # fmt: skip
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None if it is still running."""
        if self.returncode is None:
            self.returncode = self._ask({"pid": self.pid})
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[None, str]:
        """Waits for its end; returns what it wrote to standard error as the second of two."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.02)
        return None, pathlib.Path(self._errors).read_text()

    def send_signal(self, number: int) -> None:
        """Sends it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def forget(self) -> None:
        """Removes what it wrote."""
        pathlib.Path(self._errors).unlink(missing_ok=True)

    def _ask(self, request: dict[str, Any]) -> Any:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "The fork server has ended."
        return json.loads(answer)


def tiny_config(**changes: Any) -> ConfigDict:
    """What `start` trains, for a run in this process."""
    config = digits.get_config()
    config.update_from_flattened_dict(_values(changes))
    return config.lock()


def _values(changes: dict[str, Any]) -> dict[str, Any]:
    return TINY | {key.replace("__", "."): value for key, value in changes.items()}


def start(
    workdir: pathlib.Path, *flags: str, devices: int = 1, fork_of: int | None = None, **changes: Any
) -> subprocess.Popen[str] | Fork:
    """Starts `python -m train` on the tiny config.

    Args:
        workdir: the run's folder.
        flags: more of the command's flags.
        devices: how many devices the process gets.
        fork_of: the number of the server, 0 or 1, that it is a fork of; by default it is none, and
            makes its imports.
        changes: of the config, `train__steps=4`.
    """
    arguments = [
        "--config=train/configs/digits.py", f"--workdir={workdir}", *flags,
        *(f"--config.{key}={value}" for key, value in _values(changes).items()),
    ]  # fmt: skip
    quick = [flag for flag in os.environ["XLA_FLAGS"].split() if flag in QUICK_FLAGS.split()]
    environment = os.environ | {
        "XLA_FLAGS": " ".join([f"--xla_force_host_platform_device_count={devices}", *quick]),
        "JAX_PLATFORMS": "cpu",
        "ALIGN_JAX_CACHE": "",  # the tests' own cache is used
    }
    if fork_of is None:
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *arguments], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    else:
        process = Fork(fork_of, arguments, environment)
    _STARTED.append(process)
    return process


def kill_all() -> None:
    """Kills whatever `start` started and is still running."""
    while _STARTED:
        process = _STARTED.pop()
        process.kill()
        if isinstance(process, Fork):
            process.forget()


def start_together(
    workdir: pathlib.Path, processes: int, devices: int = 1, **changes: Any
) -> list[subprocess.Popen[str] | Fork]:
    """Starts several that train one model over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            workdir, f"--coordinator=127.0.0.1:{port}", f"--processes={processes}",
            f"--process={number}", devices=devices, fork_of=number % 2, train__parallel="mesh",
            **changes,
        )
        for number in range(processes)
    ]  # fmt: skip


def finish(process: subprocess.Popen[str] | Fork, seconds: float = 300) -> str:
    """Waits for a successful end; returns what was written to standard error."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return errors


def saved_params(workdir: pathlib.Path, step: int | None = None) -> Any:
    """The parameters of one of a run's checkpoints, by default of the last."""
    return restore_run(workdir, ConfigDict(read_config(workdir)), step)[1].params
