"""A share of the examples held out, with as much of each class, and no text on both sides."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

BINS = 10  # of scores: as many strata, equally full


def held_out(
    keys: Sequence[Hashable], labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples at random, stratified by label.

    Examples with the same key stay together: who knows one by heart would know the others. So the
    share is met as nearly as whole groups allow, within each class and over all of them.

    Args:
        keys: of the n examples, the same for those that belong together.
        labels: int [n]; or scores, float [n], of which tenths are the strata.
        share: of the examples to hold out, between 0 and 1.
        seed: of the choice.

    Returns:
        The rows kept and the rows held out, in order.

    Example:
        >>> kept, out = held_out("abcdeefg", np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> len(kept), len(out)
        (6, 2)
    """
    strata = labels if np.issubdtype(labels.dtype, np.integer) else _tenths(labels)
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    members = list(groups.values())
    # A group whose examples differ in label counts for the class of its first one.
    of_group = np.array([strata[rows[0]] for rows in members])
    rng = np.random.default_rng(seed)
    out: list[int] = []
    seen = 0
    for stratum in np.unique(of_group):
        candidates = rng.permutation(np.flatnonzero(of_group == stratum))
        seen += sum(len(members[group]) for group in candidates)
        # What one class is short of, rounded, the next ones make up for.
        wanted = round(share * seen)
        for group in candidates[:-1]:  # one stays, so that the class can be learnt
            if len(out) + len(members[group]) <= wanted:
                out.extend(members[group])
    held = np.zeros(len(labels), bool)
    held[out] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _tenths(scores: np.ndarray) -> np.ndarray:
    """Which tenth of the scores each one belongs to; equal scores to the same."""
    edges = np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, scores, side="right")
