"""Directions that stay bounded, means that skip padding, unit scales, gradients made over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from align_jax import gradient_reversal, numerics, reverse_gradient

unit_vectors = jax.jit(numerics.unit_vectors)
jacobians = jax.jit(lambda x: [mode(numerics.unit_vectors)(x) for mode in (jax.jacrev, jax.jacfwd)])


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e-3, 1.0, 1e20, 1e37])
def test_unit_vectors_are_exact_at_every_scale(scale):
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32) * np.float32(scale)
    exact = x.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit_vectors(x), exact, rtol=1e-5, atol=1e-7)


def test_unit_vectors_of_nan_are_nan_however_many():
    x = np.zeros((5000, 3), np.float32)  # of so many rows XLA's maximum may forget it
    x[1, 0] = x[2] = np.nan
    found = np.isnan(unit_vectors(jnp.asarray(x)))
    assert found.any(axis=1).tolist() == [False, True, True] + [False] * 4997


def test_unit_vectors_of_zero_is_zero_without_gradient():
    jacobian = jax.jit(jax.jacrev(numerics.unit_vectors))(np.zeros(3, np.float32))
    assert unit_vectors(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    assert not jacobian.any()


@pytest.mark.parametrize("norm", [0.011, 0.1, 1.0, 100.0])
def test_unit_vectors_gradient_is_exact_outside_the_damped_ball(norm):
    x = np.random.default_rng(0).normal(size=4)
    x *= norm / np.linalg.norm(x)
    exact = (np.eye(4) - np.outer(x, x) / norm**2) / norm
    for jacobian in jacobians(x.astype(np.float32)):
        np.testing.assert_allclose(jacobian, exact, rtol=1e-4, atol=1e-5 / norm)


def test_unit_vectors_gradient_is_bounded_near_zero():
    direction = np.array([0.6, 0.8, 0.0], np.float32)
    for norm in 10.0 ** np.arange(-12, 0):
        jacobian, _ = jacobians(np.float32(direction * norm))
        assert np.linalg.norm(jacobian, ord=2) <= 100.001


def test_masked_mean_skips_what_is_masked():
    values = jnp.array([[1.0, np.nan, 3.0], [np.inf, 5.0, 7.0]])
    mask = jnp.array([[True, False, True], [False, False, False]])
    assert numerics.masked_mean(values, mask, axis=1).tolist() == [2.0, 0.0]


def test_clamping_at_zero_leaves_the_gradient():
    """Also of what rounding has made negative, and of 0 itself."""
    x = jnp.array([-1e-7, 0.0, 2.0])
    assert numerics.clamp_at_zero(x).tolist() == [0.0, 0.0, 2.0]
    assert jax.grad(lambda x: numerics.clamp_at_zero(x).sum())(x).tolist() == [1.0, 1.0, 1.0]


def test_distances_far_from_the_origin_keep_their_digits():
    clouds = np.random.default_rng(0).integers(-8, 8, size=(2, 1, 5, 2, 3)).astype(np.float32)
    masks = [np.ones((1, 5), bool)] * 2

    @jax.jit
    def costs(query, key):
        vectors = numerics.cost_vectors(query, key, "squared_euclidean", *masks)
        return numerics.vector_costs(*vectors, "squared_euclidean")

    near, far = (costs(*(clouds / 8 + np.float32(shift))) for shift in (0, 4096))
    np.testing.assert_allclose(far, near, rtol=1e-5, atol=1e-5)


at_unit_scale = jax.jit(numerics.at_unit_scale, static_argnames="axes")
at_unit_spread = jax.jit(numerics.at_unit_spread)


class TestUnitScale:
    """Both clouds divided by one number of each sample and head, which is no part of a gradient."""

    query, key = np.split(
        np.random.default_rng(0).normal(1.0, 2.0, (2, 12, 3, 4)).astype(np.float32), [5], axis=1
    )
    masks = np.arange(5) < np.array([[5], [2]]), np.arange(7) < np.array([[3], [7]])

    def poisoned(self):
        clouds = zip((self.query, self.key), self.masks, strict=True)
        return [np.where(mask[..., None, None], x, np.nan) for x, mask in clouds]

    @pytest.mark.parametrize("axes", [(1, 3), (1, 2, 3)])
    @pytest.mark.parametrize("scale", [1e-30, 1e-5, 1.0, 1e30])
    def test_the_mean_square_of_what_takes_part_is_1(self, axes, scale):
        """Queries as a whole weigh as much as keys, whatever their numbers and their units."""
        clouds = [np.float32(scale) * x for x in self.poisoned()]
        scaled = at_unit_scale(*clouds, *self.masks, axes=axes)
        for sample in range(2):
            parts = [
                np.asarray(x[sample, mask[sample]], np.float64)
                for x, mask in zip((self.query, self.key), self.masks, strict=True)
            ]
            axis = (0, 2) if axes == (1, 3) else (0, 1, 2)
            mean = np.mean([(x**2).mean(axis, keepdims=True) for x in parts], axis=0)
            for x, mask, part in zip(scaled, self.masks, parts, strict=True):
                np.testing.assert_allclose(x[sample, mask[sample]], part / np.sqrt(mean), rtol=1e-5)

    def test_the_mean_squared_distance_is_2(self):
        """Of two draws, each a query or a key by the toss of a coin; what does not take part
        is 0."""
        for scale in (1e-30, 1.0, 1e6):
            clouds = [np.float32(scale) * x for x in self.poisoned()]
            scaled = at_unit_spread(
                *(numerics.zero_padding(x, m) for x, m in zip(clouds, self.masks, strict=True)),
                *self.masks,
            )
            # Queries and keys of the same number: those of the first sample's 5 and 3, 15 of each.
            query, key = (np.asarray(x, np.float64) for x in scaled)
            rows = np.concatenate(
                [np.repeat(query[0], 3, axis=0), np.repeat(key[0, :3], 5, axis=0)]
            )
            for head in range(3):
                pairs = pdist(rows[:, head], "sqeuclidean").sum() * 2
                np.testing.assert_allclose(pairs / len(rows) ** 2, 2.0, rtol=1e-5)
            for x, mask in zip(scaled, self.masks, strict=True):
                assert np.all(np.asarray(x)[~mask] == 0.0)

    @pytest.mark.parametrize("scale", [1e-39, 3e-38, 1e-36, 1e-34, 1e-32, 3e38])
    def test_a_single_entry_at_the_ends_of_float32_leaves_all_finite(self, scale):
        query, key = np.zeros_like(self.query), np.zeros_like(self.key)
        query[0, 0, 0, 0] = scale
        for function in (at_unit_scale, at_unit_spread):
            assert all(np.isfinite(x).all() for x in function(query, key, *self.masks))

    def test_points_without_extent_stay_as_they_are(self):
        zero, masks = np.zeros_like(self.query), (self.masks[0], self.masks[0])
        for function in (at_unit_scale, at_unit_spread):
            for x in function(zero, zero, *masks):
                np.testing.assert_array_equal(x, 0.0)
        for x in at_unit_spread(zero + 3.0, zero + 3.0, *masks):
            np.testing.assert_array_equal(x, 0.0)

    @pytest.mark.parametrize("function", [at_unit_scale, at_unit_spread])
    def test_no_gradient_runs_through_the_scale(self, function):
        """Then it is that of a division by a constant, which only the tokens themselves have."""
        rng = np.random.default_rng(1)
        weights = [rng.normal(size=x.shape).astype(np.float32) for x in (self.query, self.key)]

        def weighed(query, key):
            scaled = function(query, key, *self.masks)
            return sum(jnp.sum(w * x) for w, x in zip(weights, scaled, strict=True))

        gradients = jax.jit(jax.grad(weighed, argnums=(0, 1)))(self.query, self.key)
        for sample, head in np.ndindex(2, 3):
            slopes = [
                np.asarray(g[sample, :, head] / w[sample, :, head])[mask[sample]].ravel()
                for g, w, mask in zip(gradients, weights, self.masks, strict=True)
            ]
            slopes = np.concatenate(slopes)
            np.testing.assert_allclose(slopes, slopes[0], rtol=1e-4)
            assert slopes[0] > 0

    def test_a_dtype_stays(self):
        scaled = at_unit_scale(self.query.astype(jnp.bfloat16), self.key, None, None)
        assert [x.dtype for x in scaled] == [jnp.bfloat16, jnp.float32]


def test_a_weighed_gradient_is_that_of_each_vector_times_its_factor():
    """Neither the value nor the gradient of anything between changes."""
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3,)))
    factors = np.float32([0.0, 1.0, -2.0, 1e-20, 1e20])

    def plain(x, w):
        return jnp.sum(jnp.tanh(x @ w))

    def weighed(x, w):
        x, handle = gradient_reversal.weighed_gradient(x)
        return jnp.sum(gradient_reversal.weigh(jnp.tanh(x @ w), handle, factors))

    (value, (of_x, of_w)), (expected, (plain_x, plain_w)) = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(x, w) for function in (weighed, plain)
    )
    assert value == expected
    np.testing.assert_allclose(of_x, factors[:, None] * plain_x, rtol=1e-5)
    np.testing.assert_allclose(of_w, plain_w, rtol=1e-6)


def test_gradient_reversal():
    def game(x, w):
        return jnp.sum(reverse_gradient(w * reverse_gradient(x)) ** 2)

    x, w = jnp.array([1.0, 2.0]), jnp.float32(3.0)
    value, (of_x, of_w) = jax.jit(jax.value_and_grad(game, argnums=(0, 1)))(x, w)
    assert value == 45.0
    np.testing.assert_allclose(of_x, 2 * w**2 * x)
    np.testing.assert_allclose(of_w, -2 * w * np.sum(x**2))
