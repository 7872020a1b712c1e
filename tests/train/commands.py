"""Runs and commands, as tests start them."""

from __future__ import annotations

import atexit
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import rich.console
from ml_collections import ConfigDict

from tests.conftest import QUICK_FLAGS, ROOT
from train.run import loop


def run_quietly(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains on one device and prints nothing; returns the run's result."""
    console = rich.console.Console(file=io.StringIO())
    return loop.run(config, workdir, devices=jax.local_devices()[:1], console=console)


def command(
    *arguments: str, module: str = "train", standard_input: str = "", forked: bool = False,
    output: str = "",
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """`python -m MODULE ARGUMENTS` in a process of its own.

    Args:
        arguments: of the command.
        module: which command.
        standard_input: what it reads there.
        forked: whether the process may be one that has made its imports already, see
            `tests.train.command_server`; for tests of what a command does after them.
        output: of a forked one, where it writes to; by default to what is returned.
    """
    environment = os.environ | {"XLA_FLAGS": QUICK_FLAGS, "ALIGN_JAX_CACHE": ""}
    if forked:
        return _forked(arguments, module, standard_input, environment, output)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, input=standard_input, capture_output=True, text=True, timeout=300, check=False,
        env=environment,
    )  # fmt: skip


def _forked(
    arguments: tuple[str, ...], module: str, standard_input: str, environment: dict[str, str],
    output_file: str,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    process = server("tests.train.command_server")
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        for file, content in zip(files, (standard_input, "", ""), strict=True):
            file.write_text(content)
        request = {
            "module": module, "arguments": arguments, "environment": environment,
            "files": [str(files[0]), output_file or str(files[1]), str(files[2])],
        }  # fmt: skip
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        output, errors = (file.read_text() for file in files[1:])
    return subprocess.CompletedProcess([module, *arguments], status, output, errors)


@functools.cache
def server(module: str, number: int = 0) -> subprocess.Popen[str]:
    """A process that runs until this one ends; one of several of the module by its number."""
    started = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(_end, started)
    return started


def _end(started: subprocess.Popen[str]) -> None:
    """Waits for it, so that its time and its forks' count as this process's."""
    assert started.stdin is not None
    started.stdin.close()
    try:
        started.wait(timeout=60)
    except subprocess.TimeoutExpired:
        started.kill()
