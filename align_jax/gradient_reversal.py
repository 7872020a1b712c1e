"""Gradient reversal: one backward pass for a minimax game."""

from typing import Any

import jax
from jaxtyping import Array


@jax.custom_vjp
def reverse_gradient(x: Array) -> Array:
    """The identity, whose gradient is negated (Ganin & Lempitsky 2015, arXiv 1409.7495).

    A network wrapped on both sides, `reverse_gradient(net(reverse_gradient(x)))`, gives the same
    value, the same gradient to whatever made `x`, and the negated gradient to its own parameters:
    one optimiser that minimises then makes that network maximise.

    Args:
      x: an array of any shape and float dtype.

    Returns:
      `x`.

    Example:
      >>> import jax
      >>> jax.value_and_grad(lambda x: reverse_gradient(x) ** 2)(3.0)
      (Array(9., dtype=float32, weak_type=True), Array(-6., dtype=float32, weak_type=True))
    """
    return x


def _forward(x: Array) -> tuple[Array, None]:
    return x, None


def _backward(_: None, cotangent: Any) -> tuple[Any]:
    return (-cotangent,)


reverse_gradient.defvjp(_forward, _backward)
