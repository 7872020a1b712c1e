"""The picture that compares methods: clouds of keys and queries, and their distance over time."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from train.experiment.experiment import Experiment
from train.report.style import (
    COLORS,
    KEY_STYLE,
    MARKERS,
    QUERY_STYLE,
    UNITS,
    line_style,
    method_name,
)
from train.run.evaluation import collect_clouds
from train.run.log import read_records
from train.run.loop import restore_run
from train.step.state import TrainState

EXAMPLES = 20  # whose tokens are drawn
POINTS = 400  # of each cloud at most: t-SNE of 2 x 400 points takes about two seconds
EMBEDDINGS = 1000

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # layer -> steps [T], values [T, H]

# The estimate of the distance has no bias, so that it may fall below 0: nothing is left there.
LEAST_SHOWN = 1e-4


def draw_comparison(
    runs: Mapping[str, tuple[ConfigDict, pathlib.Path]], path: pathlib.Path
) -> None:
    """Draws a column per method: its clouds, their distance and its divergence over training.

    The distance is the scale-free MMD of `align_jax.yardstick`, which no method minimises.

    Where the task has embeddings of its examples (see `Task.embeddings`), a row on top shows them
    by class. The clouds are those of one head, the same for every method: the one whose keys and
    queries lie farthest apart at the end of the first run, the plain model's unless the user says
    otherwise.

    Args:
        runs: per method, the config and the folder of a finished run.
        path: of the PNG.
    """
    records = {method: read_records(folder) for method, (_, folder) in runs.items()}
    distance = {
        method: head_series(found, "scale_free_mmd_per_head") for method, found in records.items()
    }
    layer, head = farthest_head(next(iter(distance.values())))

    drawn = {
        method: run_points(*restore_run(folder, config), layer, head)
        for method, (config, folder) in runs.items()
    }
    rows = 3 + any(points.embeddings is not None for points in drawn.values())
    figure, axes = plt.subplots(
        rows, len(runs), figsize=(3.6 * len(runs), 3.3 * rows), squeeze=False,
        layout="constrained", height_ratios=[1.25] * (rows - 2) + [1.0, 1.0],
    )  # fmt: skip
    for column, (method, (config, _)) in enumerate(runs.items()):
        *first, top, middle, bottom = axes[:, column]
        points = drawn[method]
        if first and points.embeddings is not None and points.labels is not None:
            draw_classes(first[0], points.embeddings, points.labels)
            first[0].set_title(f"{method_name(method)}: nodes by class")
        draw_clouds(top, points.queries, points.keys)
        last = distance[method][layer][1][-1, head]
        top.set_title(f"{method_name(method)}: scale-free MMD {last:.2g}")
        shown = {
            name: (steps, np.maximum(values, LEAST_SHOWN))
            for name, (steps, values) in distance[method].items()
        }
        draw_heads(middle, shown, "scale-free MMD per head")
        draw_heads(bottom, head_series(records[method], "divergence"), "divergence per head")
        unit = UNITS.get(config.alignment.method)
        bottom.set_title(f"its own divergence ({unit})" if unit else "", fontsize="medium")
    _share_log_axis(axes[-2])
    for row in axes[:-1]:
        row[0].legend(loc="best", fontsize=8)
    config = next(iter(runs.values()))[0]
    title = (
        f"{config.name}, seed {config.seed}. t-SNE of the queries and keys of {layer}, head "
        f"{head}, on examples of {config.eval.mmd_split}. Below: distance of keys and queries over "
        f"training, a line per head."
    )
    figure.suptitle(textwrap.fill(title, width=40 * len(runs)))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_clouds(axes: plt.Axes, queries: np.ndarray, keys: np.ndarray) -> None:
    """Draws two clouds [P, D] in the plane of a common t-SNE."""
    both = np.concatenate([queries, keys])
    plane = _plane(both)
    first, second = np.split(plane, [len(queries)])
    axes.scatter(*first.T, s=14, linewidths=0.7, label="queries", **QUERY_STYLE)
    axes.scatter(*second.T, s=14, linewidths=0.7, label="keys", **KEY_STYLE)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_classes(axes: plt.Axes, points: np.ndarray, labels: np.ndarray) -> None:
    """Draws points [P, E] in the plane of a t-SNE, a colour and a marker per class."""
    plane = _plane(points)
    for index, label in enumerate(np.unique(labels)):
        axes.scatter(
            *plane[labels == label].T, s=8, linewidths=0.4, edgecolors="white",
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)], label=str(label),
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])


def _plane(points: np.ndarray) -> np.ndarray:
    """t-SNE of points [P, E] in two dimensions."""
    perplexity = min(30, len(points) // 4)
    # Its threads wait for each other by spinning: where the cores are busy, two take twice the time
    # of one, and many times the work.
    with threadpool_limits(1):
        # Of less than two features or points there are no two principal components.
        init = "pca" if min(points.shape) >= 2 else "random"
        from sklearn.manifold import TSNE

        return TSNE(init=init, perplexity=perplexity, random_state=0).fit_transform(points)


def draw_heads(axes: plt.Axes, series: Series, label: str) -> None:
    """Draws a line per head over the steps, a colour and a dash per layer."""
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    if not series:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
    for index, (layer, (steps, values)) in enumerate(series.items()):
        style = line_style(index)
        for head in range(values.shape[1]):
            axes.plot(steps, values[:, head], lw=1, label=layer if head == 0 else None, **style)


class Points(NamedTuple):
    """What a finished run makes of some examples.

    Attributes:
        queries: of one head, [P, D], the tokens of all examples together.
        keys: likewise.
        embeddings: of examples, [P, E], if the task has any.
        labels: their classes, [P].
    """

    queries: np.ndarray
    keys: np.ndarray
    embeddings: np.ndarray | None
    labels: np.ndarray | None


def run_points(experiment: Experiment, state: TrainState, layer: str, head: int) -> Points:
    """The points of a finished run (see `restore_run`), a sample of those that are many."""
    batch = next(iter(experiment.data.eval_batches(experiment.config.eval.mmd_split)))
    if experiment.data.metadata.splittable:
        batch = {name: array[:EXAMPLES] for name, array in batch.items()}
    query, key, query_mask, key_mask = map(np.asarray, collect_clouds(state, batch)[layer])
    clouds = (query[:, :, head][query_mask], key[:, :, head][key_mask])

    embeddings = state.task.embeddings(state.model, state.variables, batch)
    labels = None
    if embeddings is not None:
        known = np.flatnonzero(np.asarray(batch["label"]) >= 0)
        chosen = known[_sample(len(known), EMBEDDINGS)]
        embeddings, labels = np.asarray(embeddings)[chosen], np.asarray(batch["label"])[chosen]
    queries, keys = (cloud[_sample(len(cloud), POINTS)] for cloud in clouds)
    return Points(queries, keys, embeddings, labels)


def _sample(rows: int, count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(rows)[:count])


def head_series(records: Sequence[Mapping[str, Any]], name: str) -> Series:
    """Per layer, the steps [T] and the heads' values [T, H] that a run recorded under `name`."""
    found = [record for record in records if name in record]
    if not found:
        return {}
    steps = np.asarray([record["step"] for record in found])
    return {
        layer: (steps, np.asarray([record[name][layer] for record in found]))
        for layer in found[0][name]
    }


def farthest_head(series: Series) -> tuple[str, int]:
    """The layer and head whose last recorded value is the highest."""
    last = {layer: values[-1] for layer, (_, values) in series.items()}
    layer = max(last, key=lambda name: last[name].max())
    return layer, int(last[layer].argmax())


def _share_log_axis(row: Sequence[plt.Axes]) -> None:
    """One logarithmic scale for all methods, so that heights compare across the row."""
    values = np.concatenate([line.get_ydata() for axes in row for line in axes.get_lines()])
    low, high = values[values > 0].min(), values.max()
    for axes in row:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        axes.yaxis.set_major_formatter("{x:.2g}")
        # Within a decade the ticks between powers of ten are all there is; beyond, they crowd.
        axes.yaxis.set_minor_formatter("{x:.2g}" if high < 10 * low else "")
