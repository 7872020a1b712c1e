"""One backward pass for a game: gradients that are negated, and ones that are weighed anew.

The result is the derivative of no function. A second derivative is that of these gradients, as
differences of them are. Forward mode (`jax.jvp`) knows of no game, and JAX refuses it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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


def _backward(_: None, cotangent: Any) -> tuple[Any]:
    return (-cotangent,)


reverse_gradient.defvjp(lambda x: (x, None), _backward)


@jax.custom_vjp
def weighed_gradient(x: Float[Array, "*shape D"]) -> tuple[Array, Float[Array, "*shape"]]:
    """The identity, whose gradient is multiplied, vector by vector, by numbers known only later.

    Two players of a game may have losses of which one is an increasing function of the other's,
    such as the two generator losses of Goodfellow et al. 2014. Their gradients then differ by a
    factor for each vector, so that the network between need be passed through but once.

    Returns:
      `x`, and a handle `[...]`, to be given to `weigh` with the factors.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def loss(x):
      ...     x, handle = weighed_gradient(x)
      ...     return weigh((x**2).sum(-1), handle, jnp.array([1.0, 10.0])).sum()
      >>> jax.grad(loss)(jnp.ones((2, 1))).tolist()
      [[2.0], [20.0]]
    """
    return x, jnp.zeros(x.shape[:-1], jnp.float32)


def _weighed_forward(x: Array) -> tuple[tuple[Array, Array], None]:
    # Not by `weighed_gradient` itself, whose rule a second derivative would then apply once more.
    return (x, jnp.zeros(x.shape[:-1], jnp.float32)), None


def _weighed_backward(_: None, cotangents: Any) -> tuple[Array]:
    cotangent, factors = cotangents
    return ((cotangent * factors[..., None]).astype(cotangent.dtype),)


weighed_gradient.defvjp(_weighed_forward, _weighed_backward)


@jax.custom_vjp
def weigh(y: Float[Array, "*shape"], handle: Array, factors: Array) -> Array:
    """`y`; the gradient of the vectors that `handle` came with is multiplied by the factors.

    `y` is what became of the vectors, one number each; to be called once for each handle of
    `weighed_gradient`.
    """
    return y


def _weigh_backward(factors: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    # The handle's "gradient" is how the factors travel back to `weighed_gradient`.
    return cotangent, factors.astype(jnp.float32), jnp.zeros_like(factors)


weigh.defvjp(lambda y, handle, factors: (y, factors), _weigh_backward)
