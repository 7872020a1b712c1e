"""The networks of the adversarial and transport games (Zhang et al. 2021, sections 3.1 and 3.3).

All act on the last axis alone, so one set of parameters can serve every token and every head;
`for_each_head` makes a set for each head. They are so narrow that most of their time goes into
reading and writing vectors. What reads the same vectors is therefore one matrix product: the
highway's gate and transform, and with them the navigator's first layer where critic and navigator
read the same vectors (`CriticAndNavigator`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from align_jax import numerics, placement
from align_jax.gradient_reversal import reverse_gradient

__all__ = ["Critic", "Discriminator", "Highway", "Navigator"]

# Entries of the vectors that `in_chunks` takes at a time: a quarter of a megabyte of float32, which
# a core's cache holds together with what the layers make of it. Four times as many take 8% longer.
CHUNK_SIZE = 2**16

# Of so many tokens the gradient penalty takes one: it constrains the network as well as of all of
# them, at an eighth of the time.
PENALTY_STRIDE = 8

# Kernel [D, F] and bias [F].
Layer = tuple[Array, Array]


class Affine(nn.Module):
    """The parameters of a dense layer, as `nn.Dense` names and initialises them.

    Attributes:
      features: width of the layer.
      adversarial: whether to negate the parameters' gradient.
    """

    features: int
    adversarial: bool = False

    @nn.compact
    def __call__(self, inputs: int) -> Layer:
        """Returns kernel and bias for inputs of so many features."""
        shape = inputs, self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape[1:], jnp.float32)
        if self.adversarial:
            return reverse_gradient(kernel), reverse_gradient(bias)
        return kernel, bias


def _products(x: Array, layers: Sequence[Layer], dtype: Any) -> list[Array]:
    """What several dense layers make of the same vectors."""
    kernels, biases = zip(*layers, strict=True)
    merged = jnp.concatenate(kernels, axis=1), jnp.concatenate(biases)
    x, kernel, bias = nn.dtypes.promote_dtype(x, *merged, dtype=dtype)
    ends = [sum(b.size for b in biases[: n + 1]) for n in range(len(biases) - 1)]
    bias = numerics.with_leading_axes(bias, x)
    return jnp.split(x @ kernel + bias, ends, axis=-1)


class Highway(nn.Module):
    """A highway layer (Srivastava et al. 2015): `t * relu(transform(x)) + (1 - t) * x`.

    The gate `t = sigmoid(gate(x))` and the transform have a dense layer each.

    Attributes:
      dtype: of the computation; None takes it from inputs and parameters.
      adversarial: see `Critic`.

    Example:
      >>> import jax
      >>> x = jnp.ones((2, 5))
      >>> Highway().init_with_output(jax.random.key(0), x)[0].shape
      (2, 5)
    """

    dtype: Any = None
    adversarial: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"], extra_layers: Sequence[Layer] = ()) -> Any:
        """Returns the mixture of input and transformed input, same shape.

        With `extra_layers`, returns a pair: the mixture, and a list of what they make of `x`.
        """
        own = [Affine(x.shape[-1], self.adversarial, name=name) for name in ("gate", "transform")]
        layers = [*(layer(x.shape[-1]) for layer in own), *extra_layers]
        gate, transformed, *others = _products(x, layers, self.dtype)
        gate = nn.sigmoid(gate)
        mixture = gate * nn.relu(transformed) + (1.0 - gate) * x.astype(gate.dtype)
        return (mixture, others) if extra_layers else mixture


class Critic(nn.Module):
    """A highway layer and a two-layer perceptron with leaky ReLU: the transport's cost features.

    Attributes:
      features: width of the output.
      hidden_features: width of the hidden layer.
      highway: False leaves the highway layer out and uses a plain ReLU (the paper's ablation).
      dtype: of the computation; None takes it from inputs and parameters.
      adversarial: whether to negate the gradient of the parameters, but not the input's: the
        network then maximises what everything before it minimises. It is gradient reversal on both
        sides of the network, without touching the vectors.

    Example:
      >>> import jax
      >>> Critic(features=4).init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
      (2, 4)
    """

    features: int
    hidden_features: int = 10
    highway: bool = True
    dtype: Any = None
    adversarial: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*shape D"], extra_layers: Sequence[Layer] = ()) -> Any:
        """Returns features `[..., F]`; with `extra_layers`, as `Highway`, a pair."""
        hidden, output = (
            Affine(features, self.adversarial, name=name)
            for name, features in (("hidden", self.hidden_features), ("output", self.features))
        )
        if self.highway:
            x = Highway(self.dtype, self.adversarial, name="highway")(x, extra_layers)
            x, others = x if extra_layers else (x, [])
            (x,) = _products(x, [hidden(x.shape[-1])], self.dtype)
        else:
            x, *others = _products(x, [hidden(x.shape[-1]), *extra_layers], self.dtype)
        x = (nn.leaky_relu if self.highway else nn.relu)(x)
        (x,) = _products(x, [output(self.hidden_features)], self.dtype)
        return (x, others) if extra_layers else x


class Discriminator(Critic):
    """As `Critic`, to one logit: how much a vector looks like a query.

    Attributes:
      hidden_features, highway, dtype, adversarial: see `Critic`.

    Example:
      >>> import jax
      >>> Discriminator().init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
      (2,)
    """

    features: int = dataclasses.field(default=1, init=False)

    @nn.compact
    def __call__(  # type: ignore[override]  # nothing is read beside it
        self, x: Float[Array, "*shape D"]
    ) -> Float[Array, "*shape"]:
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

    def setup(self) -> None:
        """Names the layers."""
        self.hidden = Affine(self.hidden_features)
        self.output = Affine(self.features)

    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape G"]:
        """Returns navigation vectors `[..., G]`."""
        return self.rest(*_products(x, [self.hidden(x.shape[-1])], self.dtype))

    def rest(self, hidden: Float[Array, "*shape hidden"]) -> Float[Array, "*shape G"]:
        """The navigation vectors, given what the layer `hidden` made of the input."""
        (x,) = _products(nn.relu(hidden), [self.output(self.hidden_features)], self.dtype)
        return x


class CriticAndNavigator(nn.Module):
    """Both on the same vectors; their parameters stay those of their parent's modules."""

    critic: Critic
    navigator: Navigator

    def __call__(self, x: Float[Array, "*shape D"]) -> tuple[Array, Array]:
        """Returns features `[..., F]` and navigation vectors `[..., G]`."""
        features, (hidden,) = self.critic(x, extra_layers=[self.navigator.hidden(x.shape[-1])])
        return features, self.navigator.rest(hidden)


def in_chunks(network: nn.Module, x: Float[Array, "*shape D"]) -> Any:
    """Applies a network that acts on the last axis alone, on a CPU a chunk of vectors at a time.

    The vectors lie in one matrix, which XLA multiplies faster than arrays of more axes. On a CPU a
    chunk of it stays in the cache from the first layer to the last, and the backward pass computes
    it again rather than keep what the layers put out. The network may have several outputs.
    """
    chunks = -(-x.size // CHUNK_SIZE)
    if chunks == 1 or network.is_initializing() or placement.spread_by_compiler():
        return _whole(network, x)
    return _by_platform(*_unbound(network), x, chunks, False)


def for_each_head(network: nn.Module, x: Float[Array, "B N H D"]) -> Any:
    """As `in_chunks`, with parameters of its own for each head, along their first axis."""
    if x.size <= CHUNK_SIZE or network.is_initializing() or placement.spread_by_compiler():
        each = nn.vmap(_whole, {"params": 0}, split_rngs={"params": True}, in_axes=2, out_axes=2)
        return each(network, x)
    chunks = -(-x[:, :, 0].size // CHUNK_SIZE)
    return _by_platform(*_unbound(network), x, chunks, True)


def _whole(network: Callable[[Array], Any], x: Float[Array, "*shape D"]) -> Any:
    """All vectors at once."""
    out = network(x.reshape(-1, x.shape[-1]))
    return jax.tree.map(lambda out: out.reshape(*x.shape[:-1], *out.shape[1:]), out)


def _chunked(network: Callable[[Array], Any], x: Float[Array, "*shape D"], chunks: int) -> Any:
    """A chunk of the vectors at a time."""
    rows = x.reshape(-1, x.shape[-1])
    length = -(-len(rows) // chunks)
    parts = jnp.pad(rows, ((0, chunks * length - len(rows)), (0, 0)))
    out = jax.lax.map(jax.checkpoint(network, prevent_cse=False), parts.reshape(chunks, length, -1))

    def whole(out: Array) -> Array:
        out = out.reshape(chunks * length, *out.shape[2:])[: len(rows)]
        return out.reshape(*x.shape[:-1], *out.shape[1:])

    return jax.tree.map(whole, out)


def _unbound(network: nn.Module) -> tuple[nn.Module, Any]:
    """A network outside any scope, and its parameters."""
    if isinstance(network, CriticAndNavigator):
        # Its parts are its parent's modules, and so are their parameters.
        critic, of_critic = _unbound(network.critic)
        navigator, of_navigator = _unbound(network.navigator)
        both = CriticAndNavigator(cast(Critic, critic), cast(Navigator, navigator), parent=None)
        return both, {"critic": of_critic, "navigator": of_navigator}
    return network.clone(parent=None, name=None), network.variables["params"]


# Behind jax.jit, so that it is traced once for all layers of the same shapes, and queries and keys.
@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _by_platform(
    network: nn.Module, params: Any, x: Float[Array, "*shape D"], chunks: int, each_head: bool
) -> Any:
    """What a network outside any scope makes of vectors; with a set of parameters for each head."""

    def apply(params: Any, x: Array) -> Any:
        return network.apply({"params": params}, x)

    def in_cache(params: Any, x: Array) -> Any:
        return _chunked(functools.partial(apply, params), x, chunks)

    def at_once(params: Any, x: Array) -> Any:
        return _whole(functools.partial(apply, params), x)

    if not each_head:
        return placement.by_platform(in_cache, at_once, params, x)

    def a_head_at_a_time(params: Any, x: Array) -> Any:
        out = jax.lax.map(lambda head: in_cache(*head), (params, jnp.moveaxis(x, 2, 0)))
        return jax.tree.map(lambda out: jnp.moveaxis(out, 0, 2), out)

    all_heads = jax.vmap(at_once, in_axes=(0, 2), out_axes=2)
    return placement.by_platform(a_head_at_a_time, all_heads, params, x)


def gradient_penalty(
    network: Critic,
    params: Any,
    clouds: Sequence[tuple[Float[Array, "B N H D"], Bool[Array, "B N"] | None]],
    *,
    each_head: bool,
) -> Float[Array, "B H"]:
    """The mean squared slope of a network at its inputs (Mescheder et al. 2018, R1, Eq. 9).

    Of several features the squared slopes are added up. Every eighth token stands for all of them,
    and of these each for some of the features, such that all features are seen.

    Args:
      network: outside any scope, with one output: logits, or features on the last axis.
      params: its "params", as inside a scope.
      clouds: its inputs, to which no gradient runs, and for each a mask, True for the tokens that
        take part, None for all. Each cloud as a whole weighs as much as any other.
      each_head: whether the parameters' first axis is that of the heads.
    """
    features = network.features

    def outputs(params: Any, x: Array) -> Array:
        made = cast(Array, network.apply({"params": params}, x))
        return made[..., None] if made.ndim < x.ndim else made

    heads = jax.vmap(outputs, in_axes=(0, 2), out_axes=2) if each_head else outputs
    inputs, weights, feature = [], [], []
    for x, mask in clouds:
        tokens = np.arange(0, x.shape[1], PENALTY_STRIDE)
        rows = np.arange(max(len(tokens), features))
        tokens = tokens[rows % len(tokens)]
        inputs.append(x[:, tokens])
        weights.append(numerics.token_weights(numerics.explicit_mask(x, mask)[:, tokens]))
        feature.append(rows % features)
    x = jax.lax.stop_gradient(jnp.concatenate(inputs, axis=1))
    made, slopes = jax.vjp(functools.partial(heads, params), x)
    one = jnp.asarray(np.eye(features)[np.concatenate(feature)][:, None], made.dtype)
    (slope,) = slopes(jnp.broadcast_to(one, made.shape))
    squares = jnp.sum(slope.astype(jnp.float32) ** 2, axis=-1)
    weight = jnp.concatenate(weights, axis=1)[..., None] * (features / len(clouds))
    return jnp.sum(jnp.where(weight > 0, weight * squares, 0.0), axis=1)
