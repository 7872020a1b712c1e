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
COLUMN = 2.9  # inches: four pictures side by side on a desktop, one on a phone


def new_figure(height: float, width: float = COLUMN) -> plt.Figure:
    """A figure of a size in inches."""
    return plt.figure(figsize=(width, height), layout="constrained")


def picture(figure: plt.Figure, name: str, alt: str, caption: str) -> Picture:
    """Saves a figure and closes it.

    Args:
        figure: from pyplot.
        name: of the file; what file names do not bear is replaced.
        alt: see `Picture`.
        caption: see `Picture`.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    width = round(figure.get_size_inches()[0] * CSS_DPI)
    plt.close(figure)
    return Picture(file_name(name), buffer.getvalue(), width, alt, caption)


def side_by_side(
    draw: Callable[[Any, str], object], methods: Iterable[str], path: pathlib.Path,
    *, height: float, title: str, text: str = "", width: float = 3.4,
) -> None:  # fmt: skip
    """Saves a picture of one column per method.

    Args:
        draw: draws a method's column into a figure.
        methods: by whose names it is called.
        path: of the PNG.
        height: of the columns, in inches.
        title: above them.
        text: below them.
        width: of a column, in inches.
    """
    columns = list(methods)
    letters = int(13 * width * len(columns))  # that fit into a line
    figure = new_figure(height, width * len(columns))
    for part, method in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns,
                            strict=True):  # fmt: skip
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
