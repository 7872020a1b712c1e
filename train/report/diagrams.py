"""Reliability diagrams and step times of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from train.report.contents import Picture, Section
from train.report.paper import STEP_RATIOS
from train.report.pictures import COLUMN, picture, seed_count
from train.report.reliability import draw_bins
from train.report.runs import Run, Study
from train.report.style import COLORS, method_name


def reliability(study: Study) -> Section:
    """How often a model is right by how confident it is, all seeds together."""
    section = Section(
        f"Reliability on {study.split}",
        "Above, the share of right predictions by confidence, beside the diagonal of a perfectly "
        "calibrated model; below, how many predictions there are. The predictions of all seeds "
        "together; the ECE is the mean over the seeds.",
    )
    for method, runs in study.finished.items():
        records = [found for run in runs.values() if (found := _last(run, study.split))]
        if records:
            section.pictures.append(_draw_reliability(method, study.split, records))
        else:
            section.missing.append(
                f"{method_name(method)} has no record of its confidence on {study.split}."
            )
    if not study.finished:
        section.missing.append("No run is finished.")
    return section


def _last(run: Run, split: str) -> dict[str, Any] | None:
    found = [x for x in run.records if x["split"] == split and "reliability" in x]
    return found[-1] if found else None


def _draw_reliability(method: str, split: str, records: list[dict[str, Any]]) -> Picture:
    bins = {
        name: np.sum([record["reliability"][name] for record in records], axis=0)
        for name in ("count", "confidence", "correct")
    }
    errors = [100 * record["ece"] for record in records]
    spread = f" ± {np.std(errors, ddof=1):.1f}" if len(errors) > 1 else ""
    error = f"ECE {np.mean(errors):.1f}{spread}%"
    figure, (top, bottom) = plt.subplots(
        2, figsize=(COLUMN, 4.6), sharex=True, layout="constrained", height_ratios=[2.5, 1.0]
    )
    draw_bins(top, bottom, bins)
    top.set_title(f"{method_name(method)}: {error}")
    top.set_ylabel("accuracy")
    bottom.set_ylabel("predictions")
    # Outside: the bars of a few examples may stand anywhere.
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, columnspacing=1.0)
    accuracy = bins["correct"].sum() / bins["count"].sum()
    confidence = bins["confidence"].sum() / bins["count"].sum()
    alt = (
        f"Reliability diagram of {method_name(method)} on {split}: {error}, accuracy "
        f"{100 * accuracy:.1f}% at a mean confidence of {100 * confidence:.1f}%."
    )
    caption = f"{method_name(method)}, {seed_count(len(records))}."
    return picture(figure, f"reliability {method}", alt, caption)


def step_times(study: Study) -> Section:
    """What alignment costs per training step."""
    section = Section(
        "Step time",
        "Time of a training step over the plain model's, median of steps taken in turn in one "
        "process. The paper's figures are those of MCAN small on VQA-v2 (Tables 5, 6, 9).",
    )
    if study.times:
        section.pictures.append(_draw_times({m: t.ratio for m, t in study.times.items()}))
    else:
        section.missing.append(
            "Not measured: train.sweep times the steps when all its runs are finished."
        )
    return section


def _draw_times(ratios: Mapping[str, float]) -> Picture:
    figure, axes = plt.subplots(figsize=(COLUMN, 1.2 + 0.4 * len(ratios)), layout="constrained")
    names = [f"{method_name(method)} {ratio:.2f}x" for method, ratio in ratios.items()]
    rows = range(len(ratios))
    axes.barh(rows, list(ratios.values()), color=COLORS[5], edgecolor="black", lw=0.6, label="here")
    paper = {row: STEP_RATIOS.get(m.partition(":")[0]) for row, m in zip(rows, ratios, strict=True)}
    known = {row: ratio for row, ratio in paper.items() if ratio is not None}
    if known:
        axes.scatter(
            list(known.values()), list(known), color=COLORS[1], edgecolor="black", marker="D",
            zorder=3, label="the paper",
        )  # fmt: skip
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("step time over the plain model's")
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    said = ", ".join(names)
    alt = f"Bar chart of step times over the plain model's: {said}."
    return picture(figure, "step time", alt, f"{said}.")
