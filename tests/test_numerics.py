"""Directions that stay bounded, means that skip padding, gradient reversal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import numerics, reverse_gradient


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e-3, 1.0, 1e20, 1e37])
def test_unit_vectors_are_exact_at_every_scale(scale):
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32) * np.float32(scale)
    exact = x.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=-1, keepdims=True)
    np.testing.assert_allclose(numerics.unit_vectors(x), exact, rtol=1e-5, atol=1e-7)


def test_unit_vectors_of_zero_is_zero_without_gradient():
    jacobian = jax.jacrev(numerics.unit_vectors)(jnp.zeros(3))
    assert numerics.unit_vectors(jnp.zeros(3)).tolist() == [0, 0, 0]
    assert not jacobian.any()


@pytest.mark.parametrize("norm", [0.011, 0.1, 1.0, 100.0])
def test_unit_vectors_gradient_is_exact_outside_the_damped_ball(norm):
    x = np.random.default_rng(0).normal(size=4)
    x *= norm / np.linalg.norm(x)
    exact = (np.eye(4) - np.outer(x, x) / norm**2) / norm
    for mode in (jax.jacrev, jax.jacfwd):
        jacobian = mode(numerics.unit_vectors)(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(jacobian, exact, rtol=1e-4, atol=1e-5 / norm)


def test_unit_vectors_gradient_is_bounded_near_zero():
    direction = np.array([0.6, 0.8, 0.0], np.float32)
    for norm in 10.0 ** np.arange(-12, 0):
        jacobian = jax.jacrev(numerics.unit_vectors)(jnp.asarray(direction * norm, jnp.float32))
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
    near, far = (
        numerics.pairwise_cost(*(clouds / 8 + shift), "squared_euclidean") for shift in (0, 4096)
    )
    np.testing.assert_allclose(far, near, rtol=1e-5, atol=1e-5)


def test_gradient_reversal():
    def game(x, w):
        return jnp.sum(reverse_gradient(w * reverse_gradient(x)) ** 2)

    x, w = jnp.array([1.0, 2.0]), jnp.float32(3.0)
    value, (of_x, of_w) = jax.value_and_grad(game, argnums=(0, 1))(x, w)
    assert value == 45.0
    np.testing.assert_allclose(of_x, 2 * w**2 * x)
    np.testing.assert_allclose(of_w, -2 * w * np.sum(x**2))
