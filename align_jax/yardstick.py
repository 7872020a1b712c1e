"""How far apart queries and keys lie, whatever was trained, and how concentrated attention is.

A divergence that is being minimised says little of whether queries and keys come together: its
critic may lag, and longer vectors change it too. The distances here depend on no network, and not
on how long the vectors are.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import collection, numerics
from align_jax.collection import alignment_clouds, of_samples


class CloudDistance(NamedTuple):
    """How far apart the queries and keys of each head of an attention lie.

    Attributes:
      mmd: `[H]`, see `scale_free_mmd`.
      query_norm: `[H]`, mean Euclidean norm of the queries.
      key_norm: `[H]`, the same of the keys.

    Example:
      See `cloud_distances`.
    """

    mmd: Float[Array, "H"]
    query_norm: Float[Array, "H"]
    key_norm: Float[Array, "H"]


class AttentionStatistics(NamedTuple):
    """What the attention of each head looks like.

    Attributes:
      entropy: `[H]`, of a query's attention over its keys, divided by that of uniform attention:
        1 looks at all keys alike, 0 at one alone.
      logit_deviation: `[H]`, the standard deviation of a query's logits over its keys.
      rank: `[H]`, how many directions the attention matrix has: the square of the sum of its
        squared singular values, divided by the sum of their fourth powers. It is 1 where all
        queries attend alike, and the number of tokens where each looks at another key alone.

    Example:
      See `attention_statistics`.
    """

    entropy: Float[Array, "H"]
    logit_deviation: Float[Array, "H"]
    rank: Float[Array, "H"]


class TokenSample(NamedTuple):
    """Queries and keys of all samples together.

    Attributes:
      query: `[T, H, D]`.
      key: `[T, H, D]`, in general of other tokens.
      query_mask: bool `[T]`, False where there were fewer queries than asked for.
      key_mask: bool `[T]`, the same of the keys.

    Example:
      See `sample_tokens`.
    """

    query: Float[Array, "T H D"]
    key: Float[Array, "T H D"]
    query_mask: Bool[Array, "T"]
    key_mask: Bool[Array, "T"]

    def distance(self) -> CloudDistance:
        """How far apart these queries and keys lie."""

        def norm(x: Array, mask: Array) -> Array:
            return numerics.masked_mean(jnp.linalg.norm(x, axis=-1), mask[:, None], axis=0)

        mmd = scale_free_mmd(
            self.query, self.key, query_mask=self.query_mask, key_mask=self.key_mask
        )
        return CloudDistance(mmd, norm(self.query, self.query_mask), norm(self.key, self.key_mask))


def sample_tokens(
    variables: Mapping[str, Any],
    rng: Array,
    *,
    tokens: int = 512,
    sample_mask: Bool[Array, "B"] | None = None,
) -> dict[str, TokenSample]:
    """Draws queries and keys from all samples of a batch, without replacement.

    Args:
      variables: what `model.apply(..., mutable=["alignment_clouds"])` returned beside the outputs.
      rng: a key of `jax.random`.
      tokens: how many of each; all of them, if there are fewer.
      sample_mask: bool `[B]`, False for rows that only fill up the batch; None counts all.

    Returns:
      Per attention call, in the order of the layers and named as in `alignment_table`.

    Raises:
      ValueError: when nothing was sown, `tokens` is below 1, or the mask's shape is not `[B]`.

    Example:
      See `cloud_distances`, which measures the sample.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}.")

    def drawn(x: Array, mask: Array, rng: Array) -> tuple[Array, Array]:
        x, mask = x.reshape(-1, *x.shape[2:]), of_samples(mask.T, sample_mask).T.reshape(-1)
        order = jnp.where(mask, jax.random.uniform(rng, mask.shape), -1.0)
        chosen = jax.lax.top_k(order, min(tokens, len(mask)))[1]
        return x[chosen].astype(jnp.float32), mask[chosen]

    found = {}
    for number, (name, clouds) in enumerate(alignment_clouds(variables).items()):
        rngs = jax.random.split(jax.random.fold_in(rng, number))
        query, query_mask = drawn(clouds.query, clouds.query_mask, rngs[0])
        key, key_mask = drawn(clouds.key, clouds.key_mask, rngs[1])
        found[name] = TokenSample(query, key, query_mask, key_mask)
    return found


def scale_free_mmd(
    query: Float[Array, "N H D"],
    key: Float[Array, "M H D"],
    *,
    query_mask: Bool[Array, "N"] | None = None,
    key_mask: Bool[Array, "M"] | None = None,
) -> Float[Array, "H"]:
    """Squared MMD with the median heuristic, per head (Gretton et al. 2012, JMLR 13, Eq. 3).

    The kernel is `exp(-|x - y|^2 / m)`, and `m` the median of the squared distances between any two
    vectors of queries and keys together: multiplying all of them by a number, or moving them,
    changes nothing. The estimate leaves out each point with itself and has no bias: near 0, and as
    often below it, for two samples of one distribution; about 1 for two tight groups far apart.

    Args:
      query: queries of all samples.
      key: keys of all samples.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.

    Returns:
      One value per head, without unit; 0 with fewer than two queries or keys.

    Raises:
      ValueError: for shapes that do not fit together.
      TypeError: for vectors that are not floating point or masks that are not bool.

    Example:
      >>> cloud = jax.random.normal(jax.random.key(0), (2, 64, 1, 4))
      >>> mmd = jax.jit(scale_free_mmd)
      >>> bool(jnp.abs(mmd(cloud[0], cloud[1]))[0] < 0.05)
      True
      >>> bool(mmd(cloud[0], cloud[1] + 9.0)[0] > 0.8)
      True
    """
    masks = [mask if mask is None else mask[None] for mask in (query_mask, key_mask)]
    numerics.check_clouds(query[None], key[None], *masks)
    queries, keys = numerics.prepare(query[None], masks[0]), numerics.prepare(key[None], masks[1])
    (query, query_valid), (key, key_valid) = queries, keys

    def squared_distances(x: tuple[Array, Array], y: tuple[Array, Array]) -> Array:
        return numerics.squared_distance(*numerics.centred(x[0], y[0], x[1], y[1]))[0]

    between = squared_distances(queries, keys)
    within = squared_distances(queries, queries), squared_distances(keys, keys)
    squared = jnp.block([[within[0], between], [between.mT, within[1]]])  # [H, N + M, N + M]
    valid = jnp.concatenate([query_valid, key_valid], axis=1)[0]

    pairs = valid[:, None] & valid[None, :] & ~jnp.eye(len(valid), dtype=bool)
    median = _median(squared, pairs)[:, None, None]
    # Where more than half of the distances are 0, the median says nothing; their mean does.
    mean = numerics.masked_mean(squared, pairs, axis=(1, 2))[:, None, None]
    scale = jnp.where(median > 0, median, jnp.where(mean > 0, mean, 1.0))
    kernel = jnp.exp(-squared / scale)
    count = query.shape[1]

    def mean_kernel(rows: slice, columns: slice) -> Array:
        return numerics.masked_mean(kernel[:, rows, columns], pairs[rows, columns], axis=(1, 2))

    rows, columns = slice(None, count), slice(count, None)
    # A query and a key may be of one token: they are compared all the same.
    distance = mean_kernel(rows, rows) + mean_kernel(columns, columns)
    distance -= 2.0 * mean_kernel(rows, columns)
    enough = (query_valid.sum() > 1) & (key_valid.sum() > 1)
    return jnp.where(enough, distance, 0.0)


def _median(values: Float[Array, "H Z Z"], valid: Bool[Array, "Z Z"]) -> Float[Array, "H"]:
    """Of the valid values, none of which is negative; without a gradient.

    A CPU takes six times as long to sort them as to find the bits of the middle one, from the
    highest to the lowest: numbers that are not negative have the order of their bits.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(values).astype(jnp.float32), jnp.uint32)
    last = jnp.uint32(0xFFFFFFFF)
    bits, count = jnp.where(valid, bits, last), valid.sum()

    def narrow(bit: Array, found: Array) -> Array:
        candidate = found | jnp.left_shift(jnp.uint32(1), (30 - bit).astype(jnp.uint32))
        below = jnp.sum(bits < candidate[:, None, None], axis=(1, 2))
        return jnp.where(below <= (count - 1) // 2, candidate, found)

    lower = jax.lax.fori_loop(0, 31, narrow, jnp.zeros(len(bits), jnp.uint32))
    above = jnp.where(bits > lower[:, None, None], bits, last).min(axis=(1, 2))
    reached = jnp.sum(bits <= lower[:, None, None], axis=(1, 2))
    upper = jnp.where(reached > count // 2, lower, above)
    middle = jax.lax.bitcast_convert_type(jnp.stack([lower, upper]), jnp.float32)
    return middle.mean(axis=0)


def cloud_distances(
    variables: Mapping[str, Any],
    rng: Array,
    *,
    tokens: int = 512,
    sample_mask: Bool[Array, "B"] | None = None,
) -> dict[str, CloudDistance]:
    """How far apart the queries and keys of every attention and head lie: a yardstick to trust.

    It measures any model, also one that was trained without alignment (`method="none"`), over the
    tokens of all samples together.

    Args:
      variables: as of `sample_tokens`, and its errors.
      rng: a key of `jax.random`, which chooses the tokens.
      tokens: how many queries, and keys, are compared; the time grows with their square.
      sample_mask: as of `sample_tokens`.

    Returns:
      Per attention call, in the order of the layers and named as in `alignment_table`.

    Example:
      >>> import flax.linen as nn
      >>> from align_jax import AlignmentConfig, aligned
      >>> model = aligned(nn.SelfAttention(num_heads=2), AlignmentConfig(method="none"))
      >>> x = jax.random.normal(jax.random.key(0), (3, 5, 8))
      >>> variables = model.init(jax.random.key(1), x)
      >>> _, sown = model.apply(variables, x, mutable=["alignment_clouds"])
      >>> jax.jit(cloud_distances)(sown, jax.random.key(2))[""].mmd.shape
      (2,)
    """
    samples = sample_tokens(variables, rng, tokens=tokens, sample_mask=sample_mask)
    return {name: sample.distance() for name, sample in samples.items()}


def attention_statistics(
    variables: Mapping[str, Any], *, sample_mask: Bool[Array, "B"] | None = None
) -> dict[str, AttentionStatistics]:
    """The entropy, the logits' spread and the rank of scaled dot-product attention.

    It assumes that a query attends to all keys of its sample that are no padding, by the softmax of
    `q.k / sqrt(D)`: causal masks, position biases and other scales are not known here.

    Args:
      variables: as of `sample_tokens`.
      sample_mask: as of `sample_tokens`.

    Returns:
      Per attention call, in the order of the layers and named as in `alignment_table`: means over
      queries and samples.

    Raises:
      ValueError: when nothing was sown.

    Example:
      >>> import flax.linen as nn
      >>> from align_jax import AlignmentConfig, aligned
      >>> model = aligned(nn.SelfAttention(num_heads=2), AlignmentConfig(method="none"))
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4, 8)))
      >>> _, sown = model.apply(variables, jnp.ones((1, 4, 8)), mutable=["alignment_clouds"])
      >>> attention_statistics(sown)[""].rank.round(3).tolist()
      [1.0, 1.0]
    """
    return {
        name: _statistics(clouds, sample_mask)
        for name, clouds in alignment_clouds(variables).items()
    }


def _statistics(clouds: collection.Clouds, sample_mask: Array | None) -> AttentionStatistics:
    rows = of_samples(clouds.query_mask.T, sample_mask).T
    query = numerics.zero_padding(clouds.query, rows).astype(jnp.float32)
    key = numerics.zero_padding(clouds.key, clouds.key_mask).astype(jnp.float32)
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5
    admitted = clouds.key_mask[:, None, None, :]

    mean = numerics.masked_mean(logits, admitted, axis=-1)[..., None]
    variance = numerics.masked_mean((logits - mean) ** 2, admitted, axis=-1)
    shares = jax.nn.softmax(logits, axis=-1, where=admitted)
    uniform = jnp.log(jnp.maximum(admitted.sum(axis=-1), 2))  # one key alone has no entropy
    entropy = jax.scipy.special.entr(shares).sum(axis=-1) / uniform

    shares = jnp.where(rows[:, None, :, None], shares, 0.0)
    products = jnp.einsum("bhnm,bhkm->bhnk", shares, shares)
    trace = jnp.einsum("bhnn->bh", products)
    rank = trace**2 / jnp.maximum((products**2).sum(axis=(-2, -1)), 1e-30)
    of_queries = functools.partial(numerics.masked_mean, mask=rows[:, None, :], axis=(0, 2))
    return AttentionStatistics(
        of_queries(entropy),
        of_queries(jnp.sqrt(variance)),
        numerics.masked_mean(rank, rows.any(axis=-1)[:, None], axis=0),
    )
