"""Evaluating a split, and measuring how far apart its keys and queries are."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from align_jax import Clouds, alignment_clouds, calibration, cloud_mmd
from train.data.base import Batch, DataSource
from train.devices import hosts
from train.devices.parallel import Parallel
from train.registry import ConfigError
from train.step.state import TrainState
from train.tasks import metrics
from train.tasks.base import Task


def check_eval(config: ConfigDict, data: DataSource, task: Task) -> None:
    """Refuses, before anything is trained, an evaluation that could not be made at the end.

    Args:
        config: its section `eval`.
        data: the run's.
        task: the run's.

    Raises:
        ConfigError: a split that the data do not have, that is empty or has no labels; passes or a
            temperature of a task that has no use for them.
    """
    measured = {"mmd_split": bool(config.mmd_examples), "temperature_split": True}
    named = [("during", x) for x in config.during] + [("final", x) for x in config.final]
    named += [(key, config[key]) for key, used in measured.items() if used and config[key]]
    for key, split in named:
        if split not in data.examples:
            raise ConfigError(
                f"config.eval.{key} names the split {split!r}; the data have "
                f"{', '.join(data.examples)}."
            )
    for split in dict.fromkeys(split for _, split in named):
        if next(iter(data.eval_batches(split)), None) is None:  # refuses what has no labels
            raise ConfigError(f"config.eval names the split {split!r}, which has no examples.")
    if config.temperature_split and task.logit_bins is None:
        raise ConfigError(
            f"config.eval.temperature_split is {config.temperature_split!r}, but "
            f"{type(task).__name__} is no classification of texts, whose logits a temperature "
            f"could scale. Set it to ''."
        )
    if config.stochastic_passes < 0 or config.stochastic_passes == 1:
        raise ConfigError(
            f"config.eval.stochastic_passes is {config.stochastic_passes}; expected 2 or more, or "
            f"0 for none."
        )
    if config.stochastic_passes and type(task).stochastic_metrics is Task.stochastic_metrics:
        raise ConfigError(
            f"config.eval.stochastic_passes is {config.stochastic_passes}; {type(task).__name__} "
            f"has no metric of uncertainty. Set it to 0."
        )


def evaluate(
    parallel: Parallel,
    state: TrainState,
    data: DataSource,
    split: str,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Metrics over a whole split, every example counted once.

    Args:
        parallel: runs the step.
        state: placed on the devices, holds the parameters.
        data: where the batches come from.
        split: its name.
        temperature: of `held_out_temperature`; None measures no calibration with one.

    Returns:
        {"loss": float, "accuracy": float, ...}, with the task's corpus metrics if it has any; for
        a task that measures calibration also "reliability": {"count", "confidence", "correct"},
        sums per bin of confidence; for one whose predictions hold logits what `calibration_metrics`
        returns.
    """
    merged, joined = _pass(parallel, state, data, split)
    values = metrics.compute(merged)
    for metric in merged.values():
        if isinstance(metric, metrics.Calibration):
            values["reliability"] = dict(vars(metric.bins))
    bins = state.task.logit_bins
    if bins is not None:
        values |= calibration_metrics(joined["logits"], joined["label"], temperature, bins)
    return values | state.task.corpus_metrics(joined, data.references(split))


def held_out_temperature(
    parallel: Parallel, state: TrainState, data: DataSource, split: str
) -> float:
    """The temperature that calibrates a split best, to be used on others.

    Args:
        parallel: runs the step.
        state: placed on the devices, holds the parameters.
        data: where the batches come from.
        split: held out, not trained on; its own figures are reported unscaled.
    """
    _, joined = _pass(parallel, state, data, split)
    logits, labels = (jnp.asarray(joined[name]) for name in ("logits", "label"))
    return float(calibration.fit_temperature(logits, labels))


def calibration_metrics(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None = None, bins: int = 10
) -> dict[str, float]:
    """How well confidence fits accuracy, beside the ECE, which the steps sum up.

    Args:
        logits: [n, C].
        labels: int [n].
        temperature: what the logits are divided by, from held-out examples.
        bins: of both kinds of ECE.

    Returns:
        "adaptive_ece" (bins of equal mass), "nll" (nats) and "brier"; with a temperature also
        "temperature", and those three and the ECE after it: "ece_scaled" and so on.

    Example:
        >>> found = calibration_metrics(np.array([[0.0, 0.0]]), np.array([1]))
        >>> round(found["nll"], 4)
        0.6931
    """
    true = jnp.asarray(labels)

    def measured(logits: jax.Array) -> dict[str, float]:
        probabilities = jax.nn.softmax(logits)
        found = {
            "ece": calibration.expected_calibration_error(probabilities, true, bins=bins),
            "adaptive_ece": calibration.adaptive_calibration_error(probabilities, true, bins=bins),
            "nll": calibration.negative_log_likelihood(logits, true),
            "brier": calibration.brier_score(probabilities, true),
        }
        return {name: float(value) for name, value in found.items()}

    values = measured(jnp.asarray(logits))
    del values["ece"]
    if temperature is None:
        return values
    scaled = measured(jnp.asarray(logits) / temperature)
    values["temperature"] = temperature
    return values | {f"{name}_scaled": value for name, value in scaled.items()}


def measure_uncertainty(
    parallel: Parallel, state: TrainState, data: DataSource, split: str, passes: int
) -> dict[str, Any]:
    """The task's stochastic metrics over a whole split, such as PAvPU.

    Args:
        parallel: runs the step.
        state: placed on the devices; its step and key decide the random numbers.
        data: where the batches come from.
        split: its name.
        passes: how often each batch is evaluated, with dropout.
    """
    sums = [
        parallel.first(parallel.stochastic_step(state, parallel.shard(batch), number, passes))
        for number, batch in enumerate(data.eval_batches(split, hosts.share()))
    ]
    return metrics.compute(metrics.merge(sums))


def measure_mmd(
    state: TrainState, data: DataSource, split: str, examples: int, bandwidth: float
) -> dict[str, np.ndarray]:
    """Maximum mean discrepancy between keys and queries, the paper's yardstick.

    The same for every method, unlike the divergence a model is trained on.

    Args:
        state: whole, on one device.
        data: where the examples come from.
        split: which of them.
        examples: how many, from the split's start; a batch that cannot be cut counts whole.
        bandwidth: of the Gaussian kernel.

    Returns:
        Squared MMD per layer and head, {"layer_0/attention": [H]}, mean over the examples.
    """
    batches = []
    for batch, count in _first_examples(data, split, examples):
        heads = jax.device_get(_cloud_mmd(state, batch, bandwidth))
        batches.append({n: metrics.Mean(total=v * count, count=count) for n, v in heads.items()})
    return metrics.compute(metrics.merge(batches))


def collect_clouds(state: TrainState, batch: Batch) -> dict[str, Clouds]:
    """The keys and queries that a model makes of a batch.

    Args:
        state: whole, on one device.
        batch: arrays with a leading example axis.

    Returns:
        Per attention call, named as in `measure_mmd` and in the order of the layers: NumPy arrays.
    """
    return alignment_clouds(jax.device_get(_clouds(state, batch)))  # last: jax sorts by letters


@jax.jit
def _clouds(state: TrainState, batch: Batch) -> Any:
    _, collections = state.task.apply(
        state.model, {"params": state.params}, batch, train=False, mutable=["alignment_clouds"]
    )
    return collections


@functools.partial(jax.jit, static_argnames="bandwidth")
def _cloud_mmd(state: TrainState, batch: Batch, bandwidth: float) -> dict[str, jax.Array]:
    mask = state.task.sample_mask(batch)
    return cloud_mmd(_clouds(state, batch), bandwidth=bandwidth, sample_mask=mask)


def _pass(
    parallel: Parallel, state: TrainState, data: DataSource, split: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One pass over a split: the sums of its metrics, and the predictions of all its examples."""
    sums, predictions = [], []
    for batch in data.eval_batches(split, hosts.share()):
        shares = parallel.shard(batch)
        report, outputs = parallel.eval_step(state, shares)
        sums.append(parallel.first(report))
        predictions.append(_valid_rows(parallel.join(outputs), parallel.join(shares["mask"])))
    joined = {
        name: np.concatenate([batch[name] for batch in predictions]) for name in predictions[0]
    }
    return metrics.merge(sums), joined


def _first_examples(data: DataSource, split: str, examples: int) -> Any:
    """Batches until `examples` are reached, with the number of examples in each."""
    for whole in data.eval_batches(split):
        cut = data.metadata.splittable
        batch = {name: array[:examples] for name, array in whole.items()} if cut else whole
        count = int(batch["mask"].sum())
        yield batch, count
        examples -= count
        if examples <= 0:
            return


def _valid_rows(predictions: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[mask] for name, values in predictions.items()}
