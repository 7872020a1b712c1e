"""Entropy-regularised optimal transport, AA-OT (Zhang et al. 2021, Eq. 3), solved by ott-jax."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Float, Int

from align_jax import numerics
from align_jax.divergences import blocks
from align_jax.divergences.conditional_transport import COSTS

# At a small epsilon Sinkhorn needs hundreds of iterations from a cold start. It begins with one
# larger by this factor, which shrinks geometrically to the one asked for, in so many iterations.
_FIRST_EPSILON, _EPSILON_DECAY, _ANNEALING = 20.0, 0.8, 14
# Its iterations come near the solution fast and then gain digits slowly; a few Newton steps from
# there reach what float32 can represent, at the price of a few iterations.
_NEWTON_STEPS = 6
# Residual at which they end before; float32's rounding leaves some 4e-6 between 100 tokens.
_NEWTON_RESIDUAL = 1e-5
# Half the distance between float32's numbers at 1: what each entry of the plan, an exponential of
# costs over epsilon, may be off by, times that quotient.
_HALF_ULP = 2.0**-24
# Of the linear systems, whose matrix has eigenvalues in [0, 1]; see `_solve_symmetric`.
_RIDGE = 1e-5
_REFINEMENTS = 4


class SinkhornReport(NamedTuple):
    """How well Sinkhorn's iterations did, per sample and head.

    Attributes:
      iterations: how many were run.
      residual: L1 distance between the plan's marginals and the wanted ones; at most the
        threshold where the iterations converged.
      converged: whether they did.

    Example:
      >>> cloud = jnp.eye(3).reshape(1, 3, 1, 3)
      >>> _, report = optimal_transport(cloud, cloud, with_report=True)
      >>> report.converged.tolist()
      [[True]]
    """

    iterations: Int[Array, "B H"]
    residual: Float[Array, "B H"]
    converged: Bool[Array, "B H"]


def optimal_transport(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    *,
    query_mask: Bool[Array, "B N"] | None = None,
    key_mask: Bool[Array, "B M"] | None = None,
    epsilon: float = 0.01,
    cost: str = "cosine",
    threshold: float = 1e-3,
    max_iterations: int = 1000,
    with_report: bool = False,
) -> Float[Array, "B H"] | tuple[Float[Array, "B H"], SinkhornReport]:
    """Transport cost between queries and keys under the entropic plan: `sum_ij c_ij P_ij`.

    The plan has uniform marginals over the tokens that take part; the entropy term is not part of
    the value. Derivatives come from the optimality conditions of the plan (implicit
    differentiation), not from unrolled iterations, so a gradient costs one linear solve and is as
    exact as the plan. They are right in forward and in reverse mode, and of any order.

    Args:
      query: the queries.
      key: the keys.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.
      epsilon: strength of the entropy term, in units of the cost; above 0. Of costs up to `c`,
        float32 meets the marginals to about `6e-8 * c / epsilon`. Where that exceeds the threshold,
        epsilon is refused; under `jax.jit`, where "squared_euclidean" costs are not known, the
        value is then the cost of no plan, and the report says that nothing converged.
      cost: "cosine" (`1 - cosine`) or "squared_euclidean".
      threshold: Sinkhorn stops when the marginals are met to this L1 distance; above 0.
      max_iterations: it stops after this many in any case.
      with_report: also return a `SinkhornReport`, for logging. Without, a plan that has not
        converged is warned of, unless the arrays are traced.

    Returns:
      One value per sample and head, in units of the cost; 0 for a sample without queries or keys.
      With `with_report`, a pair of that and the report.

    Raises:
      ValueError: for a wrong rank, an empty axis, shapes that do not fit, an unknown cost,
        epsilon, threshold or max_iterations not above 0, infinite or no number, or an epsilon below
        float32's reach; or under `jax_enable_checks`, which ott-jax fails.
      TypeError: for vectors that are not floating point or masks that are not bool.
      ImportError: when ott-jax is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> cloud = jnp.eye(3).reshape(1, 3, 1, 3)
      >>> optimal_transport(cloud, cloud).round(3).tolist()
      [[0.0]]
    """
    numerics.check_clouds(query, key, query_mask, key_mask)
    numerics.check_choice("cost", cost, COSTS)
    if getattr(jax.config, "jax_enable_checks", False):
        raise ValueError(
            "optimal_transport cannot be traced under jax_enable_checks: the logsumexp of ott-jax "
            "takes an axis for an array, which they refuse. Switch them off, or use another method."
        )
    numerics.check_positive("epsilon", epsilon)
    numerics.check_positive("threshold", threshold)
    numerics.check_positive("max_iterations", max_iterations)
    if max_iterations != int(max_iterations):
        raise ValueError(f"max_iterations must be a whole number, got {max_iterations}.")
    query, query_mask = numerics.prepare(query, query_mask)
    key, key_mask = numerics.prepare(key, key_mask)
    vectors = numerics.cost_vectors(query, key, cost, query_mask, key_mask)
    costs = numerics.vector_costs(*vectors, cost)
    if cost == "cosine":
        _check_reach(2.0, epsilon, threshold, "the cosine's costs reach")
    elif (known := numerics.concrete(costs)) is not None:
        counted = query_mask[:, None, :, None] & key_mask[:, None, None, :]
        largest = np.max(known, where=np.asarray(counted), initial=0.0)
        _check_reach(float(largest), epsilon, threshold, "the squared distances reach")
    both = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)
    # A sample without tokens has no plan; give it all of them and drop the value below.
    marginals = (
        numerics.token_weights(query_mask | ~both[:, None]),
        numerics.token_weights(key_mask | ~both[:, None]),
    )

    value, report = _transport_costs(costs, *marginals, epsilon, threshold, max_iterations)
    value = jnp.where(both[:, None], value, 0.0)
    if with_report:
        return value, report
    _warn_of(report, both, epsilon, threshold, max_iterations)
    return value


def _check_reach(largest: float, epsilon: float, threshold: float, what: str) -> None:
    least = largest * _HALF_ULP / threshold
    if epsilon < least:
        raise ValueError(
            f"epsilon {epsilon:g} is below float32's reach: {what} {largest:g}, of which float32 "
            f"keeps too few digits to meet the marginals to the threshold, {threshold:g}. Use an "
            f"epsilon of at least {least:.2g}, smaller costs, or a larger threshold."
        )


def _warn_of(
    report: SinkhornReport, both: Array, epsilon: float, threshold: float, max_iterations: int
) -> None:
    converged, counted = numerics.concrete(report.converged), numerics.concrete(both)
    if converged is None or counted is None:
        return
    residual = np.asarray(report.residual)[counted]
    failed = ~converged[counted] & np.isfinite(residual)  # NaN shows in the value
    if failed.any():
        warnings.warn(
            f"{failed.sum()} of {failed.size} transport plans at epsilon {epsilon:g} have not "
            f"converged after {max_iterations} iterations: their marginals are off by up to "
            f"{residual[failed].max():.2g}, the threshold is {threshold:g}. Their costs are those "
            f"of no plan. Raise epsilon or max_iterations; with_report=True tells which.",
            stacklevel=3,
        )


# Compiled here, because iterations that run op by op would take seconds per call outside of jit.
@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _transport_costs(
    costs: Float[Array, "B H N M"],
    rows: Float[Array, "B N"],
    columns: Float[Array, "B M"],
    epsilon: float,
    threshold: float,
    max_iterations: int,
) -> tuple[Float[Array, "B H"], SinkhornReport]:
    def one_head(costs: Array, rows: Array, columns: Array) -> tuple[Array, SinkhornReport]:
        fixed = jax.lax.stop_gradient(costs)
        plan, report = _plan(fixed, rows, columns, epsilon, threshold, max_iterations)
        return jnp.sum(costs * _moving(costs, plan, epsilon)), report

    # A group of heads at a time: its costs stay in the cache from one iteration to the next, and
    # its iterations end when its own plans have converged.
    def over_groups(shape: tuple[int, int], *arrays: Array) -> tuple[Array, SinkhornReport]:
        return blocks.map_heads(jax.vmap(one_head), shape[0], *arrays)

    batch, heads, queries, keys = costs.shape
    per_head = (jnp.repeat(weights, heads, axis=0) for weights in (rows, columns))
    costs = costs.reshape(batch * heads, queries, keys)
    results = blocks.in_blocks(over_groups, *costs.shape, costs, *per_head)
    return jax.tree.map(lambda x: x.reshape(batch, heads), results)


def _plan(
    costs: Array, rows: Array, columns: Array, epsilon: float, threshold: float, max_iterations: int
) -> tuple[Float[Array, "N M"], SinkhornReport]:
    try:
        from ott.geometry import epsilon_scheduler, geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn
    except ImportError as error:
        raise ImportError(
            "optimal_transport needs 'ott-jax' (the extra \"ot\"): pip install ott-jax."
        ) from error
    annealed = epsilon_scheduler.Epsilon(epsilon, init=_FIRST_EPSILON, decay=_EPSILON_DECAY)
    problem = linear_problem.LinearProblem(
        geometry.Geometry(cost_matrix=costs, epsilon=annealed), rows, columns
    )
    solver = sinkhorn.Sinkhorn(
        threshold=threshold,
        max_iterations=max_iterations,
        # Not before epsilon is the one asked for. (At exactly `max_iterations` ott would not look
        # at the error at all.)
        min_iterations=min(_ANNEALING, max_iterations - 1),
    )
    # ott relies on both.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        output = solver(problem)
    has_mass = (rows > 0)[:, None] & (columns > 0)[None, :]

    def plan_of(f: Array, g: Array) -> Array:
        exponent = (f[:, None] + g[None, :] - costs) / epsilon
        return jnp.where(has_mass, jnp.exp(jnp.where(has_mass, exponent, 0.0)), 0.0)

    def residual_of(plan: Array) -> Array:
        return jnp.sum(jnp.abs(plan.sum(1) - rows)) + jnp.sum(jnp.abs(plan.sum(0) - columns))

    # Tokens without mass have potentials of -inf; any finite number serves as well.
    f, g = jnp.where(rows > 0, output.f, 0.0), jnp.where(columns > 0, output.g, 0.0)

    def unfinished(best: Any) -> Array:
        return (best[0] < _NEWTON_STEPS) & (best[-1] > _NEWTON_RESIDUAL)

    def newton(best: Any) -> Any:
        step, f, g, plan, residual = best
        step_f, step_g = _solve_symmetric(plan, rows - plan.sum(1), columns - plan.sum(0))
        # One unit changes the plan e-fold; a longer step leaves the region where Newton's holds.
        length = jnp.maximum(jnp.max(jnp.abs(step_f)), jnp.max(jnp.abs(step_g)))
        scale = epsilon / jnp.maximum(length, 1.0)
        new_f, new_g = f + scale * step_f, g + scale * step_g
        new_plan = plan_of(new_f, new_g)
        new = (new_f, new_g, new_plan, residual_of(new_plan))
        better = new[-1] < residual  # False for NaN too
        kept = (jnp.where(better, x, y) for x, y in zip(new, best[1:], strict=True))
        return step + 1, *kept

    plan = plan_of(f, g)
    start = (jnp.zeros((), jnp.int32), f, g, plan, residual_of(plan))
    *_, plan, residual = jax.lax.while_loop(unfinished, newton, start)
    iterations = jnp.asarray(output.n_iters, jnp.int32)
    return plan, SinkhornReport(iterations, residual, residual <= threshold)


def _solve_symmetric(
    plan: Float[Array, "*L N M"],
    right_rows: Float[Array, "*L N"],
    right_columns: Float[Array, "*L M"],
) -> tuple[Float[Array, "*L N"], Float[Array, "*L M"]]:
    """Solves `a x + P y = right_rows`, `P' x + b y = right_columns`, `a` and `b` P's marginals.

    After elimination of `x` and scaling by the square roots of the marginals the matrix is
    `I - Q'Q` with the singular values of `Q` in `[0, 1]`. It is singular: a constant may shift from
    one part to the other, which leaves every `x_i + y_j` as it is. And the closer the plan is to an
    assignment, the more of its eigenvalues tend to 0, each for a group of tokens that may shift by
    itself. A ridge makes it safe to factorise, and iterative refinement takes the ridge's effect
    out again wherever the matrix determines the answer.
    """
    rows, columns = plan.sum(-1), plan.sum(-2)
    root_rows = jnp.sqrt(jnp.where(rows > 0, rows, 1.0))
    root_columns = jnp.sqrt(jnp.where(columns > 0, columns, 1.0))
    scaled = plan / root_rows[..., :, None] / root_columns[..., None, :]
    transposed = scaled.mT

    def times(matrix: Array, vector: Array) -> Array:
        return numerics.product(matrix, vector[..., None])[..., 0]

    right_rows, right_columns = right_rows / root_rows, right_columns / root_columns
    product = numerics.product(transposed, scaled)
    identity = numerics.with_leading_axes(jnp.eye(plan.shape[-1], dtype=plan.dtype), product)
    matrix = identity - product
    factor = jax.scipy.linalg.cho_factor(matrix + _RIDGE * identity, lower=True)
    right = right_columns - times(transposed, right_rows)
    y = jnp.zeros_like(right)
    for _ in range(_REFINEMENTS):
        missing = right - times(matrix, y)
        y += jax.scipy.linalg.cho_solve(factor, missing[..., None])[..., 0]
    # Should the factorisation fail in spite of the ridge, take the plan as fixed.
    y = jnp.where(jnp.all(jnp.isfinite(y), axis=-1, keepdims=True), y, 0.0)
    x = right_rows - times(scaled, y)
    return x / root_rows, y / root_columns


def _moving(
    costs: Float[Array, "*L N M"], plan: Float[Array, "*L N M"], epsilon: float
) -> Float[Array, "*L N M"]:
    """The plan, which is optimal for the costs, with its derivatives of any order for them.

    By the implicit function theorem: with `P = exp((f + g - c) / epsilon)` and fixed marginals,
    `dP = P (x + y - dc) / epsilon`, where `(x, y)` solves the linear system by which the row and
    column sums of `dP` are 0.
    """
    return _moving_p.bind(costs, plan, epsilon=epsilon)


# A primitive, since jax.lax.scan forgets the rule of a jax.custom_jvp after the first derivative,
# and the second one would take the plan for a constant.
_moving_p = Primitive("optimal_plan")
_moving_p.def_impl(lambda costs, plan, **_: plan)
_moving_p.def_abstract_eval(lambda costs, plan, **_: plan)
mlir.register_lowering(_moving_p, lambda context, costs, plan, **_: [plan])


def _moving_jvp(primals: Any, tangents: Any, *, epsilon: float) -> tuple[Array, Array]:
    (costs, plan), (of_costs, _) = primals, tangents
    plan = _moving(costs, plan, epsilon)
    if type(of_costs) is ad.Zero:
        return plan, jnp.zeros_like(plan)
    weighted = plan * of_costs

    def sums(potentials: tuple[Array, Array]) -> tuple[Array, Array]:
        x, y = potentials
        moved = plan * (x[..., :, None] + y[..., None, :])
        return moved.sum(-1), moved.sum(-2)

    def solve(_: Any, right: tuple[Array, Array]) -> tuple[Array, Array]:
        return _solve_symmetric(jax.lax.stop_gradient(plan), *right)

    right = weighted.sum(-1), weighted.sum(-2)
    x, y = jax.lax.custom_linear_solve(sums, right, solve, symmetric=True)
    return plan, (plan * (x[..., :, None] + y[..., None, :]) - weighted) / epsilon


def _moving_batched(
    arrays: Sequence[Array], axes: Sequence[int | None], *, epsilon: float
) -> tuple[Array, int]:
    size = next(x.shape[n] for x, n in zip(arrays, axes, strict=True) if n is not None)
    costs, plan = (
        jnp.broadcast_to(x, (size, *x.shape)) if n is None else jnp.moveaxis(x, n, 0)
        for x, n in zip(arrays, axes, strict=True)
    )
    return _moving(costs, plan, epsilon), 0


ad.primitive_jvps[_moving_p] = _moving_jvp
batching.primitive_batchers[_moving_p] = _moving_batched
