"""Attention maps of one example: which tokens attend to which, a column per method."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.special
from ml_collections import ConfigDict

from align_jax import Clouds
from train.data import DATA
from train.data.base import Batch, DataSource, Illustration
from train.experiment.experiment import Experiment
from train.registry import ConfigError, look_up
from train.report.style import MAP, method_name
from train.run.evaluation import collect_clouds
from train.run.loop import restore_run
from train.step.state import TrainState
from train.step.step import eval_step

LABELS = {"words": "attention weight", "patches": "attention received, 1 = an even share"}


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


def illustrated(config: ConfigDict) -> bool:
    """Whether a config's data source has anything to show of an example."""
    source = look_up("data", config.data.name, DATA)
    return source.illustration is not DataSource.illustration


def example_maps(
    experiment: Experiment, state: TrainState, number: int = 0
) -> tuple[Illustration, Maps] | None:
    """The attention maps of a finished run on one example of the split that the MMD is measured on.

    Args:
        experiment: the run's, from `restore_run`.
        state: likewise.
        number: which example of the split, from 0.

    Returns:
        What the data say about the example and what the model makes of it; None if the data source
        has no illustrations.

    Raises:
        ConfigError: the split has fewer examples.
    """
    batch = _example(experiment, number)
    shown = experiment.data.illustration(batch)
    if shown is None:
        return None
    # The patches that the data are cut into, or else those that the model cuts an image into.
    grid = shown.grid or getattr(getattr(state.model, "config", None), "grid", None)
    maps: dict[str, np.ndarray | None] = {"words": None, "patches": None}
    for clouds in collect_clouds(state, batch).values():  # in the order of the layers
        queries, keys = clouds.query.shape[1], clouds.key.shape[1]
        weights = attention_weights(clouds)[0].mean(axis=0)
        weights = weights[clouds.query_mask[0]][:, clouds.key_mask[0]]
        if weights.shape == (len(shown.words), len(shown.words)):
            maps["words"] = weights
        elif grid is not None and queries == keys == np.prod(grid):
            maps["patches"] = (weights.mean(axis=0) * keys).reshape(grid)
    _, predictions = jax.jit(eval_step)(state, batch)
    answer = predictions["prediction"][0]
    text = shown.answers[int(answer)] if shown.answers else f"{float(answer):.2f}"
    return shown, Maps(**maps, prediction=text)


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


def draw_attention(runs: Mapping[str, tuple[ConfigDict, pathlib.Path]], path: pathlib.Path) -> bool:
    """Draws the maps of finished runs side by side, for the same example.

    Args:
        runs: per method, the config and the folder of a finished run.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    if not all(illustrated(config) for config, _ in runs.values()):
        return False  # before a model is restored
    found = {
        method: example_maps(*restore_run(folder, config))
        for method, (config, folder) in runs.items()
    }
    first = next(iter(found.values()))
    if first is None:
        return False
    shown, maps = first
    rows = [name for name in LABELS if getattr(maps, name) is not None]
    if not rows:
        return False
    figure, axes = plt.subplots(
        len(rows), len(runs), figsize=(3.8 * len(runs), 3.6 * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for name, line in zip(rows, axes, strict=True):
        drawn = {method: getattr(pair[1], name) for method, pair in found.items() if pair}
        low, high = min(x.min() for x in drawn.values()), max(x.max() for x in drawn.values())
        for (method, values), ax in zip(drawn.items(), line, strict=True):
            if name == "words":
                mappable = draw_words(ax, values, shown.words)
            else:
                mappable = draw_patches(ax, values, shown.image)
            mappable.set_clim(low, high)
            pair = found[method]
            if name == rows[0] and pair:
                ax.set_title(f"{method_name(method)}: {pair[1].prediction}")
        figure.colorbar(mappable, ax=line, label=LABELS[name], shrink=0.8)
    config = next(iter(runs.values()))[0]
    title = f"{config.name}, seed {config.seed}: {shown.title}. Last layers, mean of the heads."
    figure.suptitle(textwrap.fill(title, width=42 * len(runs)))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


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
    axes: plt.Axes, values: np.ndarray, image: np.ndarray | None = None
) -> plt.cm.ScalarMappable:
    """Draws what patches receive [rows, columns]; returns what a colour bar belongs to.

    Args:
        axes: where.
        values: of `Maps.patches`.
        image: shines through, if there is one; without, the values can be read off the colours.
    """
    if image is None:
        mappable = axes.imshow(values, cmap=MAP)
    else:
        height, width = image.shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(image, extent=extent)
        mappable = axes.imshow(values, cmap=MAP, extent=extent, alpha=0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    return mappable
