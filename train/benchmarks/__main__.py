"""Times the training step of each alignment method over the plain model's.

python -m train.benchmarks
python -m train.benchmarks --config=train/configs/digits.py --methods=gan,ot,ct,mmd
"""

from __future__ import annotations

import jax
import rich.console
from absl import flags

from train import cli
from train.benchmarks.step_time import measure_step_times, step_time_table
from train.configs import digits

CONFIG = cli.define_config_flag()
METHODS = flags.DEFINE_list("methods", ["gan", "ot", "ct", "mmd"], "The methods to time.")
TURNS = flags.DEFINE_integer("turns", 50, "How often each method is timed.", lower_bound=1)


def main() -> None:
    """Runs the command."""
    config = CONFIG.value or digits.get_config()
    times = measure_step_times(config, METHODS.value, TURNS.value)
    devices = jax.local_devices()
    title = f"Training step, {config.name}, {len(devices)} x {devices[0].device_kind}"
    rich.console.Console().print(step_time_table(times, title))


if __name__ == "__main__":
    cli.run_command(main)
