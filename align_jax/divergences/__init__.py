"""Divergences between queries and keys: pure functions, arrays in, `[B, H]` out.

Finite entries beyond 1e9 saturate: they count as 1e9. NaN or infinity in a token that takes part
makes the value of its sample and head NaN, and its gradient, so that training stops where the fault
is. Padding may hold anything.
"""

from align_jax.divergences.adversarial import adversarial
from align_jax.divergences.blocks import IMPLEMENTATIONS
from align_jax.divergences.conditional_transport import (
    COSTS,
    TRANSPORT_IMPLEMENTATIONS,
    conditional_transport,
)
from align_jax.divergences.energy_distance import energy_distance
from align_jax.divergences.maximum_mean_discrepancy import maximum_mean_discrepancy
from align_jax.divergences.optimal_transport import SinkhornReport, optimal_transport

__all__ = [
    "COSTS",
    "IMPLEMENTATIONS",
    "TRANSPORT_IMPLEMENTATIONS",
    "SinkhornReport",
    "adversarial",
    "conditional_transport",
    "energy_distance",
    "maximum_mean_discrepancy",
    "optimal_transport",
]
