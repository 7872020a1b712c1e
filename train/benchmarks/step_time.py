"""What alignment costs: the time of a training step of each method over the plain model's.

The methods are measured in one process and in turns, so that whatever else the machine does falls
on all of them alike, and a ratio is taken within each turn.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from align_jax.config import PLAIN
from train.benchmarks.turns import ratios, timed_in_turns
from train.data.base import Batch
from train.devices.parallel import parallel_of
from train.experiment.experiment import build_experiment
from train.run.folder import STEP_TIMES, CheckpointError, read_json

WARM_UP = 3  # turns left out: compilation, and the first use of each program


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The time of one training step, medians over the turns."""

    milliseconds: float
    ratio: float  # over the plain model's time in the same turn


def measure_step_times(
    config: ConfigDict,
    methods: Sequence[str],
    turns: int = 30,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, StepTime]:
    """Times the training step of each method, `turns` times, on one batch of a config's data.

    Returns:
        The times by method; the plain model ("none") is measured in any case, and comes first.
    """
    steps = {}
    for method in dict.fromkeys([PLAIN, *methods]):
        config = config.copy_and_resolve_references()
        config.alignment.method = method
        steps[method] = stepper(config, devices=devices)
    seconds = timed_in_turns(steps, turns, WARM_UP)
    return {
        method: StepTime(1e3 * statistics.median(seconds[method]), statistics.median(over_plain))
        for method, over_plain in ratios(seconds, PLAIN).items()
    }


def read_step_times(folder: pathlib.Path) -> dict[str, StepTime]:
    """The times that a sweep has written to its folder, by method; none if it has not.

    Raises:
        CheckpointError: their file is damaged.
    """
    path = folder / STEP_TIMES
    if not path.is_file():
        return {}
    try:
        return {method: StepTime(**time) for method, time in read_json(path).items()}
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error


def stepper(
    config: ConfigDict, batch: Batch | None = None, devices: Sequence[jax.Device] | None = None
) -> Callable[[], Any]:
    """A function that takes one training step from where the last one ended, and waits for it.

    Every step trains on the batch, or on the first of the config's data.
    """
    experiment = build_experiment(config)
    parallel = parallel_of(config, devices, splittable=experiment.data.metadata.splittable)
    state = parallel.place(experiment.initial_state())
    if batch is None:
        batch = next(iter(experiment.data.train_batches()))
    shares = parallel.shard(batch)

    def step() -> Any:
        nonlocal state
        state, report = parallel.train_step(state, shares)
        return jax.block_until_ready((state, report))

    return step
