"""A run from start to end: build, resume, train, evaluate, save, report.

Nothing here knows a task, a model or a data source; an experiment is a config.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
from ml_collections import ConfigDict

from train import metrics
from train.checkpoint import (
    RESULT,
    CheckpointError,
    Checkpoints,
    Progress,
    claim_folder,
    to_json,
    write_json,
)
from train.early_stopping import Criterion, EarlyStopping
from train.evaluation import evaluate, measure_mmd, measure_uncertainty
from train.experiment import Experiment, build_experiment
from train.hardware import hardware
from train.log import RunLog
from train.parallel import Pmap, make_parallel
from train.registry import ConfigError
from train.state import TrainState


class OutOfTime(RuntimeError):
    """The time that a run was given is over; its state is saved, and the same call goes on."""


class TrainingDiverged(RuntimeError):
    """The loss became nan or infinite; says at which step and what to try."""


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
        workdir: the run's folder; made if missing.
        devices: where to run; all local devices by default.
        console: where to print; the terminal by default.
        summary: whether to print the table of evaluations at the end.
        deadline: when to stop training, by `time.monotonic`.

    Returns:
        What `result.json` holds: "metrics" per split, "mmd" (summed over layers and heads),
        "alignment" (mean divergence over the last logged steps), "parameters" (their number),
        "steps", "seconds" and "hardware", both of the last start.

    Raises:
        ConfigError: the config names or combines things that do not exist or fit.
        CheckpointError: the folder is not ours, or holds another experiment's run.
        TrainingDiverged: the loss is not finite.
        OutOfTime: the deadline has passed and there are steps left to take.

    Example:
        >>> run(digits.get_config(), "runs/digits")["metrics"]["test"]["accuracy"]
        0.97
    """
    workdir = pathlib.Path(workdir)
    console = console or rich.console.Console()
    experiment = build_experiment(config)
    initial = experiment.initial_state()
    claim_folder(workdir, config)
    monitor = Criterion.parse(config.train.monitor)
    with Checkpoints(workdir, config.train.keep_checkpoints, monitor) as checkpoints:
        trainer = Trainer.start(experiment, initial, checkpoints, devices)
        with RunLog(workdir, config.train.steps, trainer.step, console, _title(config)) as log:
            trainer.train(log, deadline)
            result = trainer.finish(log)
        if summary:
            log.print_evaluations(f"{_title(config)} in {workdir}")
    write_json(workdir / RESULT, result | {"config": to_json(config)})
    return result


def restore_run(workdir: str | pathlib.Path, config: ConfigDict) -> tuple[Experiment, TrainState]:
    """The experiment and final state of a run's folder (best parameters, if the config says so)."""
    claim_folder(pathlib.Path(workdir), config)
    experiment = build_experiment(config)
    monitor = Criterion.parse(config.train.monitor)
    with Checkpoints(pathlib.Path(workdir), config.train.keep_checkpoints, monitor) as checkpoints:
        state, progress = checkpoints.restore(experiment.initial_state())
    if config.train.restore_best and progress.best_params is not None:
        state = state.replace(params=progress.best_params)
    return experiment, state


@dataclasses.dataclass
class Trainer:
    """The moving parts of a run.

    Attributes:
        experiment: data, task and model.
        parallel: runs the steps on devices.
        checkpoints: where the state is saved.
        state: replicated over the devices.
        step: the number of steps taken, kept on the host so that nothing waits for a device.
        stopping: watches the evaluations.
        best_params: one copy, of the best evaluation; kept only if the config restores it.
        latest: the newest evaluation's metrics, {"validation/accuracy": 0.9, ...}.
        evaluated: metrics by split of the parameters as they are now.
        window: metrics of the steps since the last record.
        examples: the ids of these steps' examples, None where the data have no ids.
        input_seconds: how long batches were prepared and handed over since the last record.
    """

    experiment: Experiment
    parallel: Pmap
    checkpoints: Checkpoints
    state: TrainState
    step: int
    stopping: EarlyStopping
    best_params: Any = None
    latest: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluated: dict[str, Any] = dataclasses.field(default_factory=dict)
    window: list[Any] = dataclasses.field(default_factory=list)
    examples: list[np.ndarray | None] = dataclasses.field(default_factory=list)
    input_seconds: float = 0.0
    started: float = dataclasses.field(default_factory=time.perf_counter)
    window_started: float = dataclasses.field(default_factory=time.perf_counter)

    @classmethod
    def start(
        cls,
        experiment: Experiment,
        state: TrainState,
        checkpoints: Checkpoints,
        devices: Sequence[jax.Device] | None,
    ) -> Trainer:
        """Places the initial state, or the last checkpoint's, on the devices."""
        config = experiment.config
        stopping = EarlyStopping(
            [Criterion.parse(text) for text in config.train.patience_metrics],
            config.train.patience,
        )
        progress = Progress()
        if checkpoints.latest_step is not None:
            state, progress = checkpoints.restore(state)
            _check_length(state, config)
            stopping.restore(progress.early_stopping)
        if not experiment.data.metadata.splittable:
            devices = list(devices or jax.local_devices())[:1]
        parallel = make_parallel(config.train.parallel, devices)
        return cls(
            experiment, parallel, checkpoints, parallel.replicate(state), int(state.step),
            stopping, progress.best_params,
        )  # fmt: skip

    def train(self, log: RunLog, deadline: float | None = None) -> None:
        """Steps until the last one, or until the patience is used up.

        Raises:
            OutOfTime: before that the deadline has passed; the steps taken are saved.
        """
        config, last = self.experiment.config, self.experiment.config.train.steps
        if self.step == 0 and config.eval.at_start:
            self._evaluate(log)
        self.window_started = time.perf_counter()
        batches = self.experiment.data.train_batches(self.step)
        while self.step < last and not self.stopping.stop:
            asked = time.perf_counter()
            batch = next(batches)
            shares = self.parallel.shard(batch)
            self.input_seconds += time.perf_counter() - asked
            self.state, report = self.parallel.train_step(self.state, shares)
            self.step += 1
            self.evaluated = {}
            self.window.append(report)
            self.examples.append(batch["id"][batch["mask"]] if "id" in batch else None)
            log.advance(self.step)

            if self._due(config.train.log_every):
                self._record(log)
            if self._due(config.eval.every):
                self._evaluate(log)
            if self._due(config.train.checkpoint_every):
                self._save()
            if deadline is not None and time.monotonic() >= deadline and self.step < last:
                self._save()
                raise OutOfTime(f"The time is over after {self.step} of {last} steps.")
        self._record(log)
        self._save()

    def finish(self, log: RunLog) -> dict[str, Any]:
        """Evaluates the final parameters (the best ones, if the config says so)."""
        config = self.experiment.config
        if config.train.restore_best and self.best_params is not None:
            best = self.parallel.replicate(self.best_params)
            self.state = self.state.replace(params=best)
            self.evaluated = {}
        results = dict(self.evaluated)
        splits = dict.fromkeys(config.eval.final, config.eval.stochastic_passes)
        if config.eval.mmd_examples:
            splits.setdefault(config.eval.mmd_split, 0)
        for split, passes in splits.items():
            mmd = split == config.eval.mmd_split and config.eval.mmd_examples > 0
            if split not in results or passes or (mmd and "mmd" not in results[split]):
                results[split] = self._evaluate_split(log, split, mmd=True, passes=passes)
        parameters = jax.tree.leaves(self.parallel.unreplicate(self.state).params)
        return {
            "metrics": results,
            "mmd": results.get(config.eval.mmd_split, {}).get("mmd"),
            "alignment": log.last_train.get("alignment"),
            "parameters": sum(x.size for x in parameters),
            "steps": self.step,
            "seconds": time.perf_counter() - self.started,
            "hardware": hardware(),
        }

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _record(self, log: RunLog) -> None:
        """Writes the mean over the steps since the last record; stops at a loss not finite."""
        if not self.window:
            return
        reports = self.parallel.first(self.window)
        self._check_finite(reports)
        self.window, self.examples = [], []
        seconds = time.perf_counter() - self.window_started
        values = metrics.compute(metrics.merge(reports))
        values["steps_per_second"] = len(reports) / seconds
        # While the host prepares a batch the device computes the steps before it, so it waits only
        # as this comes near 1.
        values["input_share"] = self.input_seconds / seconds
        self.input_seconds = 0.0
        log.write(self.step, "train", values)
        self.window_started = time.perf_counter()

    def _check_finite(self, reports: Sequence[Mapping[str, Any]]) -> None:
        first = self.step - len(reports) + 1
        for step, (report, ids) in enumerate(zip(reports, self.examples, strict=True), first):
            loss, norm = report["loss"].compute(), report["gradient_norm"].compute()
            if not (np.isfinite(loss) and np.isfinite(norm)):
                batch = "" if ids is None else f" on the examples with the ids {ids.tolist()}"
                raise TrainingDiverged(
                    f"At step {step} the loss is {loss} (task {report['task_loss'].compute()}) and "
                    f"the gradient's norm {norm}{batch}; expected finite numbers. The last good "
                    f"checkpoint is that of step {self.checkpoints.latest_step}. Try a lower "
                    f"optimizer.learning_rate, a longer optimizer.warmup_steps, or a smaller "
                    f"alignment.weight."
                )

    def _evaluate(self, log: RunLog) -> None:
        self._record(log)
        config, self.latest = self.experiment.config.eval, {}
        mmd = self.step == 0 or (
            config.mmd_every > 0 and self.step % (config.every * config.mmd_every) == 0
        )
        for split in config.during:
            values = self.evaluated[split] = self._evaluate_split(log, split, mmd=mmd)
            self.latest |= {f"{split}/{name}": value for name, value in values.items()}
        best = bool(self.latest) and self.stopping.update(self.latest)
        if best and self.experiment.config.train.restore_best:
            self.best_params = self.parallel.first(self.state.params)
        self.window_started = time.perf_counter()

    def _evaluate_split(
        self, log: RunLog, split: str, *, mmd: bool, passes: int = 0
    ) -> dict[str, float]:
        """Evaluates and logs, the distance of keys and queries too if told; returns scalars."""
        config, data = self.experiment.config.eval, self.experiment.data
        if split not in data.examples:
            raise ConfigError(
                f"config.eval names the split {split!r}; the data have {', '.join(data.examples)}."
            )
        values = evaluate(self.parallel, self.state, data, split)
        if passes:
            values |= measure_uncertainty(self.parallel, self.state, data, split, passes)
        if mmd and split == config.mmd_split and config.mmd_examples:
            values["mmd_per_head"] = measure_mmd(
                self.parallel.unreplicate(self.state), data, split, config.mmd_examples,
                config.mmd_bandwidth,
            )  # fmt: skip
            values["mmd"] = float(sum(heads.sum() for heads in values["mmd_per_head"].values()))
        log.write(self.step, split, values)
        return {name: value for name, value in values.items() if isinstance(value, float)}

    def _save(self) -> None:
        """Saves one copy of the state, after making sure that it is worth keeping."""
        if self.window:
            self._check_finite(self.parallel.first(self.window))
        progress = Progress(self.stopping.to_json(), self.best_params)
        self.checkpoints.save(self.parallel.unreplicate(self.state), progress, self.latest)
        self.window_started = time.perf_counter()


def _title(config: ConfigDict) -> str:
    return f"{config.name} {config.alignment.method} seed {config.seed}"


def _check_length(state: TrainState, config: ConfigDict) -> None:
    if int(state.step) > config.train.steps:
        raise CheckpointError(
            f"The last checkpoint is that of step {int(state.step)}, but train.steps is "
            f"{config.train.steps}. Raise train.steps, or start anew in another --workdir."
        )
