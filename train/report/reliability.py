"""Reliability diagrams: how often a model is right, by how confident it is; a column per method."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from ml_collections import ConfigDict

from train.report.style import COLORS, method_name
from train.run.log import read_records


def draw_reliability(
    runs: Mapping[str, tuple[ConfigDict, pathlib.Path]], path: pathlib.Path
) -> bool:
    """Draws the calibration of finished runs on the last split that they evaluate.

    On top, the share of right predictions in each bin of confidence, beside the diagonal of a
    perfectly calibrated model; below, how many predictions each bin holds (Guo et al. 2017).

    Args:
        runs: per method, the config and the folder of a finished run.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    split = next(iter(runs.values()))[0].eval.final[-1]
    found = {}
    for method, (_, folder) in runs.items():
        records = [x for x in read_records(folder) if x["split"] == split and "reliability" in x]
        if records:
            found[method] = records[-1]
    if not found:
        return False
    figure, axes = plt.subplots(
        2, len(found), figsize=(3.2 * len(found), 4.2), squeeze=False, sharex=True, sharey="row",
        layout="constrained", height_ratios=[2.5, 1.0],
    )  # fmt: skip
    for column, (method, record) in enumerate(found.items()):
        draw_bins(axes[0, column], axes[1, column], record["reliability"])
        axes[0, column].set_title(f"{method_name(method)}: ECE {100 * record['ece']:.1f}%")
    # Outside: the bars of a few examples may stand anywhere.
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = 3 if len(found) > 1 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("examples")
    config = next(iter(runs.values()))[0]
    title = f"{config.name}, seed {config.seed}: reliability on {split}"
    figure.suptitle(textwrap.fill(title, width=32 * len(found)))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def draw_bins(top: plt.Axes, bottom: plt.Axes, bins: Mapping[str, list[float]]) -> None:
    """Draws one model's bins.

    Args:
        top: where its accuracy goes.
        bottom: where its counts go.
        bins: "count", "confidence" and "correct", sums per bin.
    """
    count, confidence, correct = (
        np.asarray(bins[name], float) for name in ("count", "confidence", "correct")
    )
    filled = count > 0
    centres = (np.arange(len(count)) + 0.5) / len(count)
    top.plot([0, 1], [0, 1], color="black", linestyle="--", lw=1, label="perfect")
    top.bar(
        centres[filled], (correct[filled] / count[filled]), width=0.9 / len(count),
        color=COLORS[5], edgecolor="black", lw=0.6, label="accuracy",
    )  # fmt: skip
    top.scatter(
        confidence[filled] / count[filled], correct[filled] / count[filled],
        color=COLORS[1], marker="x", s=24, zorder=3, clip_on=False, label="at mean confidence",
    )  # fmt: skip
    top.set_xlim(0, 1)
    top.set_ylim(0, 1)
    bottom.bar(centres, count, width=0.9 / len(count), color=COLORS[0])
    bottom.set_xlabel("confidence")
