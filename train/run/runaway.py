"""Notices an alignment that tears queries and keys apart, and says where and what to do.

A loss that stays finite is no sign that a game goes well. These are signs that it does not: the
discriminator does worse than a coin, so that queries and keys have swapped sides and run on; the
vectors grow without end, or shrink to nothing; queries and keys lie further apart than before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from align_jax import AlignmentConfig
from align_jax.alignment import GAMES

# A discriminator that only guesses reaches -2 log 2; a mean over steps that much below is no noise.
LEAST_OBJECTIVE = {"gan": -2.0 * math.log(2.0) - 0.1}
GROWTH, SHRINKAGE = 5.0, 0.1  # of the mean norm, over that before training
RISE = 0.3  # of the scale-free MMD, in which 1 is two tight clouds far apart

PerHead = Mapping[str, Any]  # {"layer_0/attention": [H]}


def objective_notices(config: AlignmentConfig, divergence: PerHead) -> list[str]:
    """What the method's own objective says, its mean over a few steps per layer and head.

    Returns:
        A sentence for each layer that has run away; none for methods without a discriminator, whose
        objectives cannot leave their range.

    Example:
        >>> objective_notices(AlignmentConfig("gan"), {"layer_0": [-1.3, -1.9]})[0][:50]
        'The GAN objective of layer_0 has left its range: h'
    """
    least = LEAST_OBJECTIVE.get(config.method, -math.inf)
    found = []
    for layer, values in divergence.items():
        if heads := _heads(np.atleast_1d(values) < least, np.atleast_1d(values), "{:.2f}"):
            found.append(
                f"The {config.method.upper()} objective of {layer} has left its range: {heads}, "
                f"below -2 log 2 = -1.39. The discriminator does worse than a guess, because the "
                f"queries and keys move faster than it. {_advice(config)}"
            )
    return found


def distance_notices(config: AlignmentConfig, first: PerHead, now: PerHead) -> list[str]:
    """What the yardsticks of `evaluation.measure_clouds` say, before training and now.

    Returns:
        A sentence for each layer whose vectors have grown beyond measure or shrunk to nothing, or
        whose clouds lie further apart.
    """
    found = []
    for side in ("query", "key"):
        before = first[f"{side}_norm_per_head"]
        for layer, norms in now[f"{side}_norm_per_head"].items():
            ratio = np.asarray(norms) / np.maximum(before[layer], 1e-12)
            for verb, where, advice in (
                ("grown", ratio > GROWTH, _advice(config)),
                ("shrunk", ratio < SHRINKAGE, "If the task suffers, lower alignment.weight."),
            ):
                if heads := _heads(where, ratio, "{:.3g} times"):
                    found.append(f"The norm of {layer}'s {side} vectors has {verb}: {heads} what "
                                 f"it was before training. {advice}")  # fmt: skip
    for layer, distances in now["scale_free_mmd_per_head"].items():
        rise = np.asarray(distances) - np.asarray(first["scale_free_mmd_per_head"][layer])
        if heads := _heads(rise > RISE, np.asarray(distances), "{:.2f}"):
            found.append(f"The queries and keys of {layer} have come further apart than they were "
                         f"before training: scale-free MMD {heads}. {_advice(config)}")  # fmt: skip
    return found


def _heads(where: np.ndarray, values: np.ndarray, form: str) -> str:
    return ", ".join(f"head {n} {form.format(values[n])}" for n in np.flatnonzero(where))


def _advice(config: AlignmentConfig) -> str:
    """What to change, the likeliest first."""
    ways = []
    if config.method in GAMES:
        if config.gradient_penalty == 0:
            ways.append("set alignment.gradient_penalty=1.0")
        if config.shared_networks or not config.unit_scale:
            ways.append("use networks for each head on vectors of unit scale "
                        "(alignment.shared_networks=False, alignment.unit_scale=True)")  # fmt: skip
        if config.method == "gan" and config.saturating:
            ways.append("set alignment.saturating=False")
        ways.append("raise optimizer.alignment_learning_rate, with optimizer.alignment_beta1=0.0")
        ways.append("take a method without networks, alignment.method=energy")
    ways.append("lower alignment.weight, unless a plain model (alignment.method=none) does so too")
    return f"Ways out: {'; '.join(ways)}."
