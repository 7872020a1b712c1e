"""Reliability diagrams: how often a model is right, by how confident it is (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from train.comparison.table import method_name, over_seeds
from train.report.contents import Section
from train.report.pictures import new_figure, picture, seed_count
from train.report.runs import Run, Study
from train.report.style import COLORS

HEIGHT = 4.2  # inches


def reliability(study: Study) -> Section:
    """The diagrams of a study, a picture per method, of all its seeds together."""
    section = Section(
        f"Reliability on {study.split}",
        "Above, the share of right predictions by confidence, beside the diagonal of a perfectly "
        "calibrated model; below, how many predictions there are. The predictions of all seeds "
        "together; the ECE is the mean over the seeds.",
    )
    for method, runs in study.finished.items():
        records = confidence_records(runs.values(), study.split)
        if not records:
            section.missing.append(
                f"{method_name(method)} has no record of its confidence on {study.split}."
            )
            continue
        figure = new_figure(HEIGHT)
        alt = f"Reliability diagram on {study.split}, {draw_reliability(figure, method, records)}"
        caption = f"{method_name(method)}, {seed_count(len(records))}."
        section.pictures.append(picture(figure, f"reliability {method}", alt, caption))
    if not study.finished:
        section.missing.append("No run is finished.")
    return section


def confidence_records(runs: Iterable[Run], split: str) -> list[Mapping[str, Any]]:
    """The last record of each run that holds its bins of confidence on a split."""
    found = [[x for x in r.records if x["split"] == split and "reliability" in x] for r in runs]
    return [records[-1] for records in found if records]


def draw_reliability(figure: Any, method: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Draws a method's diagram into a figure or a part of one; returns it in words."""
    bins = {
        name: np.sum([record["reliability"][name] for record in records], axis=0)
        for name in ("count", "confidence", "correct")
    }
    errors = [100 * record["ece"] for record in records]
    said = f"{method_name(method)}: ECE {over_seeds(errors, digits=1)}%"
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[2.5, 1.0])
    draw_bins(top, bottom, bins)
    top.set_title(said)
    top.set_ylabel("accuracy")
    bottom.set_ylabel("predictions")
    # Outside: the bars of a few examples may stand anywhere.
    handles, labels = top.get_legend_handles_labels()
    bottom.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.4, -0.55), ncols=2)
    accuracy, confidence = (bins[x].sum() / bins["count"].sum() for x in ("correct", "confidence"))
    return (
        f"{said}, accuracy {100 * accuracy:.1f}% at a mean confidence of {100 * confidence:.1f}%."
    )


def draw_bins(top: plt.Axes, bottom: plt.Axes, bins: Mapping[str, Any]) -> None:
    """Draws accuracy on top and counts below of bins: sums of count, confidence and correct."""
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
