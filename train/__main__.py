r"""Trains and evaluates what a config describes.

    python -m train --config=train/configs/digits.py
    python -m train --config=train/configs/digits.py --config.alignment.method=ct
    python -m train --config=texts --config.data.train=a.csv --config.data.text=review \
        --config.data.label=stars

Started again with the same folder, it goes on where the last checkpoint ends. On many hosts the
same command is started on each, with --distributed under SLURM or on a TPU pod slice, or with
--coordinator=HOST:PORT --processes=N --process=0 (1, 2, ...) elsewhere.
"""

from __future__ import annotations

from absl import flags

from train import cli, process
from train.devices import hosts
from train.run import loop

CONFIG = cli.define_config_flag()
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Train with the other processes of a SLURM job or a TPU pod slice."
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "Address of the first process, HOST:PORT.")
PROCESSES = flags.DEFINE_integer("processes", 0, "How many processes train together.")
PROCESS = flags.DEFINE_integer("process", -1, "Which of them this is, from 0.")
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The run's folder; by default runs/<name>/<method>-seed<seed>. It may lie in a "
    "bucket, gs://BUCKET/FOLDER (with the package gcsfs).",
)


def main() -> None:
    """Runs the command."""
    if DISTRIBUTED.value or COORDINATOR.value or PROCESSES.value or PROCESS.value >= 0:
        hosts.connect(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    config = cli.require_config(CONFIG)
    default = f"runs/{config.name}/{config.alignment.method}-seed{config.seed}"
    loop.run(config, WORKDIR.value or default, console=cli.console())


if __name__ == "__main__":
    cli.run_command(main, process.RESUMABLE)
