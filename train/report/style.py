"""How pictures look: told apart by the colour-blind, and in black and white.

Importing it makes matplotlib draw into files alone.
"""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
matplotlib.rcParams["text.parse_math"] = False  # texts of data sets hold dollar signs
matplotlib.rcParams["font.size"] = 9.0  # points: 12 pixels on a page
matplotlib.rcParams["axes.titlesize"] = "medium"

# Okabe and Ito's palette, told apart by the colour-blind; markers and dashes tell them apart in
# black and white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
QUERY_STYLE: dict[str, Any] = {"edgecolors": COLORS[0], "marker": "o", "facecolors": "none"}
KEY_STYLE: dict[str, Any] = {"color": COLORS[1], "marker": "x"}
MAP = "cividis"  # even steps of lightness

UNITS = {
    "gan": "nats",
    "ot": "cost",
    "ct": "cost",
    "mmd": "squared MMD",
    "energy": "energy distance",
}


def line_style(index: int) -> dict[str, Any]:
    """A colour and a dash of its own for the line of the given number."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}
