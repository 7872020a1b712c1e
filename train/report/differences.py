"""A study's picture: each arm's difference to its baseline, with its interval."""

from __future__ import annotations

import pathlib
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from train.comparison.study import Runs, compare, factor, name_of, title

WIDTH = 50  # of an arm's name, in letters


def draw_differences(
    runs: Runs, path: pathlib.Path, baseline: str = "plain", arms: str = ""
) -> None:
    """Draws a panel for each metric, a row for each arm and split.

    Args:
        runs: of a study.
        path: of the picture; its ending names the format.
        baseline: see `train.comparison.study.baselines`.
        arms: likewise.

    Raises:
        ConfigError: as of `train.comparison.study.compare`.
    """
    # By row and panel; the metrics of several splits share a panel.
    found = {
        ((split, one.arm), metric): one
        for one in compare(runs, baseline, arms)
        for split, _, metric in [one.metric.rpartition("/")]
    }
    rows, metrics = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    names = [f"{split}: {name_of(arm)}" if split else name_of(arm) for split, arm in rows]
    names = [textwrap.fill(name, WIDTH, break_on_hyphens=False) for name in names]
    widest = max(len(line) for name in names for line in name.splitlines())
    lines = sum(1 + name.count("\n") / 2 for name in names)
    figure, panels = plt.subplots(
        1, len(metrics), sharey=True, squeeze=False, layout="constrained",
        figsize=(0.08 * widest + 2.2 * len(metrics), 1.2 + 0.3 * lines),
    )  # fmt: skip
    for (row, metric), one in found.items():
        panel, scale = panels[0, metrics.index(metric)], factor(metric)
        reach = np.array([[one.mean - one.low], [one.high - one.mean]])
        panel.errorbar(
            one.mean * scale, rows.index(row), xerr=reach * scale, fmt="o", capsize=3,
            color="C0" if one.adjusted <= 0.05 else "0.5",
        )  # fmt: skip
    for panel, metric in zip(panels[0], metrics, strict=True):
        panel.axvline(0.0, color="black", linewidth=0.8)
        panel.set_title(title(metric), fontsize=10)
        panel.grid(axis="x", alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panels[0, 0].set_yticks(range(len(rows)), names)
    panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(
        "difference to its baseline, 95% interval; blue: p <= 0.05 after Holm", fontsize=9
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)
