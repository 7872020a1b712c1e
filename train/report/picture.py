"""A method's picture: keys and queries of one head, and how far apart those of every head lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from train.comparison.table import method_name
from train.experiment.experiment import Experiment
from train.report.style import COLORS, KEY_STYLE, MARKERS, QUERY_STYLE, UNITS, line_style
from train.run.evaluation import collect_clouds
from train.step.state import TrainState

EXAMPLES = 20  # whose tokens are drawn
POINTS = 400  # of each cloud at most: t-SNE of 2 x 400 points takes about two seconds
EMBEDDINGS = 1000
DISTANCE = "scale_free_mmd_per_head"  # in a run's records: the yardstick, which no method minimises
# The estimate of the distance has no bias, so that it may fall below 0: nothing is left there.
LEAST_SHOWN = 1e-4
OWN_DIVERGENCE = (
    "A method's own divergence is no yardstick: that of GAN and CT comes from a critic, which is "
    "trained to raise it while the model lowers it, so that a rise need not be bad."
)
YARDSTICK = (
    "The scale-free MMD is the yardstick: 0 says that keys and queries have one distribution, and "
    f"no method minimises it. What is below 0.0001 is drawn there. {OWN_DIVERGENCE}"
)

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # layer -> steps [T], values [T, H]


class Points(NamedTuple):
    """What a finished run makes of some examples."""

    queries: np.ndarray  # of one head, [P, D], the tokens of all examples together
    keys: np.ndarray
    embeddings: np.ndarray | None  # of examples, [P, E], if the task has any
    labels: np.ndarray | None  # their classes, [P]


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


def distance_limits(runs: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[float, float]:
    """Of one scale for all methods, so that heights compare across their pictures."""
    series = [head_series(records, DISTANCE) for records in runs]
    values = np.concatenate([x.ravel() for of in series for _, x in of.values()])
    return max(values.min(), LEAST_SHOWN) / 1.3, max(values.max(), LEAST_SHOWN) * 1.3


def draw_method(
    figure: Any, method: str, points: Points, records: Sequence[Mapping[str, Any]],
    place: tuple[str, int], limits: tuple[float, float],
) -> str:  # fmt: skip
    """Draws a method's column into a figure or a part of one; returns it in a sentence.

    That is clouds of the head at `place`, their distance, and its own divergence over training.
    Where the task has embeddings of its examples, a row on top shows them by class.
    """
    layer, head = place
    ratios = [1.3, 1.0, 1.0] if points.embeddings is None else [1.3, 1.3, 1.0, 1.0]
    *tops, middle, bottom = figure.subplots(len(ratios), height_ratios=ratios)
    if points.embeddings is not None and points.labels is not None:
        draw_classes(tops[0], points.embeddings, points.labels)
        tops[0].set_title(f"{method_name(method)}: nodes by class")
    draw_clouds(tops[-1], points.queries, points.keys)
    distance = head_series(records, DISTANCE)
    measured = f", scale-free MMD {distance[layer][1][-1, head]:.2g}" if layer in distance else ""
    tops[-1].set_title(f"{method_name(method)}{measured}")
    shown = {name: (steps, np.maximum(x, LEAST_SHOWN)) for name, (steps, x) in distance.items()}
    draw_heads(middle, shown, "scale-free MMD", place)
    middle.set_yscale("log")
    middle.set_ylim(limits)
    middle.yaxis.set_major_formatter("{x:.2g}")
    # Within a decade the ticks between powers of ten are all there is; beyond, they crowd.
    middle.yaxis.set_minor_formatter("{x:.2g}" if limits[1] < 10 * limits[0] else "")
    own = head_series(records, "divergence")
    draw_heads(bottom, own, "own divergence", place)
    bottom.axis("on" if own else "off")
    unit = f" ({UNITS.get(method.partition(':')[0], 'none')})" if own else ": none"
    bottom.set_title(f"its own divergence{unit}")
    names, columns = legend_of(list(distance))
    bottom.legend(
        middle.get_legend_handles_labels()[0], names, loc="upper center",
        bbox_to_anchor=(0.5, -0.3), ncols=columns, frameon=False, handlelength=1.5,
        columnspacing=1.0,
    )  # fmt: skip
    return (
        f"t-SNE of {len(points.queries)} queries, circles, and {len(points.keys)} keys, crosses, "
        f"of {method_name(method)}{measured}; below, lines of that distance and of the method's "
        f"own divergence over the steps."
    )


def legend_of(layers: Sequence[str]) -> tuple[list[str], int]:
    """The layers' names in a legend, and in how many columns they fit below a picture."""
    names = short_names(layers)
    return names, max(1, min(3, 40 // (5 + max(map(len, names), default=0))))


def short_names(layers: Sequence[str]) -> list[str]:
    """The names without the parts that all of them share."""
    parts = [layer.split("/") for layer in layers]
    if len(parts) < 2 or len({len(x) for x in parts}) > 1:
        return list(layers)
    kept = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    return ["/".join(x[i] for i in kept) for x in parts]


def draw_clouds(axes: plt.Axes, queries: np.ndarray, keys: np.ndarray) -> None:
    """Draws two clouds [P, D] in the plane of a common t-SNE."""
    first, second = np.split(_plane(np.concatenate([queries, keys])), [len(queries)])
    axes.scatter(*first.T, s=14, linewidths=0.7, label="queries", **QUERY_STYLE)
    axes.scatter(*second.T, s=14, linewidths=0.7, label="keys", **KEY_STYLE)
    _finish_plane(axes, 2)


def draw_classes(axes: plt.Axes, points: np.ndarray, labels: np.ndarray) -> None:
    """Draws points [P, E] in the plane of a t-SNE, a colour and a marker per class."""
    plane = _plane(points)
    for index, label in enumerate(np.unique(labels)):
        axes.scatter(
            *plane[labels == label].T, s=8, linewidths=0.4, edgecolors="white",
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)], label=str(label),
        )  # fmt: skip
    _finish_plane(axes, 4)


def _finish_plane(axes: plt.Axes, columns: int) -> None:
    """Without ticks, for its numbers mean nothing, and with the legend below the points."""
    axes.set(xticks=[], yticks=[])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns, frameon=False)


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


def draw_heads(axes: plt.Axes, series: Series, label: str, place: tuple[str, int]) -> None:
    """Draws a line per head over the steps, a colour and a dash per layer, one head's thick."""
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    for index, (layer, (steps, values)) in enumerate(series.items()):
        # The first two colours are queries and keys.
        style = line_style(index) | {"color": COLORS[(index + 2) % len(COLORS)]}
        for head in range(values.shape[1]):
            axes.plot(
                steps, values[:, head], lw=2.5 if (layer, head) == place else 0.8,
                label=layer if head == 0 else None, **style,
            )  # fmt: skip
