"""Trains and evaluates what a config describes.

    python -m train --config=train/configs/digits.py
    python -m train --config=train/configs/digits.py --config.alignment.method=ct

Started again with the same folder, it goes on where the last checkpoint ends.
"""

from __future__ import annotations

from absl import flags

from train import cli, loop

CONFIG = cli.define_config_flag()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/<name>/<method>-seed<seed>."
)


def main() -> None:
    """Runs the command."""
    config = cli.require_config(CONFIG)
    loop.run(config, WORKDIR.value or cli.default_workdir(config))


if __name__ == "__main__":
    cli.run_command(main)
