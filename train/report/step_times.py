"""Step times of a study."""

from __future__ import annotations

from collections.abc import Mapping

from train.report.contents import Picture, Section
from train.report.paper import STEP_RATIOS
from train.report.pictures import new_figure, picture
from train.report.runs import Study
from train.report.style import COLORS, method_name


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
    figure = new_figure(1.2 + 0.4 * len(ratios))
    axes = figure.subplots()
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
    axes.set_xlabel("over the plain model's")
    figure.legend(loc="outside lower center", ncols=2)
    said = ", ".join(names)
    alt = f"Bar chart of step times over the plain model's: {said}."
    return picture(figure, "step time", alt, f"{said}.")
