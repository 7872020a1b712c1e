"""Evaluating a split, and measuring how far apart its keys and queries are."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from align_jax import Clouds, alignment_clouds, calibration, cloud_mmd, numerics, yardstick
from train.data.base import Batch, DataSource
from train.devices import hosts
from train.devices.parallel import Parallel
from train.registry import ConfigError
from train.step.state import TrainState
from train.tasks import metrics
from train.tasks.base import Task

# What `measure_clouds` has of all layers and heads together.
YARDSTICKS = ("mmd", "scale_free_mmd", "query_norm", "key_norm")
TOLD_APART = 1024  # queries, and keys, that the classifier sees: half to learn from
COMPARED = 512  # of these the MMD compares the first: its time grows with their square


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
    kind, passes = type(task), config.stochastic_passes
    if config.temperature_split and task.logit_bins is None:
        raise ConfigError(
            f"config.eval.temperature_split is {config.temperature_split!r}, but {kind.__name__} "
            f"is no classification, whose logits a temperature could scale. Set it to ''."
        )
    wrong = ""
    if passes < 0 or passes == 1:
        wrong = "expected 2 or more, or 0 for none"
    elif passes and kind.stochastic_metrics is Task.stochastic_metrics:
        wrong = f"{kind.__name__} has no metric of uncertainty. Set it to 0"
    if wrong:
        raise ConfigError(f"config.eval.stochastic_passes is {passes}; {wrong}.")


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
    """The temperature that calibrates a held-out split best, to be used on others.

    Arguments as of `evaluate`.
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

    Raises:
        ValueError: a label is no class.

    Example:
        >>> found = calibration_metrics(np.array([[0.0, 0.0]]), np.array([1]))
        >>> round(found["nll"], 4)
        0.6931
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    numerics.check_indices("labels", labels, logits.shape[-1], "classes")  # none can be seen inside
    values = _calibration(logits, labels, 1.0, bins)
    del values["ece"]
    if temperature is not None:
        scaled = _calibration(logits, labels, temperature, bins)
        values |= {f"{name}_scaled": x for name, x in scaled.items()}
    found = {name: float(x) for name, x in jax.device_get(values).items()}
    return found if temperature is None else found | {"temperature": temperature}


@functools.partial(jax.jit, static_argnames="bins")  # one program in place of some sixty
def _calibration(
    logits: jax.Array, labels: jax.Array, temperature: float, bins: int
) -> dict[str, jax.Array]:
    logits = logits / temperature
    shares = jax.nn.softmax(logits)
    return {
        "ece": calibration.expected_calibration_error(shares, labels, bins=bins),
        "adaptive_ece": calibration.adaptive_calibration_error(shares, labels, bins=bins),
        "nll": calibration.negative_log_likelihood(logits, labels),
        "brier": calibration.brier_score(shares, labels),
    }


def measure_uncertainty(
    parallel: Parallel, state: TrainState, data: DataSource, split: str, passes: int
) -> dict[str, Any]:
    """The task's stochastic metrics over a whole split, such as PAvPU.

    Arguments as of `evaluate`; each batch is evaluated `passes` times with dropout, whose random
    numbers the state's step and key decide.
    """
    sums = [
        parallel.first(parallel.stochastic_step(state, parallel.shard(batch), number, passes))
        for number, batch in enumerate(data.eval_batches(split, hosts.share()))
    ]
    return metrics.compute(metrics.merge(sums))


def measure_clouds(
    state: TrainState, data: DataSource, split: str, examples: int, bandwidth: float
) -> dict[str, Any]:
    """How far apart keys and queries lie: the same for every method, unlike what it minimises.

    Args:
        state: whole, on one device.
        data: where the examples come from.
        split: which of them.
        examples: how many, from the split's start; a batch that cannot be cut counts whole.
        bandwidth: of the Gaussian kernel of the paper's yardstick.

    Returns:
        Per layer and head, {"layer_0/attention": [H]}: "mmd_per_head", the squared MMD of the
        paper, mean over the examples; and over the tokens of all examples
        "scale_free_mmd_per_head" (see `align_jax.yardstick`), "query_norm_per_head" and
        "key_norm_per_head". Also the sum of the first over layers and heads, "mmd", and the means
        of the others, "scale_free_mmd", "query_norm" and "key_norm".
    """
    mmd, samples = _measure(state, data, split, examples, bandwidth)
    found: dict[str, Any] = {"mmd": float(sum(x.sum() for x in mmd.values())), "mmd_per_head": mmd}
    distances = {
        name: jax.device_get(_distance(yardstick.TokenSample(*(x[:COMPARED] for x in sample))))
        for name, sample in samples.items()
    }
    columns = {"scale_free_mmd": "mmd", "query_norm": "query_norm", "key_norm": "key_norm"}
    for column, field in columns.items():
        heads = {name: getattr(distance, field) for name, distance in distances.items()}
        found[column] = float(np.mean(np.concatenate(list(heads.values()))))
        found[f"{column}_per_head"] = heads
    return found


def measure_attention(
    state: TrainState, data: DataSource, split: str, examples: int
) -> dict[str, float]:
    """What the attention looks like: means over layers and heads.

    Arguments as of `measure_clouds`.

    Returns:
        "attention_entropy", "attention_logit_deviation" and "attention_rank", as of
        `align_jax.yardstick.attention_statistics`.
    """
    batches = [
        {name: metrics.Mean(total=value * count, count=count) for name, value in found.items()}
        for batch, count in _first_examples(data, split, examples)
        for found in [jax.device_get(_attention(state, batch))]
    ]
    return {name: float(value) for name, value in metrics.compute(metrics.merge(batches)).items()}


def classifier_accuracy(
    state: TrainState, data: DataSource, split: str, examples: int, bandwidth: float
) -> dict[str, np.ndarray]:
    """How often a fresh classifier tells a query from a key (Lopez-Paz & Oquab 2017).

    A small perceptron per head learns from half of the tokens and is asked about the others, as
    many queries as keys: 0.5 says that it cannot tell them apart.

    Arguments as of `measure_clouds`, whose compiled program serves again.

    Returns:
        Per layer the accuracy for each head, {"layer_0/attention": [H]}.
    """
    _, samples = _measure(state, data, split, examples, bandwidth)
    return {name: told_apart(sample) for name, sample in samples.items()}


def told_apart(sample: yardstick.TokenSample) -> np.ndarray:
    """Of one attention: the accuracy for each head [H]; nan with less than four tokens."""
    import sklearn.neural_network

    query, key = sample.query[sample.query_mask], sample.key[sample.key_mask]
    count = min(len(query), len(key)) // 2 * 2
    if count < 4:
        return np.full(query.shape[1], np.nan)
    learnt = np.tile(np.arange(count) < count // 2, 2)
    labels = np.repeat([0, 1], count)
    accuracies = []
    with warnings.catch_warnings():
        # Where the clouds agree there is nothing to converge to.
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        for head in range(query.shape[1]):
            both = np.concatenate([query[:count, head], key[:count, head]])
            both = (both - both.mean(axis=0)) / (both.std(axis=0) + 1e-12)
            classifier = sklearn.neural_network.MLPClassifier(32, max_iter=100, random_state=0)
            classifier.fit(both[learnt], labels[learnt])
            accuracies.append(classifier.score(both[~learnt], labels[~learnt]))
    return np.array(accuracies)


def collect_clouds(state: TrainState, batch: Batch) -> dict[str, Clouds]:
    """The keys and queries that a model makes of a batch.

    Args:
        state: whole, on one device.
        batch: arrays with a leading example axis.

    Returns:
        Per attention call, named as in `measure_clouds`, in the order of the layers: NumPy arrays.
    """
    return alignment_clouds(jax.device_get(_clouds(state, batch)))  # last: jax sorts by letters


@jax.jit
def _clouds(state: TrainState, batch: Batch) -> Any:
    _, collections = state.task.apply(
        state.model, state.variables, batch, train=False, mutable=["alignment_clouds"]
    )
    return collections


@functools.partial(jax.jit, static_argnames="bandwidth")
def _measured(
    state: TrainState, batch: Batch, number: int, bandwidth: float
) -> tuple[dict[str, jax.Array], dict[str, yardstick.TokenSample]]:
    mask, clouds = state.task.sample_mask(batch), _clouds(state, batch)
    mmd = cloud_mmd(clouds, bandwidth=bandwidth, sample_mask=mask)
    rng = jax.random.key(number)
    return mmd, yardstick.sample_tokens(clouds, rng, tokens=TOLD_APART, sample_mask=mask)


@jax.jit
def _attention(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    found = yardstick.attention_statistics(
        _clouds(state, batch), sample_mask=state.task.sample_mask(batch)
    )
    heads = jax.tree.map(lambda *x: jnp.concatenate(x).mean(), *found.values())
    return {f"attention_{name}": value for name, value in heads._asdict().items()}


def _measure(
    state: TrainState, data: DataSource, split: str, examples: int, bandwidth: float
) -> tuple[dict[str, np.ndarray], dict[str, yardstick.TokenSample]]:
    """Per attention the paper's MMD, mean over the examples, and tokens of them all."""
    batches: list[dict[str, metrics.Mean]] = []
    samples: list[dict[str, yardstick.TokenSample]] = []
    for batch, count in _first_examples(data, split, examples):
        mmd, sample = jax.device_get(_measured(state, batch, len(samples), bandwidth))
        batches.append({n: metrics.Mean(total=v * count, count=count) for n, v in mmd.items()})
        samples.append(sample)
    means = metrics.compute(metrics.merge(batches))
    return means, {name: _sample_of_samples([x[name] for x in samples]) for name in means}


def _sample_of_samples(samples: list[yardstick.TokenSample]) -> yardstick.TokenSample:
    """As many tokens of several batches as of one, those of each batch with its share."""
    query, key, query_mask, key_mask = (np.concatenate(x) for x in zip(*samples, strict=True))
    rng = np.random.default_rng(0)

    def chosen(x: np.ndarray, mask: np.ndarray, count: int) -> tuple[Any, Any]:
        order = np.argsort(rng.random(len(mask)) + ~mask)[:count]  # padding comes last
        return x[order], mask[order]

    query, query_mask = chosen(query, query_mask, max(len(x.query) for x in samples))
    key, key_mask = chosen(key, key_mask, max(len(x.key) for x in samples))
    return yardstick.TokenSample(query, key, query_mask, key_mask)


_distance = jax.jit(yardstick.TokenSample.distance)


def _pass(
    parallel: Parallel, state: TrainState, data: DataSource, split: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One pass over a split: the sums of its metrics, and the predictions of all its examples."""
    sums, predictions = [], []
    for batch in data.eval_batches(split, hosts.share()):
        shares = parallel.shard(batch)
        report, outputs = parallel.eval_step(state, shares)
        sums.append(parallel.first(report))
        mask = parallel.join(shares["mask"])
        predictions.append({name: values[mask] for name, values in parallel.join(outputs).items()})
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
