"""The moving parts of a run: steps, records, evaluations, checkpoints, and what stops it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from train.devices import hosts
from train.devices.parallel import Parallel, parallel_of
from train.experiment.experiment import Experiment
from train.process import UserError
from train.registry import ConfigError
from train.run import evaluation
from train.run.checkpoint import Checkpoints, Progress
from train.run.early_stopping import Criterion, EarlyStopping
from train.run.folder import CheckpointError
from train.run.hardware import hardware
from train.run.interruption import Interrupted, Interruption, OutOfTime
from train.run.log import RunLog
from train.run.runaway import distance_notices, objective_notices
from train.step import freezing
from train.step.state import TrainState
from train.tasks import metrics


class TrainingDiverged(UserError, RuntimeError):
    """The loss became nan or infinite; says where and what to try."""


@dataclasses.dataclass
class Trainer:
    """The moving parts of a run."""

    experiment: Experiment
    parallel: Parallel
    checkpoints: Checkpoints
    state: TrainState  # replicated over the devices
    step: int  # how many were taken; kept on the host, so that nothing waits for a device
    stopping: EarlyStopping
    best_params: Any = None  # one copy, of the best evaluation, if the config restores it
    # Metrics of the newest evaluation, {"validation/accuracy": 0.9, ...}, of parameters that may
    # have changed since; and by split, of the parameters as they are now.
    latest: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluated: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Since the last record: the steps' metrics, the ids of their examples where the data have any,
    # and how long batches were prepared and handed over.
    window: list[Any] = dataclasses.field(default_factory=list)
    examples: list[np.ndarray | None] = dataclasses.field(default_factory=list)
    input_seconds: float = 0.0
    parameters: int = 0
    trained_parameters: int = 0  # those that are not frozen
    skipped: int = 0  # steps in a row that were left out, since their gradient was not finite
    # How far apart queries and keys lay when this process first measured it.
    first_clouds: dict[str, Any] = dataclasses.field(default_factory=dict)
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
        """Places the initial state, or the last checkpoint's, on the devices.

        Raises:
            ConfigError: the config's evaluation does not fit the data or the task, or several
                processes were to share data that cannot be split.
            CheckpointError: the checkpoint cannot be read, or is that of a longer run.
        """
        config = experiment.config
        evaluation.check_eval(config.eval, experiment.data, experiment.task)
        needed = config.train.patience or config.train.restore_best
        if needed and not config.train.patience_metrics:
            raise ConfigError(
                "train.patience_metrics is empty, but train.patience and train.restore_best go by "
                "it. Name a metric, such as 'validation/loss:min'."
            )
        criteria = [Criterion.parse(text) for text in config.train.patience_metrics]
        stopping = EarlyStopping(criteria, config.train.patience)
        progress = Progress()
        if checkpoints.latest_step is not None:
            state, progress = checkpoints.restore(state, repair=True)
            if int(state.step) > config.train.steps:
                raise CheckpointError(
                    f"The last checkpoint in {checkpoints.folder} is that of step "
                    f"{int(state.step)}, but train.steps is {config.train.steps}. Raise "
                    f"train.steps, or start anew in another --workdir."
                )
            stopping.restore(progress.early_stopping)
        # The optimiser's own count is in the checkpoint.
        skipped = int(state.opt_state.notfinite_count) if config.optimizer.skip_nonfinite else 0
        splittable = experiment.data.metadata.splittable
        if not splittable and jax.process_count() > 1:
            raise ConfigError(
                f"{config.name} is trained on one whole graph, which {jax.process_count()} "
                f"processes cannot share. Start a single process."
            )
        parallel = parallel_of(config, devices, splittable=splittable)
        trained, _ = freezing.split(state.params, state.freeze)
        counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, trained)]
        return cls(
            experiment, parallel, checkpoints, parallel.place(state), int(state.step),
            stopping, progress.best_params, parameters=counts[0], trained_parameters=counts[1],
            skipped=skipped,
        )  # fmt: skip

    def train(self, log: RunLog, interruption: Interruption, deadline: float | None = None) -> None:
        """Steps until the last one, until the patience is used up, or until told to stop.

        Raises:
            TrainingDiverged, Interrupted: as of `run`.
        """
        config, last = self.experiment.config, self.experiment.config.train.steps
        if self.step == 0 and config.eval.at_start:
            self._evaluate(log)
        self.window_started = time.perf_counter()
        batches = self.experiment.data.train_batches(self.step, hosts.share())
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
            jax.block_until_ready(self.window[-2:-1])  # else a signal waits for all in flight
            log.advance(self.step)

            if self._due(config.train.log_every):
                self._record(log)
            if self._due(config.eval.every):
                self._evaluate(log)
            stop: type[Interrupted] | None = None
            if interruption.reached(self.step):
                why, stop = "Told to stop (SIGTERM)", Interrupted
            elif deadline is not None and time.monotonic() >= deadline and self.step < last:
                why, stop = "Out of time", OutOfTime
            if stop:
                self._record(log)
            if stop or self._due(config.train.checkpoint_every):
                self._save(log)
            if stop:
                self.checkpoints.wait()
                raise stop(
                    f"{why}, the run saved its state after step {self.step} of {last}. The same "
                    f"command goes on from there."
                )
        self._record(log)
        self._save(log)

    def finish(self, log: RunLog) -> dict[str, Any]:
        """Evaluates the final parameters (the best ones, if the config says so)."""
        config = self.experiment.config
        if config.train.restore_best and self.best_params is not None:
            best = self.parallel.place(self.best_params)
            self.state = self.state.replace(params=best)
            self.evaluated = {}
        results, settings = dict(self.evaluated), config.eval
        splits = dict.fromkeys(settings.final, settings.stochastic_passes)
        if settings.mmd_examples:
            splits.setdefault(settings.mmd_split, 0)
        held_out, temperature = settings.temperature_split, None
        if held_out:
            data = self.experiment.data
            temperature = evaluation.held_out_temperature(self.parallel, self.state, data, held_out)
        for split, passes in splits.items():
            mmd = split == settings.mmd_split and settings.mmd_examples > 0
            scaled = None if split == held_out else temperature
            missing = split not in results or (mmd and "mmd" not in results[split])
            if missing or passes or scaled is not None:
                results[split] = self._evaluate_split(log, split, True, passes, scaled)
        measured = results.get(settings.mmd_split, {}) if settings.mmd_examples else {}
        return {
            "metrics": results,
            **self._yardsticks(measured),
            "alignment": log.last_train.get("alignment"),
            "parameters": self.parameters,
            "trained_parameters": self.trained_parameters,
            "steps": self.step,
            "seconds": time.perf_counter() - self.started,
            "hardware": hardware(),
        }

    def _yardsticks(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """How far apart keys and queries ended; only now is a classifier trained for it."""
        if not measured:
            return dict.fromkeys((*evaluation.YARDSTICKS, "classifier_accuracy"))
        config, state = self.experiment.config.eval, self.state.replace(opt_state=())
        heads = evaluation.classifier_accuracy(
            self.parallel.gather(state), self.experiment.data, config.mmd_split,
            config.mmd_examples, config.mmd_bandwidth,
        )  # fmt: skip
        mean = float(np.mean(np.concatenate(list(heads.values()))))
        found = {name: measured[name] for name in evaluation.YARDSTICKS}
        per_head = {name: values.tolist() for name, values in heads.items()}
        return found | {"classifier_accuracy": mean, "classifier_accuracy_per_head": per_head}

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _record(self, log: RunLog) -> None:
        """Writes the mean over the steps since the last record; stops at a loss not finite."""
        if not self.window:
            return
        reports = self.parallel.first(self.window)
        finite = self._finite(reports)
        self.window, self.examples = [], []
        seconds = time.perf_counter() - self.window_started
        values = metrics.compute(metrics.merge(finite)) if finite else {}
        if self.experiment.config.optimizer.skip_nonfinite:
            values["skipped_steps"] = len(reports) - len(finite)
        values["steps_per_second"] = len(reports) / seconds
        # While the host prepares a batch the device computes the steps before it, so it waits only
        # as this comes near 1.
        values["input_share"] = self.input_seconds / seconds
        self.input_seconds = 0.0
        log.write(self.step, "train", values)
        if "divergence" in values:
            for text in objective_notices(self.experiment.alignment.config, values["divergence"]):
                log.notice(self.step, text)
        self.window_started = time.perf_counter()

    def _finite(self, reports: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The reports of steps with a finite loss and gradient; at most a few may be without."""
        first, finite = self.step - len(reports) + 1, []
        allowed = self.experiment.config.optimizer.skip_nonfinite
        for step, (report, ids) in enumerate(zip(reports, self.examples, strict=True), first):
            loss, norm = report["loss"].compute(), report["gradient_norm"].compute()
            if np.isfinite(loss) and np.isfinite(norm):
                finite.append(report)
                self.skipped = 0
                continue
            self.skipped += 1
            if self.skipped > allowed:
                batch = "" if ids is None else f" on the examples with the ids {ids.tolist()}"
                skips = f", after {allowed} steps in a row that were skipped" if allowed else ""
                raise TrainingDiverged(
                    f"At step {step} the loss is {loss} (task {report['task_loss'].compute()}) and "
                    f"the gradient's norm {norm}{batch}{skips}; expected finite numbers. "
                    f"{_not_finite_heads(report)}The last good checkpoint is that of step "
                    f"{self.checkpoints.latest_step}. Try a lower optimizer.learning_rate, a "
                    f"larger optimizer.warmup_share, a smaller alignment.weight, or leave out such "
                    f"steps with optimizer.skip_nonfinite."
                )
        return finite

    def _evaluate(self, log: RunLog) -> None:
        self._record(log)
        config, self.latest = self.experiment.config.eval, {}
        mmd = self.step == 0 or (
            config.mmd_every > 0 and self.step % (config.every * config.mmd_every) == 0
        )
        for split in config.during:
            values = self.evaluated[split] = self._evaluate_split(log, split, mmd)
            self.latest |= {f"{split}/{name}": value for name, value in values.items()}
        if self.latest:  # misspelt, it should be known now and not when a checkpoint is chosen
            Criterion.parse(self.experiment.config.train.monitor).value(self.latest)
        best = bool(self.latest) and self.stopping.update(self.latest)
        if best and self.experiment.config.train.restore_best:
            self.best_params = self.parallel.first(self.state.params)
        self.window_started = time.perf_counter()

    def _evaluate_split(
        self, log: RunLog, split: str, mmd: bool, passes: int = 0, temperature: float | None = None
    ) -> dict[str, float]:
        """Evaluates and logs, the distance of keys and queries too if told; returns scalars."""
        config, data = self.experiment.config.eval, self.experiment.data
        values = evaluation.evaluate(self.parallel, self.state, data, split, temperature)
        if passes:
            values |= evaluation.measure_uncertainty(self.parallel, self.state, data, split, passes)
        if mmd and split == config.mmd_split and config.mmd_examples:
            state = self.parallel.gather(self.state.replace(opt_state=()))
            clouds = evaluation.measure_clouds(
                state, data, split, config.mmd_examples, config.mmd_bandwidth
            )
            values |= clouds
            if config.attention:
                values |= evaluation.measure_attention(state, data, split, config.mmd_examples)
            # Of a resumed run the first of this process: it is told what happens from now on.
            self.first_clouds = self.first_clouds or clouds
            if self.experiment.alignment.active:
                settings = self.experiment.alignment.config
                for text in distance_notices(settings, self.first_clouds, clouds):
                    log.notice(self.step, text)
        log.write(self.step, split, values)
        return {name: value for name, value in values.items() if isinstance(value, float)}

    def _save(self, log: RunLog) -> None:
        """Saves one copy of the state, after making sure that it is worth keeping."""
        log.keep()  # what a checkpoint has behind it is not lost
        if self.window:
            before = self.skipped
            self._finite(self.parallel.first(self.window))
            self.skipped = before  # these steps are counted when they are recorded
        began = time.perf_counter()  # no step is in flight: their reports were read
        progress = Progress(self.stopping.to_json(), self.best_params)
        # Only if they are these parameters', else another checkpoint would be called the best.
        measured = self.latest if self.evaluated else None
        self.checkpoints.save(self.parallel.to_save(self.state), progress, measured)
        self.window_started += time.perf_counter() - began


def _not_finite_heads(report: Mapping[str, Any]) -> str:
    """Where in the model the alignment went wrong first, in a sentence, if it did."""
    for layer, mean in report.get("divergence", {}).items():
        heads = np.flatnonzero(~np.isfinite(np.atleast_1d(mean.total)))
        if heads.size:
            return f"The divergence of {layer} is not finite in the heads {heads.tolist()}. "
    return ""
