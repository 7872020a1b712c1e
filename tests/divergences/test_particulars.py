"""What holds for one divergence alone."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

from align_jax import divergences
from align_jax.divergences import blocks, transport_readout
from tests.divergences import oracles


def clouds(seed=0, tokens=6, features=4):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, tokens, 1, features)).astype(np.float32) for _ in range(2)]


def compiled(function, **options):
    return jax.jit(functools.partial(function, **options))


conditional_transport = compiled(divergences.conditional_transport)
mmd = compiled(divergences.maximum_mean_discrepancy)
own_mmd = compiled(divergences.maximum_mean_discrepancy, bandwidth=None)
energy = compiled(divergences.energy_distance)


@functools.cache
def optimal_transport(**options):
    """The value and its gradient for the queries; one program for all tests of a shape."""

    def value(query, key):
        return divergences.optimal_transport(query, key, **options).sum()

    return jax.jit(jax.value_and_grad(value))


def test_adversarial_at_the_best_discriminator_of_equal_clouds():
    value = compiled(divergences.adversarial)(np.zeros((1, 3, 1)), np.zeros((1, 4, 1)))
    np.testing.assert_allclose(value, -2 * np.log(2), rtol=1e-6)


def test_adversarial_is_stable_for_large_logits():
    logits = np.full((1, 2, 1), 200.0, np.float32)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: divergences.adversarial(x, logits).sum())
    )(-logits)
    np.testing.assert_allclose(value, -400.0)
    np.testing.assert_allclose(gradient, 0.5)  # d log sigmoid(x) / dx = 1 far left of 0


def test_mmd_of_identical_clouds_is_exactly_zero():
    cloud, _ = clouds()
    assert mmd(cloud, cloud).item() == 0.0
    assert mmd(cloud + 100, cloud + 100).item() == 0.0


@pytest.mark.parametrize("divergence", [own_mmd, energy])
def test_what_takes_its_scale_from_the_data_depends_on_neither_scale_nor_position(divergence):
    query, key = clouds()
    expected = divergence(query, key)
    for scale, shift in ((1e-20, 0.0), (1e6, 0.0), (1e-3, 1.0), (1.0, -100.0)):
        moved = (np.float32(scale) * x + np.float32(shift) for x in (query, key))
        # Far from the origin, the clouds themselves have lost digits.
        np.testing.assert_allclose(divergence(*moved), expected, rtol=1e-3 if shift else 1e-5)


@pytest.mark.parametrize("divergence", [own_mmd, energy])
def test_identical_clouds_are_exactly_zero_apart_and_stay_there(divergence):
    """The roots of the distances between a point and itself have no slope to speak of."""
    cloud, _ = clouds()
    value_and_gradients = jax.jit(jax.value_and_grad(lambda *x: divergence(*x).sum(), (0, 1)))
    for points in (cloud, cloud + 100, np.zeros_like(cloud), np.ones_like(cloud)):
        value, gradients = value_and_gradients(points, points)
        assert value == 0.0
        for gradient in gradients:
            np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_energy_of_single_points_is_its_largest_and_draws_them_together():
    """However near they are. Where a query lies on a key all is finite."""
    query, key = (x[:, :1] for x in clouds())
    value_and_gradient = jax.jit(jax.value_and_grad(lambda *x: energy(*x).sum(), (0, 1)))
    for distance in (1e-6, 1.0, 1e6):
        value, gradients = value_and_gradient(distance * query, distance * key)
        assert value == 1.0
        between = distance * (query - key)
        expected = between / (between**2).sum()  # of the length |q - k|, in its units
        np.testing.assert_allclose(gradients, [expected, -expected], rtol=1e-4)
    three = np.concatenate([query, query, key], axis=1)
    value, gradients = value_and_gradient(three, key)
    assert 0.0 < value < 1.0
    assert all(np.isfinite(gradient).all() for gradient in gradients)


NO_LIMITS = [0.0, -1, float("inf"), float("nan"), 1e39, "1"]


@pytest.mark.parametrize("value", NO_LIMITS)
def test_mmd_rejects_a_bandwidth_that_is_none(value):
    with pytest.raises(
        ValueError, match=f"bandwidth must be above 0 and finite, got {re.escape(repr(value))}"
    ):
        divergences.maximum_mean_discrepancy(*clouds(), bandwidth=value)


def test_transport_of_identical_clouds_is_the_entropic_minimum():
    cloud, _ = clouds()
    value, _ = optimal_transport(epsilon=0.1)(cloud, cloud)
    expected = oracles.optimal_transport(cloud[0, :, 0], cloud[0, :, 0], epsilon=0.1)
    np.testing.assert_allclose(value.item(), expected, rtol=1e-4)
    assert value.item() > 0


def transport_clouds():
    """As large as they must be for a plan at a small epsilon that is no mere assignment: there the
    potentials of different tokens decouple, and float32 can no longer tell them."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, n, 1, 8)).astype(np.float32) for n in (20, 26)]


@pytest.mark.parametrize(
    ("epsilon", "cost"), [(0.01, "cosine"), (0.1, "cosine"), (0.5, "squared_euclidean")]
)
def test_transport_equals_pot(epsilon, cost):
    query, key = transport_clouds()
    costs = oracles.COSTS[cost](*(x[0, :, 0].astype(np.float64) for x in (query, key)))
    plan = ot.sinkhorn(
        *(np.full(n, 1 / n) for n in costs.shape), costs, epsilon,
        method="sinkhorn_log", numItermax=10_000, stopThr=1e-11,
    )  # fmt: skip
    expected = (plan * costs).sum()
    value, _ = optimal_transport(epsilon=epsilon, cost=cost)(query, key)
    np.testing.assert_allclose(value.item(), expected, rtol=1e-4)
    ours = oracles.batched(oracles.optimal_transport, [query, key], epsilon=epsilon, cost=cost)
    np.testing.assert_allclose(ours.item(), expected, rtol=1e-7)


def test_transport_gradient_at_the_paper_s_epsilon():
    query, key = transport_clouds()

    def oracle(query):
        return oracles.batched(oracles.optimal_transport, [query, key], epsilon=0.01).item()

    (expected,) = oracles.finite_difference(oracle, [query])
    _, gradient = optimal_transport()(query, key)
    assert np.linalg.norm(gradient - expected) < 2e-4 * np.linalg.norm(expected)


def test_transport_tends_to_the_exact_cost_as_epsilon_vanishes():
    query, key = transport_clouds()
    costs = oracles.cosine_cost(query[0, :, 0].astype(np.float64), key[0, :, 0].astype(np.float64))
    weights = [np.full(n, 1 / n) for n in costs.shape]
    exact = (ot.emd(*weights, costs) * costs).sum()
    values = [
        optimal_transport(epsilon=0.1, cost="cosine"),
        optimal_transport(epsilon=0.01, cost="cosine"),
        compiled(divergences.optimal_transport, epsilon=0.003, max_iterations=5000),
    ]
    gaps = [np.ravel(jax.tree.leaves(value(query, key))[0]).item() - exact for value in values]
    assert all(gap > 0 for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01 * exact


def test_sinkhorn_that_has_not_converged_says_so():
    query, key = clouds(tokens=30)
    (_, good), (_, bad) = (
        compiled(
            divergences.optimal_transport, epsilon=0.005, with_report=True, max_iterations=limit
        )(query, key)
        for limit in (5000, 10)
    )
    assert good.converged.item()
    assert good.residual.item() < 1e-3
    assert not bad.converged.item()
    assert bad.residual.item() > 1e-3
    assert bad.iterations.item() == 10
    assert good.residual.shape == good.iterations.shape == (1, 1)


@pytest.mark.fault(
    "An epsilon of optimal transport that float32 or the iterations do not reach",
    "Refused with numbers, or a warning with numbers",
)
def test_an_epsilon_below_the_reach_of_float32_is_refused():
    """No plan is cheaper than the best one, which is what a plan of other marginals may be."""
    query, key = transport_clouds()
    transport = divergences.optimal_transport
    for epsilon in (1e-4, 1e-8, 1e-30):
        with pytest.raises(
            ValueError, match=r"epsilon .* below float32's reach.* at least 0.00012"
        ):
            jax.eval_shape(functools.partial(transport, epsilon=epsilon), query, key)
    large = {"cost": "squared_euclidean", "threshold": 1e-2}
    with pytest.raises(ValueError, match=r"epsilon 0.01 .* distances reach .*e\+09.* at least"):
        transport(1e4 * query, key, **large)
    # What does not take part has no costs; and traced ones are not known.
    mask = np.arange(20)[None] < 19
    far = query.copy()
    far[:, 19] = 1e6
    assert np.isfinite(transport(far, key, query_mask=mask, epsilon=0.5, **large)).all()
    _, report = jax.jit(functools.partial(transport, with_report=True, **large))(1e4 * query, key)
    assert not report.converged.item()


def test_a_plan_that_has_not_converged_is_warned_of():
    query, key = transport_clouds()
    options = {"epsilon": 0.005, "max_iterations": 10}
    with pytest.warns(UserWarning, match="1 of 1 transport plans at epsilon 0.005 .*after 10"):
        divergences.optimal_transport(query, key, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        divergences.optimal_transport(query, key, with_report=True, **options)
        divergences.optimal_transport(query, key, epsilon=0.1)
        jax.eval_shape(functools.partial(divergences.optimal_transport, **options), query, key)


@pytest.mark.parametrize("name", ["epsilon", "threshold", "max_iterations"])
def test_transport_rejects_limits_that_are_none(name):
    for value in NO_LIMITS:
        with pytest.raises(
            ValueError, match=f"{name} must be above 0 and finite, got {re.escape(repr(value))}"
        ):
            divergences.optimal_transport(*clouds(), **{name: value})
    with pytest.raises(ValueError, match=r"max_iterations must be a whole number, got 1.5"):
        divergences.optimal_transport(*clouds(), max_iterations=1.5)


@pytest.mark.parametrize("function", ["conditional_transport", "optimal_transport"])
def test_an_unknown_cost_names_the_nearest(function):
    arrays = clouds() * (2 if function == "conditional_transport" else 1)
    with pytest.raises(ValueError, match="got 'cosin'. Did you mean 'cosine'"):
        getattr(divergences, function)(*arrays, cost="cosin")


def test_conditional_transport_of_identical_clouds():
    """As the formula gives: one token costs nothing, several cost what the plan spreads."""
    cloud, navigation = clouds()
    value = conditional_transport(cloud, cloud, navigation, navigation)
    expected = oracles.batched(
        oracles.conditional_transport, [cloud, cloud, navigation, navigation]
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert value.item() > 0
    single = conditional_transport(cloud[:, :1], cloud[:, :1], navigation[:, :1], navigation[:, :1])
    np.testing.assert_allclose(single, 0.0, atol=1e-6)


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize("cost", ["cosine", "squared_euclidean"])
def test_conditional_transport_is_exact_for_large_scores(cost, implementation, monkeypatch):
    """Scores too large for one exponential to serve both plans, in several blocks; and finite
    for scores without a bound."""
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 2 * 7)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    rng = np.random.default_rng(0)
    shapes = [(1, length, 2, features) for features in (4, 3) for length in (5, 7)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays = [*arrays[:2], *(8 * x for x in arrays[2:])]
    largest = [np.linalg.norm(x, axis=-1).max() for x in arrays[2:]]
    assert largest[0] * largest[1] > transport_readout.LARGEST_SHARED_SCORE

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    def value_and_gradients(*arrays):
        options = {"cost": cost, "implementation": implementation}
        return divergences.conditional_transport(*arrays, **options).sum()

    def oracle(*arrays):
        return oracles.batched(oracles.conditional_transport, arrays, cost=cost).sum()

    value, gradients = value_and_gradients(*arrays)
    np.testing.assert_allclose(value, oracle(*arrays), rtol=1e-5)
    expected = oracles.finite_difference(oracle, arrays)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert np.linalg.norm(gradient - reference) < 1e-4 * np.linalg.norm(reference)
    unbounded = value_and_gradients(*arrays[:2], *(1e4 * x for x in arrays[2:]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(unbounded))


def test_blockwise_transport_of_huge_features_and_large_scores_does_not_overflow():
    """Costs and exponentials that each fit float32, and whose product does not."""
    cloud, navigation = clouds()
    largest = np.linalg.norm(navigation, axis=-1).max()
    navigation *= np.sqrt(0.98 * transport_readout.LARGEST_SHARED_SCORE) / largest

    def value(cloud, navigation, implementation):
        return divergences.conditional_transport(
            1e7 * cloud, 1e7 * cloud, navigation, -navigation,
            cost="squared_euclidean", implementation=implementation,
        ).sum()  # fmt: skip

    dense, blockwise = (
        jax.jit(jax.value_and_grad(value, argnums=(0, 1)), static_argnums=2)(
            cloud, navigation, implementation
        )
        for implementation in ("dense", "blockwise")
    )
    for one, other in zip(jax.tree.leaves(blockwise), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("rho", [-0.1, 1.1, float("nan")])
def test_conditional_transport_rejects_rho_outside_the_unit_interval(rho):
    with pytest.raises(ValueError, match="rho must lie in"):
        divergences.conditional_transport(*clouds(), *clouds(), rho=rho)


def test_conditional_transport_names_features_that_disagree_with_navigation():
    query, key = clouds()
    with pytest.raises(ValueError, match="query_features and query_navigation must agree"):
        divergences.conditional_transport(query, key, query[:, :3], key)
    with pytest.raises(ValueError, match="implementation must be one of .*Did you mean 'dense'"):
        divergences.conditional_transport(query, key, query, key, implementation="dens")


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_rho_selects_a_direction(rho):
    """With all its weight on one direction, the value is an attention read-out (PAPER 2.3)."""
    rng = np.random.default_rng(0)
    query, key, query_navigation, key_navigation = (
        rng.normal(size=(2, length, 3, 4)).astype(np.float32) for length in (5, 7, 5, 7)
    )
    value = compiled(divergences.conditional_transport, rho=rho)(
        query, key, query_navigation, key_navigation
    )
    units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key)]
    navigation = [query_navigation, key_navigation]
    if rho == 0.0:
        units, navigation = units[::-1], navigation[::-1]
    read_out = compiled(jax.nn.dot_product_attention, scale=1.0)(*navigation, units[1])
    expected = 1.0 - np.mean(np.sum(units[0] * read_out, axis=-1), axis=1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_slope_of_a_narrow_kernel_is_not_lost_beside_a_point_itself():
    """Beside its kernel with itself, 1, those with other points are below float32's rounding."""
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(24, 64)).astype(np.float32) for _ in range(2))

    def sums(x, y):  # over y, of the derivative by x
        apart = x.astype(np.float64)[:, None] - y[None]
        kernel = np.exp(-0.5 * np.sum(apart**2, axis=-1))
        return np.sum(kernel[..., None] * apart, axis=1)

    expected = 2.0 * (sums(query, key) - sums(query, query)) / 24**2

    def distance(query):
        clouds = query[None, :, None], jnp.asarray(key)[None, :, None]
        return divergences.maximum_mean_discrepancy(*clouds, bandwidth=1.0).sum()

    assert np.abs(expected).max() < 1e-7 / 24**2
    slope = jax.jit(jax.grad(distance))(query)
    np.testing.assert_allclose(slope, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("divergence", "clouds"),
    [
        (divergences.conditional_transport, 4),
        (divergences.maximum_mean_discrepancy, 2),
        # Another function of the same pairs.
        pytest.param(divergences.energy_distance, 2, marks=pytest.mark.thorough),
    ],
)
def test_blockwise_memory_is_linear_in_the_tokens(divergence, clouds):
    def temporary_bytes(tokens):
        shapes = [jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.float32)] * clouds

        def loss(*arrays):
            return divergence(*arrays, implementation="blockwise").sum()

        compiled = jax.jit(jax.grad(loss, argnums=tuple(range(clouds)))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(8192), temporary_bytes(16384)
    assert large < 2.2 * small
    assert large < 16384**2 * 4 / 4


def test_plans_near_an_assignment_have_finite_gradients():
    """Where the plan decouples, the system behind the gradient is singular to float32."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(64, 16, 1, 16)).astype(np.float32)
    key = (query[:, ::-1] + 0.1 * rng.normal(size=query.shape)).astype(np.float32)

    def value(query, key):
        return divergences.optimal_transport(query, key, epsilon=0.003).mean()

    gradients = jax.jit(jax.grad(value, argnums=(0, 1)))(query, key)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        assert np.abs(gradient).max() < 1.0
