"""Curves over training: the parts of the loss and the metrics, a line per method."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from align_jax.config import PLAIN
from train.comparison.table import method_name, place
from train.report.contents import Picture, Section
from train.report.pictures import new_figure, picture, seed_count
from train.report.runs import Run, Study
from train.report.style import MARKERS, line_style

MARKED = 8  # points of a line that have a marker
POINTS = 100  # of a line at most: of more, means over windows are drawn, or it would be a band

Value = Callable[[Mapping[str, Any]], float | None]


class Curve(NamedTuple):
    """A number over T steps of training."""

    steps: np.ndarray  # at which every seed recorded it, or the means of windows of them
    mean: np.ndarray  # over the seeds
    std: np.ndarray  # sample standard deviation over the seeds; 0 for a single one
    seeds: int


def mean_curve(runs: Mapping[int, Run], split: str, value: Value) -> Curve | None:
    """The mean over seeds of what runs recorded of a split, or of "train".

    The curve goes over the steps that all seeds have in common; None if there are fewer than two.
    Runs that recorded nothing of the kind are left out, as of which `value` returns None.
    """
    every = [
        {r["step"]: x for r in run.records if r["split"] == split and (x := value(r)) is not None}
        for run in runs.values()
    ]
    found = [points for points in every if points]
    common = sorted(set.intersection(*map(set, found))) if found else []
    if len(common) < 2:
        return None
    steps = np.array(common, float)
    values = np.array([[points[step] for step in common] for points in found])
    if len(steps) > POINTS:
        starts = np.linspace(0, len(steps), POINTS, endpoint=False).astype(int)
        lengths = np.diff([*starts, len(steps)])
        steps = np.add.reduceat(steps, starts) / lengths
        values = np.add.reduceat(values, starts, axis=1) / lengths
    std = values.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(len(steps))
    return Curve(steps, values.mean(axis=0), std, len(found))


def training(study: Study) -> Section:
    """The parts of the loss and the reported metrics over training."""
    section = Section(
        "Training",
        "Means over the seeds, and a band of one standard deviation on either side; up to the step "
        "that every seed of a method has reached. Long series are drawn as means over windows.",
    )
    panels: list[tuple[str, str, Value]] = [
        ("train", "task loss", operator.methodcaller("get", "task_loss")),
        ("train", "weighted alignment", _weighted_alignment),
    ]
    for split in study.eval["during"]:
        places = [place(name, split) for name in study.eval["report"]]
        own = [metric for of, metric in places if of == split]
        names = dict.fromkeys(["loss", *own])
        panels += [(split, name, operator.methodcaller("get", name)) for name in names]
    for split, name, value in panels:
        curves = {m: mean_curve(runs, split, value) for m, runs in study.runs.items()}
        drawn = {method: curve for method, curve in curves.items() if curve is not None}
        if drawn:
            section.pictures.append(_draw(f"{split} {name}", drawn, list(study.runs)))
        elif name != "weighted alignment" or set(study.runs) != {PLAIN}:
            section.missing.append(f"{split} {name} is not drawn: it was recorded less than twice.")
    return section


def _draw(name: str, curves: Mapping[str, Curve], methods: Sequence[str]) -> Picture:
    """One panel; a method's place among `methods` decides how its line looks in all of them."""
    figure = new_figure(3.2)
    axes = figure.subplots()
    said = []
    for method, curve in curves.items():
        index = methods.index(method)
        style = line_style(index)
        axes.plot(
            curve.steps, curve.mean, lw=1.5, label=method_name(method), markersize=5,
            marker=MARKERS[index % len(MARKERS)], markerfacecolor="white",
            # Not all at the same steps, where one would hide another.
            markevery=(index * len(curve.steps) // (MARKED * len(methods)),
                       max(1, len(curve.steps) // MARKED)),
            **style,
        )  # fmt: skip
        low, high = curve.mean - curve.std, curve.mean + curve.std
        axes.fill_between(curve.steps, low, high, color=style["color"], alpha=0.15, lw=0)
        said.append(f"{method_name(method)} from {curve.mean[0]:.3g} to {curve.mean[-1]:.3g}")
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.grid(color="0.9", lw=0.6)
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.0, handlelength=2.5)
    counts = {method_name(method): seed_count(curve.seeds) for method, curve in curves.items()}
    seeds = ", ".join(f"{method} {count}" for method, count in counts.items())
    if len(set(counts.values())) == 1:
        (seeds,) = set(counts.values())
    alt = f"Line chart of {name} over the steps: {'; '.join(said)}."
    return picture(figure, name, alt, f"{name}, {seeds}.")


def _weighted_alignment(record: Mapping[str, Any]) -> float | None:
    """The alignment's part of the loss."""
    if "alignment" not in record:
        return None
    return record["alignment_weight"] * record["alignment"]
