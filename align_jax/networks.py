"""The networks of the adversarial and transport games (Zhang et al. 2021, sections 3.1 and 3.3).

All act on the last axis alone, so one set of parameters serves every token and every head.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from align_jax import placement

__all__ = ["Critic", "Discriminator", "Highway", "Navigator"]

# Entries of the vectors that `in_chunks` takes at a time: a megabyte of float32.
CHUNK_SIZE = 2**18


class Highway(nn.Module):
    """A highway layer (Srivastava et al. 2015): `t * relu(transform(x)) + (1 - t) * x`.

    The gate `t = sigmoid(gate(x))` and the transform have a Dense layer each.

    Attributes:
      dtype: of the computation; None takes it from inputs and parameters.

    Example:
      >>> import jax
      >>> x = jnp.ones((2, 5))
      >>> Highway().init_with_output(jax.random.key(0), x)[0].shape
      (2, 5)
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """Returns the mixture of input and transformed input, same shape."""
        features = x.shape[-1]
        gate = nn.sigmoid(nn.Dense(features, dtype=self.dtype, name="gate")(x))
        transformed = nn.relu(nn.Dense(features, dtype=self.dtype, name="transform")(x))
        return gate * transformed + (1.0 - gate) * x


class Critic(nn.Module):
    """A highway layer and a two-layer perceptron with leaky ReLU: the transport's cost features.

    Attributes:
      features: width of the output.
      hidden_features: width of the hidden layer.
      highway: False leaves the highway layer out and uses a plain ReLU (the paper's ablation).
      dtype: of the computation; None takes it from inputs and parameters.

    Example:
      >>> import jax
      >>> Critic(features=4).init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
      (2, 4)
    """

    features: int
    hidden_features: int = 10
    highway: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape F"]:
        """Returns features `[..., F]`."""
        activation = nn.leaky_relu if self.highway else nn.relu
        if self.highway:
            x = Highway(dtype=self.dtype, name="highway")(x)
        x = activation(nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(x))
        return nn.Dense(self.features, dtype=self.dtype, name="output")(x)


class Discriminator(Critic):
    """As `Critic`, to one logit: how much a vector looks like a query.

    Attributes:
      hidden_features: width of the hidden layer.
      highway: False leaves the highway layer out and uses a plain ReLU (the paper's ablation).

    Example:
      >>> import jax
      >>> Discriminator().init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
      (2,)
    """

    features: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape"]:
        """Returns logits, one per vector: the input's shape without its last axis."""
        return jnp.squeeze(super().__call__(x), axis=-1)


class Navigator(nn.Module):
    """A two-layer perceptron: its outputs' inner products decide where transport goes.

    Attributes:
      features: width of the output.
      hidden_features: width of the hidden layer.
      dtype: of the computation; None takes it from inputs and parameters.

    Example:
      >>> import jax
      >>> Navigator(features=4).init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
      (2, 4)
    """

    features: int
    hidden_features: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape G"]:
        """Returns navigation vectors `[..., G]`."""
        x = nn.relu(nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(x))
        return nn.Dense(self.features, dtype=self.dtype, name="output")(x)


def in_chunks(
    network: nn.Module,
    x: Float[Array, "*shape D"],
    apply: Callable[[nn.Module, Array], Array] = lambda network, x: network(x),
) -> Float[Array, "..."]:
    """Applies a network that acts on the last axis alone, on a CPU a chunk of vectors at a time.

    The vectors lie in one matrix, which XLA multiplies faster than arrays of more axes. On a CPU a
    chunk of it stays in the cache from the first layer to the last, and the backward pass computes
    it again rather than keep what the layers put out.

    Args:
      network: a module inside the scope of its parent.
      x: the vectors.
      apply: what to compute with the network; it must treat each vector by itself.

    Returns:
      What `apply(network, x)` returns.
    """
    rows = x.reshape(-1, x.shape[-1])
    chunks = -(-rows.size // CHUNK_SIZE)
    if chunks == 1 or not placement.works_in_cache() or network.is_initializing():
        out = apply(network, rows)
        return out.reshape(*x.shape[:-1], *out.shape[1:])
    length = -(-len(rows) // chunks)
    parts = jnp.pad(rows, ((0, chunks * length - len(rows)), (0, 0)))

    def body(network: nn.Module, carry: tuple[()], part: Array) -> tuple[tuple[()], Array]:
        return carry, apply(network, part)

    scan = nn.scan(
        nn.remat(body, prevent_cse=False),
        variable_broadcast="params",
        split_rngs={"params": False},
    )
    _, out = scan(network, (), parts.reshape(chunks, length, -1))
    out = out.reshape(chunks * length, *out.shape[2:])[: len(rows)]
    return out.reshape(*x.shape[:-1], *out.shape[1:])
