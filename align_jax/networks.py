"""The networks of the adversarial and transport games (Zhang et al. 2021, sections 3.1 and 3.3).

All act on the last axis alone, so one set of parameters serves every token and every head.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Highway(nn.Module):
    """A highway layer (Srivastava et al. 2015): `t * relu(transform(x)) + (1 - t) * x`.

    The gate `t = sigmoid(gate(x))` and the transform have a Dense layer each.

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
    """

    features: int
    hidden_features: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape G"]:
        """Returns navigation vectors `[..., G]`."""
        x = nn.relu(nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(x))
        return nn.Dense(self.features, dtype=self.dtype, name="output")(x)
