"""Conditional transport in kernels for GPU and TPU, where a block of pairs lives in registers.

The numbers are those of `transport_readout`, whose two attention read-outs are computed here as
fused attention computes its own (Dao et al. 2022). One kernel passes over the other cloud with an
online softmax and makes the plans of a block of tokens. A second one passes over it for the
gradients of a block of tokens, and makes both plans again from their normalisers. Each is launched
twice, the second time with queries and keys in each other's place, so that no two programs add to
the same entry. Neither assumes anything of the scores but that they are finite.

The kernels know no masks. A mask is one more feature of the navigation, whose product with the
other side's 1 is 0 for a token that takes part and `MASKED` for padding; what fills up the last
block is padding, too.

A program holds its own tokens as `[tokens, features]` and reads the others, block by block, as
`[features, tokens]`. The features are meant to be few, as the critic's and the navigator's 10 are:
with 64, XLA compiles for a GPU for 20 seconds instead of 2. A TPU holds all tokens of the other
cloud in its fast memory: of 10 features, 60,000 fit.

XLA compiles both kernels for NVIDIA's H100 (through Triton) and for TPU v4, v5e, v5p and v6e. They
have run in Pallas's interpreter alone: nothing is known yet of their speed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton
from jaxtyping import Array, Float

from align_jax import numerics
from align_jax.divergences.transport_readout import MASKED

# Below every sum of scores and masks: where the running maximum starts.
LOWEST = 4 * MASKED

# Triton's products want at least 16 features, and powers of two everywhere.
LEAST_FEATURES = 16


class _Target(NamedTuple):
    """How one kind of device runs the kernels; the numbers are powers of two."""

    own: tuple[int, int]  # the fewest and the most own tokens of a program
    others: tuple[int, int]  # and the fewest and the most others that it looks at together
    options: dict[str, Any]


TARGETS = {
    # Interpreted, to test the kernels where there is neither GPU nor TPU. Never fast.
    "cpu": _Target((16, 16), (16, 16), {"interpret": True}),
    "tpu": _Target(
        (8, 128),
        (128, 256),
        {"compiler_params": tpu.CompilerParams(dimension_semantics=("parallel", "parallel"))},
    ),
    "gpu": _Target((16, 64), (16, 64), {"compiler_params": triton.CompilerParams(num_warps=4)}),
}


@jax.custom_vjp
def mean_costs(
    query: Float[Array, "L N K"],
    key: Float[Array, "L M K"],
    query_navigation: Float[Array, "L N G"],
    key_navigation: Float[Array, "L M G"],
) -> tuple[Float[Array, "L N"], Float[Array, "L M"]]:
    """As `transport_readout.mean_costs`: the same arguments, the same results."""
    return _forward(query, key, query_navigation, key_navigation)[0]


def _forward(*inputs: Array) -> tuple[tuple[Array, Array], Any]:
    of_query, of_key = _by_device(_plans, *inputs)
    return (of_query.mean, of_key.mean), (inputs, of_query, of_key)


def _backward(residuals: Any, cotangents: tuple[Array, Array]) -> tuple[Array, ...]:
    inputs, of_query, of_key = residuals
    of_values, of_navigation = _by_device(_gradients, *inputs, of_query, of_key, *cotangents)
    # A read-out is the derivative of its mean cost where the plan stays as it is.
    direct = (
        weight[..., None] * plan.readout
        for weight, plan in zip(cotangents, (of_query, of_key), strict=True)
    )
    return *(x + y for x, y in zip(of_values, direct, strict=True)), *of_navigation


mean_costs.defvjp(_forward, _backward)


def _by_device(function: Callable[..., Any], *arguments: Any) -> Any:
    """The choice falls when the program is lowered: for the device that will run it."""
    branches = {name: functools.partial(function, target) for name, target in TARGETS.items()}

    @jax.custom_jvp
    def launch(*arguments: Any) -> Any:
        return jax.lax.platform_dependent(*arguments, default=branches["gpu"], **others)

    @launch.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise ValueError(
            "implementation='fused' has a first derivative alone, since nothing differentiates its "
            "kernels. For a second one use 'blockwise' or 'dense'."
        )

    others = {name: branch for name, branch in branches.items() if name != "gpu"}
    return launch(*arguments)


class _Plan(NamedTuple):
    """One direction, for each token that is carried."""

    log_normaliser: Float[Array, "L N"]
    readout: Float[Array, "L N K"]
    mean: Float[Array, "L N"]


def _plans(target: _Target, *inputs: Array) -> tuple[_Plan, _Plan]:
    """Both directions' plans."""
    query, key, query_navigation, key_navigation = _prepared(target, *inputs)

    def plan(own: Array, others: Array, values: Array, own_values: Array, count: int) -> _Plan:
        peak, sums = _launch(_plan_kernel, target, (own,), (others, values), (1, values.shape[-1]))
        length, features = own_values.shape[1:]
        sums = sums[:, :length, :features]
        total = sums[..., count]
        total = jnp.where(total > 0, total, 1.0)  # a plan over no token reads out 0
        readout = sums / total[..., None]
        log_normaliser = peak[:, :length, 0] + jnp.log(total)
        return _Plan(log_normaliser, readout, jnp.sum(own_values * readout, axis=-1))

    # The values' column of ones adds up the plan's normaliser: see `cost_factors`.
    return (
        plan(query_navigation, key_navigation, key, inputs[0], count=-2),
        plan(key_navigation, query_navigation, query, inputs[1], count=-1),
    )


def _gradients(target: _Target, *arguments: Any) -> tuple[list[Array], list[Array]]:
    """Gradients through the plans: of query and key factors, and of their navigation."""
    *inputs, of_query, of_key, query_weight, key_weight = arguments
    query, key, query_navigation, key_navigation = _prepared(target, *inputs)

    def side(navigation: Array, values: Array, plan: _Plan, weight: Array) -> tuple[Array, ...]:
        numbers = jnp.stack([plan.log_normaliser, weight, plan.mean], axis=-1)
        padding = navigation.shape[1] - weight.shape[1]
        return navigation, values, jnp.pad(numbers, ((0, 0), (0, padding), (0, 1)))

    sides = (
        side(query_navigation, query, of_query, query_weight),
        side(key_navigation, key, of_key, key_weight),
    )
    widths = query.shape[-1], query_navigation.shape[-1]
    results = [
        _launch(_gradient_kernel, target, own, others, widths)
        for own, others in (sides, sides[::-1])
    ]

    def cut(which: int, originals: list[Array]) -> list[Array]:
        pairs = zip(results, originals, strict=True)
        return [result[which][:, : x.shape[1], : x.shape[2]] for result, x in pairs]

    return cut(0, inputs[:2]), cut(1, inputs[2:])


def _prepared(
    target: _Target, query: Array, key: Array, query_navigation: Array, key_navigation: Array
) -> tuple[Array, ...]:
    """All four filled up to whole blocks, with masks in the navigation."""

    def whole(x: Array) -> Array:
        # Tokens are the own ones in one launch and the others in the next.
        block = max(_block(x.shape[1], target.own), _block(x.shape[1], target.others))
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0)))

    query, key, query_navigation, key_navigation = map(
        whole, (query, key, query_navigation, key_navigation)
    )
    # The factors' columns of ones tell tokens from padding.
    query_mask = jnp.where(query[..., -1:] > 0, 0.0, MASKED)
    key_mask = jnp.where(key[..., -2:-1] > 0, 0.0, MASKED)
    query_navigation = jnp.concatenate(
        [query_navigation, query_mask, jnp.ones_like(query_mask)], axis=-1
    )
    key_navigation = jnp.concatenate([key_navigation, jnp.ones_like(key_mask), key_mask], axis=-1)
    return tuple(
        jnp.pad(
            x, ((0, 0), (0, 0), (0, max(LEAST_FEATURES, _power_of_two(x.shape[2])) - x.shape[2]))
        )
        for x in (query, key, query_navigation, key_navigation)
    )


def _block(length: int, limits: tuple[int, int]) -> int:
    return min(max(_power_of_two(length), limits[0]), limits[1])


def _power_of_two(length: int) -> int:
    """The smallest that is no less than a length."""
    return 1 << (length - 1).bit_length()


def _launch(
    kernel: Callable[..., None],
    target: _Target,
    own: tuple[Array, ...],
    others: tuple[Array, ...],
    widths: tuple[int, int],
) -> Any:
    """Runs a kernel for every block of own tokens `[L, N, ...]` of every head.

    Returns:
      Two arrays `[L, N, width]`.
    """
    heads, length = own[0].shape[:2]
    rows, columns = _block(length, target.own), _block(others[0].shape[1], target.others)
    transposed = [jnp.swapaxes(x, 1, 2) for x in others]

    def block(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, rows, width), lambda head, row: (head, row, 0))

    def whole(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, *x.shape[1:]), lambda head, row: (head, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, columns=columns),
        grid=(heads, length // rows),
        in_specs=[*(block(x.shape[2]) for x in own), *map(whole, transposed)],
        out_specs=[block(width) for width in widths],
        out_shape=[jax.ShapeDtypeStruct((heads, length, width), jnp.float32) for width in widths],
        **target.options,
    )(*own, *transposed)


def _product(x: Array, y: Array, contracted: int = 0) -> Array:
    """`x y`, or `x y'` if the second matrix's axis 1 is contracted."""
    axes = (((1,), (contracted,)), ((), ()))
    return jax.lax.dot_general(
        x, y, axes, precision=numerics.PRECISION, preferred_element_type=jnp.float32
    )


def _over_others(body: Callable[..., Any], length: int, columns: int, start: Any) -> Any:
    """Folds `body(slice of the others, carry)` over their blocks."""

    def step(number: Any, carry: Any) -> Any:
        return body(pl.ds(pl.multiple_of(number * columns, columns), columns), carry)

    return jax.lax.fori_loop(0, length // columns, step, start)


def _plan_kernel(own: Any, others: Any, values: Any, peak: Any, sums: Any, *, columns: int) -> None:
    """The highest score of each own token, and the values' sums weighted relative to it."""

    def body(block: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        peak, sums = carry
        scores = _product(own[...], others[:, block])
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.exp(scores - new_peak)
        sums = sums * jnp.exp(peak - new_peak) + _product(weights, values[:, block], contracted=1)
        return new_peak, sums

    start = jnp.full(peak.shape, LOWEST, jnp.float32), jnp.zeros(sums.shape, jnp.float32)
    peak[...], sums[...] = _over_others(body, others.shape[1], columns, start)


def _gradient_kernel(
    own_navigation: Any,
    own_values: Any,
    own_numbers: Any,
    navigation: Any,
    values: Any,
    numbers: Any,
    of_values: Any,
    of_navigation: Any,
    *,
    columns: int,
) -> None:
    """The gradients of the own tokens' values and navigation; numbers are those of `_gradients`."""
    own_log, own_weight, own_mean = (own_numbers[:, i : i + 1] for i in range(3))

    def body(block: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        log, weight, mean = (numbers[i : i + 1, block] for i in range(3))
        scores = _product(own_navigation[...], navigation[:, block])
        costs = _product(own_values[...], values[:, block])
        # No probability exceeds 1, though the rounding of huge scores may differ between kernels.
        own_plan = jnp.exp(jnp.minimum(scores - own_log, 0.0)) * own_weight
        plan = jnp.exp(jnp.minimum(scores - log, 0.0)) * weight
        of_scores = own_plan * (costs - own_mean) + plan * (costs - mean)
        return (
            carry[0] + _product(plan, values[:, block], contracted=1),
            carry[1] + _product(of_scores, navigation[:, block], contracted=1),
        )

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (of_values, of_navigation))
    of_values[...], of_navigation[...] = _over_others(body, navigation.shape[1], columns, start)
