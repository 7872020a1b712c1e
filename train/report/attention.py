"""Attention maps of one example: which tokens attend to which, a column per method."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.special
from ml_collections import ConfigDict

from train.data import DATA
from train.data.base import DataSource, Illustration
from train.evaluation import Clouds, collect_clouds
from train.loop import restore_run
from train.registry import look_up
from train.report.picture import NAMES
from train.step import eval_step

COLORS = "cividis"  # even steps of lightness: legible in black and white and by the colour-blind


class Maps(NamedTuple):
    """Mean attention over the heads of a model's last layers, for one example.

    Attributes:
        words: [N, N], rows are queries; None if no attention is between words.
        patches: what each patch of the image receives, [rows, columns], from all patches together
            and as a multiple of an even share; None without an image.
        prediction: the model's answer.
    """

    words: np.ndarray | None
    patches: np.ndarray | None
    prediction: str


def attention_weights(clouds: Clouds) -> np.ndarray:
    """The weights that an attention gives its keys, softmax(QK' / sqrt(D)).

    Args:
        clouds: of one call, from `collect_clouds`.

    Returns:
        [B, H, N, M]; each row of a valid query adds up to 1, padded keys have 0.

    Example:
        >>> one = np.ones((1, 3, 2, 4)), np.ones((1, 3), bool)
        >>> attention_weights(Clouds(one[0], one[0], one[1], one[1]))[0, 0, 0].round(2).tolist()
        [0.33, 0.33, 0.33]
    """
    scores = np.einsum("bnhd,bmhd->bhnm", clouds.query, clouds.key)
    scores = scores / np.sqrt(clouds.query.shape[-1])
    scores = np.where(clouds.key_mask[:, None, None, :], scores, np.finfo(scores.dtype).min)
    return scipy.special.softmax(scores, axis=-1)


def example_maps(
    config: ConfigDict, folder: pathlib.Path, row: int = 0
) -> tuple[Illustration, Maps] | None:
    """The attention maps of a finished run on one example of the split that the MMD is measured on.

    Args:
        config: the run's.
        folder: the run's.
        row: which example of the split's first batch.

    Returns:
        What the data say about the example and what the model makes of it; None if the data source
        has no illustrations.
    """
    source = look_up("data", config.data.name, DATA)
    if source.illustration is DataSource.illustration:  # nothing to restore a model for
        return None
    experiment, state = restore_run(folder, config)
    batch = next(iter(experiment.data.eval_batches(config.eval.mmd_split)))
    batch = {name: array[row : row + 1] for name, array in batch.items()}
    shown = experiment.data.illustration(batch)
    if shown is None:
        return None
    maps: dict[str, np.ndarray | None] = {"words": None, "patches": None}
    for clouds in collect_clouds(state, batch).values():  # in the order of the layers
        queries, keys = clouds.query.shape[1], clouds.key.shape[1]
        weights = attention_weights(clouds)[0].mean(axis=0)
        weights = weights[clouds.query_mask[0]][:, clouds.key_mask[0]]
        if weights.shape == (len(shown.words), len(shown.words)):
            maps["words"] = weights
        elif shown.grid is not None and queries == keys == np.prod(shown.grid):
            maps["patches"] = (weights.mean(axis=0) * keys).reshape(shown.grid)
    _, predictions = jax.jit(eval_step)(state, batch)
    answer = int(predictions["prediction"][0])
    return shown, Maps(**maps, prediction=shown.answers[answer])


def draw_attention(runs: Mapping[str, tuple[ConfigDict, pathlib.Path]], path: pathlib.Path) -> bool:
    """Draws the maps of finished runs side by side, for the same example.

    Args:
        runs: per method, the config and the folder of a finished run.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    found = {method: example_maps(config, folder) for method, (config, folder) in runs.items()}
    first = next(iter(found.values()))
    if first is None:
        return False
    shown, maps = first
    rows = [name for name in ("words", "patches") if getattr(maps, name) is not None]
    figure, axes = plt.subplots(
        len(rows), len(runs), figsize=(3.8 * len(runs), 3.6 * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for name, line in zip(rows, axes, strict=True):
        drawn = {method: getattr(pair[1], name) for method, pair in found.items() if pair}
        low, high = min(x.min() for x in drawn.values()), max(x.max() for x in drawn.values())
        for (method, values), ax in zip(drawn.items(), line, strict=True):
            if name == "words":
                mappable = _draw_words(ax, values, shown)
            else:
                mappable = _draw_patches(ax, values, shown)
            mappable.set_clim(low, high)
            pair = found[method]
            if name == rows[0] and pair:
                ax.set_title(f"{NAMES.get(method, method)}: {pair[1].prediction}")
        labels = {"words": "attention weight", "patches": "attention received, 1 = an even share"}
        figure.colorbar(mappable, ax=line, label=labels[name], shrink=0.8)
    config = next(iter(runs.values()))[0]
    title = f"{config.name}, seed {config.seed}: {shown.title}. Last layers, mean of the heads."
    figure.suptitle(textwrap.fill(title, width=42 * len(runs)))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _draw_words(axes: plt.Axes, weights: np.ndarray, shown: Illustration) -> plt.cm.ScalarMappable:
    mappable = axes.imshow(weights, cmap=COLORS)
    places = range(len(shown.words))
    axes.set_xticks(places, shown.words, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, shown.words)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    return mappable


def _draw_patches(
    axes: plt.Axes, weights: np.ndarray, shown: Illustration
) -> plt.cm.ScalarMappable:
    height, width = (1, 1) if shown.image is None else shown.image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if shown.image is not None:
        axes.imshow(shown.image, extent=extent)
    mappable = axes.imshow(weights, cmap=COLORS, extent=extent, alpha=0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    return mappable
