"""By how much attacks on one method's models fail more often than on the plain ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from align_jax.config import PLAIN
from train.attack.records import FAILED, SKIPPED
from train.comparison.statistics import paired_difference

PERCENT = "failed_percent"
# What a file says of all its attacks, and the column that shows it.
NUMBERS = {
    PERCENT: "failed attacks, %",
    "accuracy_under_attack": "accuracy under attack, %",
    "queries_per_attack": "queries per attack",
}
BOTH_RIGHT = "failed attacks on what both had right, %"


def differences(
    found: Mapping[str, Mapping[int, dict[str, Any]]], name: Callable[[str], str] = str
) -> list[str]:
    """Two sentences per method, against the plain model: paired by seed, and by example.

    Args:
        found: method -> seed of the run -> what its file holds: "failed_percent", None without
            attacks, and "examples", with "row" and "outcome". Without a plain model nothing can be
            said.
        name: what to call a method.
    """
    said = []
    plain = found.get(PLAIN, {})
    for method, runs in found.items():
        common = [
            seed
            for seed in runs
            if seed in plain and None not in (runs[seed][PERCENT], plain[seed][PERCENT])
        ]
        if method == PLAIN or not common:
            continue
        own, base = ([of[seed][PERCENT] for seed in common] for of in (runs, plain))
        said.append(paired_difference(own, base).sentence(name(method), NUMBERS[PERCENT]))
        own, base = _by_example([(runs[seed], plain[seed]) for seed in common])
        if own:
            difference = paired_difference(own, base, unit="example")
            said.append(difference.sentence(name(method), BOTH_RIGHT))
    return said


def _by_example(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> tuple[list[float], list[float]]:
    """The percentages that failed, of each example that both of a pair had right.

    An example that several pairs share counts once, as the mean: its attacks are not independent.
    """
    rows: dict[int, list[tuple[float, float]]] = {}
    for pair in pairs:
        own, base = (
            {x["row"]: x["outcome"] == FAILED for x in of["examples"] if x["outcome"] != SKIPPED}
            for of in pair
        )
        for row in own.keys() & base.keys():
            rows.setdefault(row, []).append((100.0 * own[row], 100.0 * base[row]))
    means = [np.mean(rows[row], axis=0) for row in sorted(rows)]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]
