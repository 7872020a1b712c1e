"""The table that compares methods: means over seeds, as text for the terminal and for a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.table
from rich.markup import escape

from train.benchmarks.step_time import StepTime
from train.comparison import markdown
from train.comparison.markdown import cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number over seeds."""

    mean: float
    std: float | None = None  # sample standard deviation; None for a single seed
    digits: int = 4  # decimals shown
    unit: str = ""  # shown after the number

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.{self.digits}f}"
        return f"{self.mean:.{self.digits}f}{spread}{self.unit}"


Row = dict[str, Cell | None]
NAMES = {"none": "plain", "gan": "GAN", "ot": "OT", "ct": "CT", "mmd": "MMD"}
DETAILS = ("MMD", "divergence", "parameters", "ms per step")  # left to the table in the file


def method_name(label: str) -> str:
    """What people call a method; a label may say more behind the method, as in "ct:0.1".

    Example:
        >>> method_name("ct:0.1"), method_name("none")
        ('CT 0.1', 'plain')
    """
    method, _, rest = label.partition(":")
    return f"{NAMES.get(method, method)} {rest}".strip()


def comparison(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    times: Mapping[str, StepTime],
    split: str,
    metrics: Sequence[str],
) -> dict[str, Row]:
    """Puts finished runs side by side.

    Args:
        results: per method, what `train.run.loop.run` returned for each seed.
        times: per method, the time of a step.
        split: the split whose metrics are shown.
        metrics: their names; "SPLIT/METRIC" for that of another split.

    Returns:
        Per method a row: column -> Cell, or None where there is nothing to show (a plain model has
        no divergence).
    """
    rows: dict[str, Row] = {}
    of_seeds = by_seed(results, split, metrics)
    for method, runs in results.items():
        row: Row = {column: over_seeds(values) for column, values in of_seeds[method].items()}
        row["MMD"] = over_seeds([run["mmd"] for run in runs])
        # Older runs have neither of these two.
        row["scale-free MMD"] = over_seeds([run.get("scale_free_mmd") for run in runs])
        row["classifier"] = over_seeds([run.get("classifier_accuracy") for run in runs], digits=3)
        row["divergence"] = over_seeds([run["alignment"] for run in runs])
        parameters, time = runs[0].get("parameters"), times.get(method)  # older runs have none
        row["parameters"] = Cell(parameters / 1e6, digits=3, unit="M") if parameters else None
        row["ms per step"] = Cell(time.milliseconds, digits=2) if time else None
        row["over plain"] = Cell(time.ratio, digits=2, unit="x") if time else None
        rows[method] = row
    return rows


def place(name: str, split: str) -> tuple[str, str]:
    """Split and metric of "METRIC" or "SPLIT/METRIC", the former of the given split."""
    of, _, metric = name.rpartition("/")
    return of or split, metric


def by_seed(
    results: Mapping[str, Sequence[Mapping[str, Any]]], split: str, metrics: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """The metrics of each method, run by run: method -> "SPLIT METRIC" -> one value per seed.

    Arguments as of `comparison`.
    """
    places = [place(name, split) for name in metrics]
    return {
        method: {
            f"{of} {metric}": [run["metrics"][of][metric] for run in runs] for of, metric in places
        }
        for method, runs in results.items()
    }


def measured(
    runs: Sequence[Mapping[str, Any]], split: str, metrics: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Which metrics all runs have, and a sentence on each of the others.

    Arguments as of `comparison`, of which `runs` are the results.
    """
    known, sentences = [], []
    for name in metrics:
        of, metric = place(name, split)
        without = sum(metric not in run["metrics"].get(of, {}) for run in runs)
        if without:
            sentences.append(f"{name} is left out: {without} of the finished runs do not have it.")
        else:
            known.append(name)
    return known, sentences


def brief(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The columns to look at first, with three decimals: they fit into 80 characters."""
    return {
        method: {
            column: cell and dataclasses.replace(cell, digits=min(cell.digits, 3))
            for column, cell in row.items()
            if column not in DETAILS
        }
        for method, row in rows.items()
    }


def to_rich(rows: Mapping[str, Row], title: str) -> rich.table.Table:
    """The table for the terminal."""
    table = rich.table.Table(
        title=escape(title), title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("method")
    for column in next(iter(rows.values())):
        table.add_column(escape(column).replace(" ", "\n"), justify="right")
    for method, row in rows.items():
        table.add_row(escape(method_name(method)), *_texts(row))
    return table


def to_markdown(rows: Mapping[str, Row]) -> str:
    """The table for a README."""
    head = map(cell, ["method", *next(iter(rows.values()))])
    lines = [[cell(method_name(method)), *_texts(row)] for method, row in rows.items()]
    return "\n".join(markdown.table(list(head), lines)) + "\n"


def to_json(rows: Mapping[str, Row]) -> dict[str, Any]:
    """The table as numbers: method -> column -> {"mean", "std"}."""
    return {
        method: {
            column: None if cell is None else {"mean": cell.mean, "std": cell.std}
            for column, cell in row.items()
        }
        for method, row in rows.items()
    }


def over_seeds(values: Sequence[float | None], digits: int = 4) -> Cell | None:
    """Mean and standard deviation of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Cell(float(np.mean(known)), std, digits)


def _texts(row: Row) -> list[str]:
    return ["-" if cell is None else str(cell) for cell in row.values()]
