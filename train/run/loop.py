"""A run from start to end, and what finished runs are used for: to restore one, to start from one.

Nothing here knows a task, a model or a data source; an experiment is a config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import rich.console
from flax import traverse_util
from ml_collections import ConfigDict

from train.devices import hosts
from train.experiment.experiment import Experiment, build_experiment
from train.places import is_remote, place_of
from train.run.checkpoint import Checkpoints
from train.run.early_stopping import Criterion
from train.run.folder import (
    CONFIG,
    RESULT,
    CheckpointError,
    check_is_one_run,
    check_same_experiment,
    claimed,
    making_sense_of,
    read_config,
    to_json,
    write_json,
)
from train.run.interruption import Interrupted, Interruption
from train.run.lock import check_not_locked
from train.run.log import RunLog
from train.run.sinks import opened
from train.run.trainer import Trainer
from train.step.state import TrainState


def run(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    devices: Sequence[jax.Device] | None = None,
    console: rich.console.Console | None = None,
    summary: bool = True,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Trains what a config describes, or goes on where the folder's last checkpoint ends.

    Args:
        config: see `train.configs`.
        workdir: the run's folder; made if missing. Also file:///..., or gs://BUCKET/FOLDER in
            Google Cloud Storage (with the package gcsfs), where nothing keeps a second run out.
        devices: where to run; all local devices by default.
        console: where to print; the terminal by default.
        summary: whether to print the table of evaluations at the end.
        deadline: when to stop training, by `time.monotonic`.

    Returns:
        What `result.json` holds: "metrics" per split; how far apart keys and queries ended, on
        examples of `eval.mmd_split`: "mmd" (summed over layers and heads), "scale_free_mmd",
        "query_norm", "key_norm" (see `evaluation.measure_clouds`) and "classifier_accuracy" (see
        there), also "classifier_accuracy_per_head", all None if `eval.mmd_examples` is 0;
        "alignment" (mean divergence over the last logged steps), "parameters" (their number),
        "trained_parameters" (how many of them are not frozen), "steps", "seconds" and "hardware",
        both of the last start.

    Raises:
        ConfigError: the config names or combines things that do not exist or fit.
        CheckpointError: the folder is not ours, or holds another experiment's run.
        InUse: another process trains in the folder.
        TrainingDiverged: the loss is not finite.
        Interrupted: SIGTERM came; the state is saved, and the same call goes on from there.
        OutOfTime: likewise, because the deadline has passed.

    Example:
        >>> run(digits.get_config(), "runs/digits")["metrics"]["test"]["accuracy"]  # doctest: +SKIP
        0.97
    """
    workdir = place_of(workdir, "--workdir", bucket=True)
    if not is_remote(workdir):
        check_not_locked(workdir)  # at once; the data and the model may take minutes
    first = hosts.is_first()
    console = (console or rich.console.Console()) if first else rich.console.Console(quiet=True)
    experiment = build_experiment(config)
    config = experiment.config
    initial = experiment.initial_state()
    experiment = dataclasses.replace(experiment, pretrained={})  # these are in the state now
    with claimed(workdir, config) if first else contextlib.nullcontext():
        hosts.wait_for_all("folder")
        check_same_experiment(workdir, config)
        monitor = Criterion.parse(config.train.monitor)
        with Checkpoints(workdir, config.train.keep_checkpoints, monitor) as checkpoints:
            if config.train.init_from and checkpoints.latest_step is None:
                other = place_of(config.train.init_from, "config.train.init_from", bucket=True)
                initial = start_from(initial, other, console)
            said = list(experiment.data.description())
            trainer = Trainer.start(experiment, initial, checkpoints, devices)
            with making_sense_of(workdir / CONFIG):
                begun = read_config(workdir)["train"]["steps"]
            if trainer.step and begun != config.train.steps and config.optimizer.decay == "linear":
                said.append(
                    f"Begun with train.steps={begun}, on which its rate depends, this run will not "
                    f"end like one of {config.train.steps} steps; take another --workdir for that."
                )
            if trainer.trained_parameters < trainer.parameters:
                said.append(
                    f"{trainer.trained_parameters:,} of {trainer.parameters:,} parameters are "
                    f"trained; the others are frozen."
                )
            for line in [*said, _beginning(config, workdir, trainer.step)]:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            del initial  # a second copy of everything, if the run goes on from a checkpoint
            title, folder = _title(config), workdir if first else None
            sink = config.train.get("log_to", "") if first else ""
            with (
                opened(sink, workdir, title, config) as sinks,
                RunLog(folder, config.train.steps, trainer.step, console, title, sinks) as log,
                Interruption() as interruption,
            ):
                trainer.train(log, interruption, deadline)
                result = trainer.finish(log)
        if first:
            write_json(workdir / RESULT, result | {"config": to_json(config)})
        hosts.wait_for_all("result")
    if summary:
        log.print_evaluations(f"{_title(config)} in {workdir}")
    if interruption.asked:  # while the last evaluations were made; whoever called has more to do
        raise Interrupted("Told to stop (SIGTERM); this run is complete.")
    return result


def restore_run(
    workdir: str | pathlib.Path, config: ConfigDict | None = None, step: int | None = None
) -> tuple[Experiment, TrainState]:
    """The experiment and the state of a run's folder.

    Args:
        workdir: the folder.
        config: the run's; by default what its folder says.
        step: of the checkpoint; by default the last one, with the best parameters if the config
            says so.

    Raises:
        CheckpointError: the folder is no run's, it has no such checkpoint, or nothing can be made
            of its config, which was edited.
        ConfigError: a part refuses what the config says.
    """
    workdir = place_of(workdir, "the run's folder", bucket=True)
    check_is_one_run(workdir)
    with making_sense_of(workdir / CONFIG):
        if config is None:
            config = ConfigDict(read_config(workdir))
        check_same_experiment(workdir, config)
        experiment = build_experiment(config)
        keep, monitor = config.train.keep_checkpoints, Criterion.parse(config.train.monitor)
        with Checkpoints(workdir, keep, monitor, read_only=True) as checkpoints:
            state, progress = checkpoints.restore(experiment.initial_state(), step)
        if step is None and config.train.restore_best and progress.best_params is not None:
            state = state.replace(params=progress.best_params)
        return experiment, state


def start_from(
    state: TrainState, workdir: pathlib.Path, console: rich.console.Console
) -> TrainState:
    """Takes over another run's final parameters, as far as name and shape agree.

    Args:
        state: whose parameters are replaced.
        workdir: the other run's folder.
        console: where it is said which parameters were not taken over.

    Raises:
        CheckpointError: the folder is no run's, or nothing in it fits.
    """
    _, other = restore_run(workdir)
    # Where the two do not have the same adapters, what those of the other have learnt is taken over
    # in the kernels that they belong to.
    params = other.params if other.adapters == state.adapters else other.variables["params"]
    own, found = (traverse_util.flatten_dict(x, sep="/") for x in (state.params, params))
    taken = {n: x for n, x in found.items() if n in own and own[n].shape == x.shape}
    if not taken:
        raise CheckpointError(
            f"train.init_from is {workdir}; none of its parameters fits this model, which has "
            f"{', '.join(list(own)[:3])}, ..."
        )
    fresh, unused = (sorted(names - taken.keys()) for names in (own.keys(), found.keys()))
    console.print(
        f"{len(taken)} parameters from {workdir}; {len(fresh)} start anew"
        f"{': ' + ', '.join(fresh[:4]) if fresh else ''}; {len(unused)} are not used."
    )
    return state.start_from(traverse_util.unflatten_dict(own | taken, sep="/"))


def _beginning(config: ConfigDict, workdir: pathlib.Path, step: int) -> str:
    """What is about to happen."""
    steps, start = config.train.steps, config.model.get("pretrained", "")
    said = f"{_title(config)}{f' from {start}' if start else ''}, into {workdir}: "
    if step >= steps:
        return said + f"complete after step {step}; it is evaluated again."
    return said + (f"{steps} steps." if not step else f"step {step} of {steps} is done.")


def _title(config: ConfigDict) -> str:
    return f"{config.name} {config.alignment.method} seed {config.seed}"
