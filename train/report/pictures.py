"""From a figure to a picture of the report."""

from __future__ import annotations

import io
import re

import matplotlib.pyplot as plt
import numpy as np

from train.report.contents import Picture

DPI = 160  # sharp on screens of a finer grain than CSS pixels
CSS_DPI = 96
COLUMN = 3.75  # inches: three pictures side by side on a desktop, one on a phone
WRITTEN = 4  # columns of a map at most whose values are written into it


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


def write_values(axes: plt.Axes, values: np.ndarray, limits: tuple[float, float]) -> None:
    """Writes a map's values into its cells, black on light ones and white on dark ones.

    Args:
        axes: that show the map.
        values: [rows, columns]; where they are nan nothing is written.
        limits: the least and the largest value of the scale.
    """
    middle = (limits[0] + limits[1]) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(
                column, row, f"{value:.2g}", ha="center", va="center", fontsize=6.5,
                color="black" if value > middle else "white",
            )  # fmt: skip


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
