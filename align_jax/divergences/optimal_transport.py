"""Entropy-regularised optimal transport, AA-OT (Zhang et al. 2021, Eq. 3), solved by ott-jax."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    the value. Gradients come from the optimality conditions of the plan (implicit
    differentiation), not from unrolled iterations, so they cost one linear solve and are as exact
    as the plan.

    Args:
      query: the queries.
      key: the keys.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.
      epsilon: strength of the entropy term, in units of the cost; above 0.
      cost: "cosine" (`1 - cosine`) or "squared_euclidean".
      threshold: Sinkhorn stops when the marginals are met to this L1 distance; above 0.
      max_iterations: it stops after this many in any case.
      with_report: also return a `SinkhornReport`, for logging.

    Returns:
      One value per sample and head, in units of the cost; 0 for a sample without queries or keys.
      With `with_report`, a pair of that and the report.

    Raises:
      ValueError: for a wrong rank, an empty axis, shapes that do not fit, an unknown cost, or
        epsilon, threshold or max_iterations not above 0.
      TypeError: for clouds that are not floating point or masks that are not bool.
      ImportError: when ott-jax is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> cloud = jnp.eye(3).reshape(1, 3, 1, 3)
      >>> optimal_transport(cloud, cloud).round(3).tolist()
      [[0.0]]
    """
    numerics.check_clouds(query, key, query_mask, key_mask, names=("query", "key"), axes="B N H D")
    numerics.check_choice("cost", cost, COSTS)
    limits = {"epsilon": epsilon, "threshold": threshold, "max_iterations": max_iterations}
    for name, limit in limits.items():
        if not limit > 0:
            raise ValueError(f"{name} must be above 0, got {limit}.")
    query, query_mask = numerics.prepare(query, query_mask)
    key, key_mask = numerics.prepare(key, key_mask)
    costs = numerics.pairwise_cost(query, key, cost)
    both = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)
    # A sample without tokens has no plan; give it all of them and drop the value below.
    marginals = (
        numerics.token_weights(query_mask | ~both[:, None]),
        numerics.token_weights(key_mask | ~both[:, None]),
    )

    value, report = _transport_costs(costs, *marginals, epsilon, threshold, max_iterations)
    value = jnp.where(both[:, None], value, 0.0)
    return (value, report) if with_report else value


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
        return _value(costs, plan, epsilon), report

    # A group of heads at a time: its costs stay in the cache from one iteration to the next, and
    # its iterations end when its own plans have converged.
    batch, heads, queries, keys = costs.shape
    group, _ = blocks.block_shape(batch * heads, queries, keys)
    per_head = (jnp.repeat(weights, heads, axis=0) for weights in (rows, columns))
    costs = costs.reshape(batch * heads, queries, keys)
    results = blocks.map_heads(jax.vmap(one_head), group, costs, *per_head)
    return jax.tree.map(lambda x: x.reshape(batch, heads), results)


def _plan(
    costs: Array,
    rows: Array,
    columns: Array,
    epsilon: float,
    threshold: float,
    max_iterations: int,
) -> tuple[Float[Array, "N M"], SinkhornReport]:
    try:
        from ott.geometry import epsilon_scheduler, geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn
    except ImportError as error:
        raise ImportError(
            "optimal_transport needs ott-jax: pip install 'align_jax[ot]'."
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
    plan: Float[Array, "N M"], right_rows: Float[Array, "N"], right_columns: Float[Array, "M"]
) -> tuple[Float[Array, "N"], Float[Array, "M"]]:
    """Solves `a x + P y = right_rows`, `P' x + b y = right_columns`, `a` and `b` P's marginals.

    After elimination of `x` and scaling by the square roots of the marginals the matrix is
    `I - Q'Q` with the singular values of `Q` in `[0, 1]`. It is singular: a constant may shift from
    one part to the other, which leaves every `x_i + y_j` as it is. And the closer the plan is to an
    assignment, the more of its eigenvalues tend to 0, each for a group of tokens that may shift by
    itself. A ridge makes it safe to factorise, and iterative refinement takes the ridge's effect
    out again wherever the matrix determines the answer.
    """
    precision = numerics.PRECISION
    rows, columns = plan.sum(1), plan.sum(0)
    root_rows = jnp.sqrt(jnp.where(rows > 0, rows, 1.0))
    root_columns = jnp.sqrt(jnp.where(columns > 0, columns, 1.0))
    scaled = plan / root_rows[:, None] / root_columns[None, :]
    right_rows, right_columns = right_rows / root_rows, right_columns / root_columns
    identity = jnp.eye(len(columns), dtype=plan.dtype)
    matrix = identity - jnp.matmul(scaled.T, scaled, precision=precision)
    factor = jax.scipy.linalg.cho_factor(matrix + _RIDGE * identity, lower=True)
    right = right_columns - jnp.matmul(right_rows, scaled, precision=precision)
    y = jnp.zeros_like(right)
    for _ in range(_REFINEMENTS):
        missing = right - jnp.matmul(matrix, y, precision=precision)
        y += jax.scipy.linalg.cho_solve(factor, missing)
    # Should the factorisation fail in spite of the ridge, take the plan as fixed.
    y = jnp.where(jnp.all(jnp.isfinite(y)), y, 0.0)
    x = right_rows - jnp.matmul(scaled, y, precision=precision)
    return x / root_rows, y / root_columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _value(costs: Array, plan: Array, epsilon: float) -> Float[Array, ""]:
    """`sum c P(c)`, where `plan` is `P(c)`: its derivative includes how the plan moves with c."""
    return jnp.sum(costs * plan)


def _value_forward(costs: Array, plan: Array, epsilon: float) -> tuple[Array, Any]:
    return _value(costs, plan, epsilon), (costs, plan)


def _value_backward(epsilon: float, residuals: Any, cotangent: Array) -> tuple[Array, Array]:
    """The derivative of `V(c) = sum c P(c)` by the implicit function theorem.

    With `P = exp((f + g - c) / epsilon)` and fixed marginals, the adjoint `(x, y)` solves the
    optimality conditions' linear system for the plan's row and column sums of `c P`, and then
    `dV/dc = P (1 - (c - x - y) / epsilon)`.
    """
    costs, plan = residuals
    weighted = costs * plan
    x, y = _solve_symmetric(plan, weighted.sum(1), weighted.sum(0))
    gradient = plan * (1.0 - (costs - x[:, None] - y[None, :]) / epsilon)
    return cotangent * gradient, jnp.zeros_like(plan)


_value.defvjp(_value_forward, _value_backward)
