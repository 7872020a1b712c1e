"""Maps of layers x heads: how far keys and queries are apart, at several moments of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import Normalize

from align_jax.collection import natural
from align_jax.config import PLAIN
from train.comparison.table import method_name
from train.report.contents import Picture, Section
from train.report.picture import OWN_DIVERGENCE, Series, head_series, short_names
from train.report.pictures import new_figure, picture
from train.report.runs import Run, Study
from train.report.style import MAP, UNITS

MOMENTS = 4


class Moments(NamedTuple):
    """Layers x heads at several moments, means over the seeds."""

    layers: list[str]
    titles: list[str]  # of the moments
    values: np.ndarray  # [T, L, H]; nan where a layer has fewer heads than another


def moments(runs: Mapping[int, Run], record: str) -> Moments | None:
    """What runs recorded per layer and head, from their first record to their last.

    Each seed counts at the same fraction of its own records, for early stopping ends them at
    different steps. None if no run recorded any of `record`, "mmd_per_head" or "divergence".
    """
    found = [series for run in runs.values() if (series := head_series(run.records, record))]
    if not found:
        return None
    layers = sorted(found[0], key=natural)
    steps = [next(iter(series.values()))[0] for series in found]
    places = np.linspace(0.0, 1.0, min(MOMENTS, *map(len, steps)))
    picked = [np.rint(places * (len(x) - 1)).astype(int) for x in steps]
    grids = [_grid(series, layers)[rows] for series, rows in zip(found, picked, strict=True)]
    chosen = np.array([x[rows] for x, rows in zip(steps, picked, strict=True)])
    return Moments(layers, [_title(column) for column in chosen.T], np.mean(grids, axis=0))


def head_maps(study: Study) -> list[Section]:
    """The sections on MMD and on the divergences."""
    mmd = Section(
        f"MMD of keys and queries, on {study.eval['mmd_split']}",
        "Squared maximum mean discrepancy per layer and head; one scale for all methods.",
    )
    divergence = Section(
        "Divergence per layer and head, in training",
        f"Each method's own, in its own unit and on its own scale. {OWN_DIVERGENCE}",
    )
    for section, record in ((mmd, "mmd_per_head"), (divergence, "divergence")):
        methods = [m for m in study.runs if section is mmd or m != PLAIN]
        maps = {method: moments(study.runs[method], record) for method in methods}
        known = {method: found for method, found in maps.items() if found is not None}
        missing = [method_name(method) for method in maps if method not in known]
        if missing:
            section.missing.append(f"Not measured, or not yet: {', '.join(missing)}.")
        for method, found in known.items():
            scale = known.values() if section is mmd else [found]
            values = np.concatenate([x.values.ravel() for x in scale])
            unit = "MMD" if section is mmd else UNITS.get(method.partition(":")[0], "")
            limits = np.nanmin(values), np.nanmax(values)
            name = "MMD" if section is mmd else record
            section.pictures.append(_draw(name, method, found, limits, unit))
    if set(study.runs) == {PLAIN}:
        divergence.missing.append("A plain model has no divergence.")
    return [mmd, divergence]


def _draw(
    name: str, method: str, found: Moments, limits: tuple[float, float], label: str
) -> Picture:
    count, rows, heads = found.values.shape
    columns = min(count, 2)
    lines = -(-count // columns)
    height = 0.7 + lines * min(2.2, 0.7 + 0.14 * max(rows, 4))
    figure = new_figure(height)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    names = short_names(found.layers)
    for index, ax in enumerate(axes.flat):
        if index >= count:
            ax.set_axis_off()
            continue
        ax.set_facecolor("0.85")  # where there is no such head
        image = ax.imshow(found.values[index], MAP, norm=Normalize(*limits), aspect="auto")
        ax.set_title(found.titles[index])
        ax.set_xticks(range(0, heads, -(-heads // 8)))
        ax.set_yticks(range(0, rows, -(-rows // 12)), names[:: -(-rows // 12)])
    for ax in axes[-1]:
        ax.set_xlabel("head")
    figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    first, last = (np.nansum(found.values[index]) for index in (0, -1))
    alt = (
        f"Maps of layers by heads, {method_name(method)}: {name}, summed over the heads, goes from "
        f"{first:.3g} at {found.titles[0]} to {last:.3g} at {found.titles[-1]}."
    )
    caption = f"{method_name(method)}: sum over the heads {first:.3g} at first, {last:.3g} at last."
    return picture(figure, f"{name} {method}", alt, caption)


def _grid(series: Series, layers: Sequence[str]) -> np.ndarray:
    """[T, L, H], filled up with nan."""
    values = [series[layer][1].astype(float) for layer in layers]
    heads = max(x.shape[1] for x in values)
    holes = [((0, 0), (0, heads - x.shape[1])) for x in values]
    padded = [np.pad(x, n, constant_values=np.nan) for x, n in zip(values, holes, strict=True)]
    return np.stack(padded, axis=1)


def _title(steps: np.ndarray) -> str:
    low, high = steps.min(), steps.max()
    return f"step {low}" if low == high else f"steps {low} to {high}"
