"""Attention maps of one example: which tokens attend to which, a picture per method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.special
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.ticker import MaxNLocator

from align_jax import Clouds
from train.comparison.table import method_name
from train.data.base import Batch, DataSource, Illustration
from train.experiment.experiment import Experiment
from train.registry import ConfigError
from train.report.pictures import COLUMN
from train.report.style import MAP
from train.run.evaluation import collect_clouds
from train.step.state import TrainState
from train.step.step import eval_step

LABELS = {
    "words": "attention weight (root scale)",
    "patches": "attention (1: an even share)",
}

_eval_step = jax.jit(eval_step)


class Maps(NamedTuple):
    """What a model makes of one example: mean attention over the heads of its last layers."""

    shown: Illustration  # what the data say about it
    words: np.ndarray | None  # [N, N], rows are queries; None if no attention is between words
    # What each patch of the image receives, [rows, columns], from all patches together and as a
    # multiple of an even share; None without an image.
    patches: np.ndarray | None
    prediction: str
    right: bool | None  # whether the prediction is; None where answers are no classes


def attention_weights(clouds: Clouds) -> np.ndarray:
    """The weights that an attention gives its keys, softmax(QK' / sqrt(D)), [B, H, N, M].

    Each row of a valid query adds up to 1, padded keys have 0.

    Example:
        >>> one = np.ones((1, 3, 2, 4)), np.ones((1, 3), bool)
        >>> attention_weights(Clouds(one[0], one[0], one[1], one[1]))[0, 0, 0].round(2).tolist()
        [0.33, 0.33, 0.33]
    """
    scores = np.einsum("bnhd,bmhd->bhnm", clouds.query, clouds.key)
    scores = scores / np.sqrt(clouds.query.shape[-1])
    scores = np.where(clouds.key_mask[:, None, None, :], scores, np.finfo(scores.dtype).min)
    return scipy.special.softmax(scores, axis=-1)


def example_maps(experiment: Experiment, state: TrainState, number: int = 0) -> Maps | None:
    """The attention maps of a finished run on one example of the split that the MMD is measured on.

    Args:
        experiment: the run's, from `restore_run`.
        state: likewise.
        number: which example of the split, from 0.

    Returns:
        None if the data source has no illustrations.

    Raises:
        ConfigError: the split has fewer examples.
    """
    if type(experiment.data).illustration is DataSource.illustration:
        return None  # such as a graph, of which no example can be cut out
    batch = _example(experiment, number)
    shown = experiment.data.illustration(batch)
    if shown is None:
        return None
    # The patches that the data are cut into, or else those that the model cuts an image into.
    grid = shown.grid or getattr(getattr(state.model, "config", None), "grid", None)
    words = patches = None
    for clouds in collect_clouds(state, batch).values():  # in the order of the layers
        queries, keys = clouds.query.shape[1], clouds.key.shape[1]
        weights = attention_weights(clouds)[0].mean(axis=0)
        weights = weights[clouds.query_mask[0]][:, clouds.key_mask[0]]
        if weights.shape == (len(shown.words), len(shown.words)):
            words = weights
        elif grid is not None and queries == keys == np.prod(grid):
            patches = (weights.mean(axis=0) * keys).reshape(grid)
    _, predictions = _eval_step(state, batch)
    answer = predictions["prediction"][0]
    if not shown.answers:
        return Maps(shown, words, patches, f"{float(answer):.2f}", None)
    right = bool(answer == predictions["label"][0])
    return Maps(shown, words, patches, shown.answers[int(answer)], right)


def _example(experiment: Experiment, number: int) -> Batch:
    """A batch of one example alone."""
    split, row = experiment.config.eval.mmd_split, number
    for batch in experiment.data.eval_batches(split):
        examples = int(batch["mask"].sum())
        if row < examples:
            return {name: array[row : row + 1] for name, array in batch.items()}
        row -= examples
    raise ConfigError(
        f"There is no example {number} to draw: {split} has {number - row}, counted from 0."
    )


def kinds_of(found: Iterable[Maps]) -> dict[str, tuple[float, float]]:
    """The kinds of maps that there are, each with the scale that all methods share."""
    every, kinds = list(found), {}
    for kind in LABELS:
        values = [x for maps in every if (x := getattr(maps, kind)) is not None]
        if values:
            kinds[kind] = min(map(np.min, values)), max(map(np.max, values))
    return kinds


def map_height(kinds: Mapping[str, Any], maps: Maps, width: float) -> tuple[float, float]:
    """Height and width of a picture that has room for all kinds of maps, in inches."""
    side = max(width, 1.5 + 0.14 * len(maps.shown.words)) if "words" in kinds else width
    return 1.15 * side + 1.15 * width * (len(kinds) - 1), side


def draw_maps(
    figure: Any, method: str, maps: Maps, kinds: Mapping[str, tuple[float, float]]
) -> str:
    """Draws one model's maps into a figure or a part of one; returns where most attention goes."""
    said = [f"{method_name(method)} answers {maps.prediction}."]
    rows = figure.subplots(len(kinds), squeeze=False)[:, 0]
    rows[0].set_title(f"{method_name(method)} answers {maps.prediction}")
    for axes, (kind, limits) in zip(rows, kinds.items(), strict=True):
        values = getattr(maps, kind)
        place = np.unravel_index(values.argmax(), values.shape)
        if kind == "words":
            mappable = draw_words(axes, values, maps.shown.words)
            # A few words get most of the attention: a root keeps the rest apart.
            mappable.set_norm(PowerNorm(0.5, *limits))
            query, key = (maps.shown.words[index] for index in place)
            said.append(f"The largest weight, {values.max():.2f}, is that of {key} for {query}.")
        else:
            mappable = draw_patches(axes, values, maps.shown.image, limits)
            row, column = (index + 1 for index in place)
            most = f"{values.max():.1f} shares"
            said.append(f"The patch in row {row}, column {column} gets most: {most}.")
        ticks = MaxNLocator(3)  # of a few narrow numbers as well
        figure.colorbar(
            mappable, ax=axes, label=LABELS[kind], location="bottom", shrink=0.9, ticks=ticks
        )
    return " ".join(said)


def draw_words(axes: plt.Axes, weights: np.ndarray, words: Sequence[str]) -> plt.cm.ScalarMappable:
    """Draws weights between words [N, N]; returns what a colour bar belongs to."""
    mappable = axes.imshow(weights, cmap=MAP)
    places = range(len(words))
    axes.set_xticks(places, words, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, words)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    return mappable


def draw_patches(
    axes: plt.Axes, values: np.ndarray, image: np.ndarray | None, limits: tuple[float, float]
) -> plt.cm.ScalarMappable:
    """Draws what patches receive [rows, columns] as discs over their image.

    The area says how much; the upper limit fills a patch. Returns what a colour bar belongs to.
    """
    rows, columns = values.shape
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    behind = np.full((1, 1), 0.5) if image is None else image
    axes.imshow(behind, "gray", vmin=0, vmax=1, extent=extent)
    axes.set_axis_off()
    y, x = np.indices(values.shape)
    widest = 0.75 * 72 * COLUMN / max(rows, columns)  # points
    return axes.scatter(
        x, y, s=widest**2 * values / limits[1], c=values, cmap=MAP, norm=Normalize(*limits),
        edgecolors="white", linewidths=0.8, clip_on=False,
    )  # fmt: skip
