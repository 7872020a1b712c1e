"""A study's picture: each arm's difference to its baseline, with its interval."""

from __future__ import annotations

import pathlib

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from train.comparison.study import Runs, compare, factor, name_of, title


def draw_differences(
    runs: Runs, path: pathlib.Path, baseline: str = "plain", arms: str = ""
) -> None:
    """Draws a panel for each metric, a row for each arm.

    Args:
        runs: of a study.
        path: of the picture; its ending names the format.
        baseline: see `train.comparison.study.baselines`.
        arms: likewise.

    Raises:
        ConfigError: as of `train.comparison.study.compare`.
    """
    found = compare(runs, baseline, arms)
    rows = list(dict.fromkeys(one.arm for one in found))
    metrics = list(dict.fromkeys(one.metric for one in found))
    figure, panels = plt.subplots(
        1, len(metrics), sharey=True, squeeze=False, layout="constrained",
        figsize=(2.5 + 2.4 * len(metrics), 1.2 + 0.3 * len(rows)),
    )  # fmt: skip
    for panel, metric in zip(panels[0], metrics, strict=True):
        ones = {one.arm: one for one in found if one.metric == metric}
        scale = factor(metric)
        for row, arm in enumerate(rows):
            one = ones[arm]
            mean, reach = one.mean * scale, np.array([[one.mean - one.low], [one.high - one.mean]])
            colour = "C0" if one.adjusted <= 0.05 else "0.5"
            panel.errorbar(mean, row, xerr=reach * scale, fmt="o", color=colour, capsize=3)
        panel.axvline(0.0, color="black", linewidth=0.8)
        panel.set_title(title(metric).replace("/", "\n"), fontsize=10)
        panel.grid(axis="x", alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panels[0, 0].set_yticks(range(len(rows)), [name_of(arm) for arm in rows])
    panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(
        "difference to its baseline, 95% interval; blue: p <= 0.05 after Holm", fontsize=9
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)
