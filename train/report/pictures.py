"""From drawings to pictures: one by one for the report, side by side for a sweep."""

from __future__ import annotations

import io
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt

from train.process import naming
from train.report.contents import Picture

DPI = 160  # sharp on screens of a finer grain than CSS pixels
CSS_DPI = 96
Draw = Callable[[Any, str], object]  # a method's column into a part of a figure
COLUMN = 2.9  # inches: four pictures side by side on a desktop, one on a phone


def new_figure(height: float, width: float = COLUMN) -> plt.Figure:
    """A figure of a size in inches."""
    return plt.figure(figsize=(width, height), layout="constrained")


def picture(figure: plt.Figure, name: str, alt: str, caption: str) -> Picture:
    """Saves a figure of pyplot and closes it; `alt` and `caption` as of `Picture`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    width = round(figure.get_size_inches()[0] * CSS_DPI)
    plt.close(figure)
    return Picture(file_name(name), buffer.getvalue(), width, alt, caption)


def side_by_side(
    draw: Draw, methods: Iterable[str], path: pathlib.Path,
    *, height: float, title: str, text: str = "", width: float = 3.4,
) -> None:  # fmt: skip
    """Saves a PNG of one column per method, each drawn by `draw` into its part of the figure.

    Args:
        draw: is given that part and a method.
        methods: from left to right.
        path: of the PNG.
        height, width: of a column, in inches.
        title, text: above and below the columns.
    """
    columns = list(methods)
    letters = int(13 * width * len(columns))  # that fit into a line
    figure = new_figure(height, width * len(columns))
    parts = figure.subfigures(1, len(columns), squeeze=False)[0]
    for part, method in zip(parts, columns, strict=True):
        draw(part, method)
    figure.suptitle(textwrap.fill(title, letters), fontsize="medium")
    if text:
        figure.supxlabel(textwrap.fill(text, letters), fontsize="medium", ha="left", x=0.01)
    with naming(path):
        figure.savefig(path, dpi=110)
    plt.close(figure)


def seed_count(number: int) -> str:
    """Such as "1 seed" or "3 seeds"."""
    return f"{number} seed{'s' if number > 1 else ''}"


def file_name(text: str) -> str:
    """A name for a file.

    Example:
        >>> file_name("Test accuracy, CT 0.1")
        'test-accuracy-ct-0.1'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "picture"
