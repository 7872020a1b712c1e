"""What several divergences share: masked means, safe directions, validated inputs.

Shapes in letters, here and everywhere: B batch, N queries, M keys, H heads, D head dimension,
F feature dimension.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Entries beyond this saturate: products of two of them, summed over any realistic number of
# features and tokens, still fit float32, so no input that is finite can overflow to inf or NaN.
SATURATION = 1e9

# Clouds whose largest entry is smaller have no scale: a fraction of it might be no normal float32.
_NOTHING = 1e-33

_LARGEST = float(jnp.finfo(jnp.float32).max)
_SMALLEST = 1e-18  # whose square float32 holds

# Below this norm the gradient of a direction is damped; see `unit_vectors`.
_DAMPING_RADIUS = 1e-2

# Of the squared norms that a squared distance is the difference of: below, it is their rounding.
_ROUNDING = 1e-6

# GPUs and TPUs multiply float32 matrices with fewer bits unless told otherwise, and distances and
# transport plans are differences of nearly equal numbers.
PRECISION = jax.lax.Precision.HIGHEST


def masked_mean(
    values: Float[Array, "*shape"], mask: Bool[Array, "*shape"], axis: int | tuple[int, ...]
) -> Float[Array, "..."]:
    """Mean over `axis` of the entries that `mask` admits, whatever others are; 0 where it has none.

    The mask need only be broadcastable to `values`.
    """
    mask = jnp.broadcast_to(mask, values.shape)
    count = jnp.sum(mask, axis=axis)
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def token_weights(mask: Bool[Array, "B N"]) -> Float[Array, "B N"]:
    """Uniform probabilities over the tokens that take part; all 0 where none does."""
    count = jnp.sum(mask, axis=-1, keepdims=True)
    return mask.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)


def with_leading_axes(x: Array, like: Array) -> Array:
    """`x` with axes of length 1 in front, as many as `like` has more: what broadcasting implies.

    Explicitly, for where `jax_numpy_rank_promotion` is "raise".
    """
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def zero_padding(x: Array, mask: Bool[Array, "B N"] | None) -> Array:
    """Zeroes the tokens of `x` `[B, N, ...]` outside `mask`: NaN there reaches no gradient."""
    if mask is None:
        return x
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))


def _direction_and_norm(x: Array) -> tuple[Array, Array]:
    # Dividing by the largest entry first keeps the squares of huge and of tiny vectors in range.
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    nonzero = ~(largest <= jnp.finfo(x.dtype).tiny)
    scale = jnp.where(nonzero, largest, 1.0)
    # Over many rows, XLA's maximum on a CPU forgets NaN, which must not become 0.
    scaled = jnp.where(nonzero, x / scale, 0.0 * x)
    length = jnp.sqrt(jnp.where(nonzero, jnp.sum(scaled * scaled, axis=-1, keepdims=True), 1.0))
    return scaled / length, jnp.where(nonzero, scale * length, 0.0)


@jax.custom_jvp
def unit_vectors(x: Float[Array, "*shape F"]) -> Float[Array, "*shape F"]:
    """Directions `x / |x|` along the last axis, safe at and near zero.

    The value is exact for every vector above the smallest normal float32, and 0 for zero. The
    derivative of a direction grows as 1/|x|, so a feature that dropout or a ReLU has all but
    switched off would send an enormous gradient into its network. It is exact for |x| >= 0.01 and
    falls linearly to 0 below, so its norm never exceeds 100.
    """
    return _direction_and_norm(x)[0]


@unit_vectors.defjvp
def _unit_vectors_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    direction, norm = _direction_and_norm(x)
    slope = jnp.where(
        norm >= _DAMPING_RADIUS,
        1.0 / jnp.maximum(norm, _DAMPING_RADIUS),
        norm / _DAMPING_RADIUS**2,
    )
    radial = jnp.sum(direction * tangent, axis=-1, keepdims=True)
    return direction, slope * (tangent - direction * radial)


def prepare(x: Array, mask: Bool[Array, "B N"] | None) -> tuple[Array, Bool[Array, "B N"]]:
    """What every divergence does first: float32, padding zeroed, range saturated, mask explicit.

    Finite entries beyond `SATURATION` (1e9) become it. Those that are NaN or infinite become NaN,
    and so does any gradient that reaches them: what spoils a computation must show where it is.
    Padding of `x` `[B, N, ...]` may hold anything.
    """
    x = zero_padding(x.astype(jnp.float32), mask)
    # A multiple of 0 is 0, or NaN; so is its gradient, where the clipping has none.
    return jnp.clip(x, -SATURATION, SATURATION) + 0.0 * x, explicit_mask(x, mask)


def explicit_mask(x: Array, mask: Bool[Array, "B N"] | None) -> Bool[Array, "B N"]:
    """The mask of `x` `[B, N, ...]`; None is that of which every token takes part."""
    return jnp.ones(x.shape[:2], bool) if mask is None else mask


def product(x: Float[Array, "*L N K"], y: Float[Array, "*L K M"]) -> Float[Array, "*L N M"]:
    """`x y` for the last two axes, with all of float32's digits."""
    return jnp.matmul(x, y, precision=PRECISION)


def products(x: Float[Array, "B N H F"], y: Float[Array, "B M H F"]) -> Float[Array, "B H N M"]:
    """The inner products of the tokens of two clouds, within each head."""
    return jnp.einsum("bnhf,bmhf->bhnm", x, y, precision=PRECISION)


def vector_costs(
    query: Float[Array, "B N H F"], key: Float[Array, "B M H F"], cost: str
) -> Float[Array, "B H N M"]:
    """The cost of moving each query to each key, of what `cost_vectors` returns.

    It is `1 - cosine`, in `[0, 2]` and 1 against a zero vector, or the squared distance.
    """
    return 1.0 - products(query, key) if cost == "cosine" else squared_distance(query, key)


def cost_vectors(
    query: Array, key: Array, cost: str, query_mask: Array, key_mask: Array
) -> tuple[Array, Array]:
    """What the cost is measured between: directions for the cosine, else the centred clouds."""
    if cost == "cosine":
        return unit_vectors(query), unit_vectors(key)
    return centred(query, key, query_mask, key_mask)


def squared_distance(
    x: Float[Array, "B N H F"], y: Float[Array, "B M H F"]
) -> Float[Array, "B H N M"]:
    """Squared Euclidean distances between the tokens of two clouds, within each head.

    As differences of numbers of the size of the squared norms, for which reason clouds are
    `centred` first. A distance that is only these numbers' rounding is 0, with its gradient: so
    that a point coincides with itself, however far from the origin it lies.
    """
    squares = jnp.moveaxis(jnp.sum(x * x, axis=-1), 1, 2)[..., :, None]
    squares += jnp.moveaxis(jnp.sum(y * y, axis=-1), 1, 2)[..., None, :]
    distance = squares - 2.0 * products(x, y)
    # True of no NaN, which stays.
    rounding = jax.lax.stop_gradient(jnp.where(distance <= _ROUNDING * squares, distance, 0.0))
    return distance - rounding


def clamp_at_zero(x: Array) -> Array:
    """`max(x, 0)` with the gradient of `x`.

    For what is never negative but for rounding: clamping in the ordinary way would cut the
    gradient just where two points, or two clouds, come together.
    """
    return x + jax.lax.stop_gradient(jnp.maximum(x, 0.0) - x)


def centred(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    query_mask: Bool[Array, "B N"],
    key_mask: Bool[Array, "B M"],
) -> tuple[Array, Array]:
    """Moves both clouds by one vector, so that distances between them round as little as possible.

    Distances do not notice a common shift, but `|x|^2 + |y|^2 - 2xy` loses digits when the clouds
    lie far from the origin. The shift is the mean of the narrower cloud (that of the queries if
    they are alike), of the tokens that take part: near pairs then lie near the origin. Padding,
    which is 0, stays so.
    """
    clouds = (query, query_mask), (key, key_mask)
    means, spreads = [], []
    for x, mask in clouds:
        weights = token_weights(mask)[..., None, None]
        means.append(jnp.sum(x * weights, axis=1, keepdims=True))
        squares = (x - means[-1]) ** 2 * weights
        spreads.append(jnp.sum(squares, axis=(1, 3), keepdims=True))
    # A cloud without tokens has no place and no spread; what it is compared with does not matter.
    shift = jax.lax.stop_gradient(jnp.where(spreads[1] < spreads[0], means[1], means[0]))
    return zero_padding(query - shift, query_mask), zero_padding(key - shift, key_mask)


def at_unit_scale(
    query: Array,
    key: Array,
    query_mask: Bool[Array, "B N"] | None,
    key_mask: Bool[Array, "B M"] | None,
    *,
    axes: tuple[int, ...] = (1, 3),
) -> tuple[Array, Array]:
    """Divides both clouds by the root of their mean square, through which no gradient runs.

    The mean goes over `axes`: tokens and features of each head, or (1, 2, 3), all heads too. The
    clouds `[B, N, H, D]` keep their dtype, and are as they were where all is 0.
    """
    query_mask, key_mask = explicit_mask(query, query_mask), explicit_mask(key, key_mask)
    clouds = (query, query_mask), (key, key_mask)
    rows = jnp.concatenate([zero_padding(x.astype(jnp.float32), mask) for x, mask in clouds], 1)
    rows = jax.lax.stop_gradient(rows)
    # The queries as a whole weigh as much as the keys, however many there are of either.
    weights = 0.5 * jnp.concatenate([token_weights(query_mask), token_weights(key_mask)], axis=1)
    largest = jnp.max(jnp.abs(rows), axis=axes, keepdims=True)
    largest = jnp.where(largest > _NOTHING, largest, 1.0)
    squares = (rows / largest) ** 2 * weights[..., None, None]
    mean = jnp.mean(squares, axis=axes, keepdims=True) * rows.shape[1]
    scale = largest * jnp.sqrt(jnp.where(mean > 0, mean, 1.0))
    return (query / scale).astype(query.dtype), (key / scale).astype(key.dtype)


def at_unit_spread(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    query_mask: Bool[Array, "B N"],
    key_mask: Bool[Array, "B M"],
) -> tuple[Array, Array]:
    """Moves and divides both clouds so that their mean squared distance is 2, any two of them.

    Queries as a whole weigh as much as keys. No gradient runs through shift and scale.
    """
    weights = token_weights(query_mask)[..., None, None], token_weights(key_mask)[..., None, None]
    clouds = zip((query, key), weights, strict=True)
    means = [jnp.sum(x * weight, axis=1, keepdims=True) for x, weight in clouds]
    shift = jax.lax.stop_gradient(0.5 * (means[0] + means[1]))
    query, key = zero_padding(query - shift, query_mask), zero_padding(key - shift, key_mask)
    # The mean squared distance of two draws is twice the trace of the covariance.
    query, key = at_unit_scale(query, key, query_mask, key_mask)
    root = query.shape[-1] ** 0.5  # of the mean over features makes the sum over them
    return query / root, key / root


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError, naming the nearest match, unless `value` is one of `choices`."""
    if value not in choices:
        folded = {choice.lower(): choice for choice in choices}
        near = [folded[x] for x in difflib.get_close_matches(str(value).lower(), folded, n=1)]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.{hint}")


def check_patterns(name: str, patterns: Iterable[str]) -> None:
    """Raises ValueError unless `patterns` are several, each a regular expression."""
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise ValueError(f"{name} must be a tuple of regular expressions, got {patterns!r}.")
    for pattern in patterns:
        try:
            re.search(pattern, "")
        except (re.error, TypeError) as error:
            raise ValueError(f"{name} holds {pattern!r}, no regular expression: {error}.") from None


def concrete(x: Any) -> np.ndarray | None:
    """The numbers of an array, to be checked; None while a function is traced: there are none.

    So a check costs a compiled step nothing, and refuses nothing in it either.
    """
    if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
        return None
    return np.asarray(x)


def first_wrong(
    x: Any, wrong: Callable[[np.ndarray], np.ndarray], where: Any = None
) -> tuple[int, ...] | None:
    """Where the first wrong entry is among those that count; None if there is none, or traced."""
    numbers, counted = concrete(x), concrete(True if where is None else where)
    if numbers is None or counted is None:
        return None
    places = np.argwhere(wrong(numbers) & counted)
    return tuple(places[0].tolist()) if len(places) else None


def check_indices(
    name: str, indices: Any, count: int, what: str, where: Any = None, advice: str = ""
) -> None:
    """Raises unless `indices` are whole numbers from 0 to `count - 1`, as far as they are known.

    Args:
      name: what the caller calls them.
      indices: an array; its numbers are checked unless it is traced.
      count: how many there are to be chosen from.
      what: what of, in the plural.
      where: True for the ones that count; None for all.
      advice: what to do, a sentence.
    """
    if not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
        raise TypeError(f"{name} must be integers, got {jnp.result_type(indices)}.")
    place = first_wrong(indices, lambda numbers: (numbers < 0) | (numbers >= count), where)
    if place is not None:
        raise ValueError(
            f"{name} hold {np.asarray(indices)[place]} at {list(place)}, but there are {count} "
            f"{what}, 0 to {count - 1}.{advice and ' ' + advice}"
        )


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError unless `value` lies in `[0, 1]`."""
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def check_positive(name: str, value: float, *, zero: bool = False, squared: bool = False) -> None:
    """Raises ValueError unless `value` (`squared`: and its square) is above 0 (or 0, if `zero`)."""
    number = _is_number(value)
    tiny = number and squared and 0 < value < _SMALLEST
    if tiny or not number or not (0 < value <= _LARGEST or (zero and value == 0)):
        least = "1e-18 or more" if tiny else "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be {least} and finite, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) or getattr(value, "shape", None) == ()


def check_clouds(
    query: Array,
    key: Array,
    query_mask: Array | None,
    key_mask: Array | None,
    *,
    names: tuple[str, str] = ("query", "key"),
    axes: str = "B N H D",
) -> None:
    """Raises ValueError or TypeError unless two clouds and their masks fit together.

    `axes` are the letters of the query's; the key's differ in M alone.
    """
    letters = axes.split()
    key_axes = axes.replace("N", "M")
    for name, x, expected in zip(names, (query, key), (axes, key_axes), strict=True):
        if not hasattr(x, "ndim") or x.ndim != len(letters):
            raise ValueError(
                f"{name} must have shape [{expected.replace(' ', ', ')}], "
                f"got {getattr(x, 'shape', type(x).__name__)}."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point, got {x.dtype}.")
        if 0 in x.shape:
            raise ValueError(
                f"{name} is empty: shape {x.shape}. Every axis needs at least 1 entry."
            )
    for axis, letter in enumerate(letters):
        if letter != "N" and query.shape[axis] != key.shape[axis]:
            raise ValueError(
                f"{names[0]} and {names[1]} differ in axis {axis} ({letter}): "
                f"{query.shape} against {key.shape}."
            )
    for name, mask, x in (("query_mask", query_mask, query), ("key_mask", key_mask, key)):
        if mask is None:
            continue
        kind = getattr(mask, "dtype", type(mask).__name__)
        if kind != jnp.bool_:
            raise TypeError(
                f"{name} must be a bool array (True = takes part), got {kind}. Convert ones and "
                f"zeros with mask > 0; a mask that is added to logits, with mask == 0."
            )
        if mask.shape != x.shape[:2]:
            raise ValueError(f"{name} must have shape {x.shape[:2]}, got {mask.shape}.")
