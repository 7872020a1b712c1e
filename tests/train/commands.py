"""Runs and commands, as tests start them."""

from __future__ import annotations

import io
import os
import pathlib
import subprocess
import sys
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
    *arguments: str, module: str = "train", standard_input: str = ""
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, input=standard_input, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"XLA_FLAGS": QUICK_FLAGS, "ALIGN_JAX_CACHE": ""},
    )  # fmt: skip
