"""LayerNorm against NumPy in float64 and against flax's, whose derivative is JAX's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from align_jax.models.layer_norm import LayerNorm

EPSILON = 0.1  # so large that it shows where it is added


def vectors(shape, outlier=0.0):
    """Not centred, and with one feature that is far larger than the others."""
    x = np.random.default_rng(0).normal(2.0, 3.0, shape)
    x[..., 0] += outlier
    return x


def params(width):
    random = np.random.default_rng(1)
    return {"params": {
        "scale": random.normal(size=width).astype(np.float32),
        "bias": random.normal(size=width).astype(np.float32),
    }}  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 5, 8), (4, 3), (6,), (0, 4)])
@pytest.mark.parametrize("outlier", [0.0, 1e3])
def test_values(shape, outlier) -> None:
    x, variables = vectors(shape, outlier), params(shape[-1])
    scale, bias = (np.asarray(variables["params"][n], np.float64) for n in ("scale", "bias"))
    x = np.asarray(x, np.float32).astype(np.float64)
    deviation = np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    expected = (x - x.mean(-1, keepdims=True)) / deviation * scale + bias
    found = jax.jit(LayerNorm(EPSILON).apply)(variables, x.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4 if outlier else 2e-6)


@pytest.mark.parametrize("outlier", [0.0, 1e3])
def test_gradients_are_those_of_flax(outlier) -> None:
    x, variables = vectors((3, 5, 8), outlier).astype(np.float32), params(8)
    weight = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)

    def gradients(layer):
        def loss(variables, x):
            return (weight * jnp.sin(layer.apply(variables, x))).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables, x)

    found = gradients(LayerNorm(EPSILON))
    expected = gradients(nn.LayerNorm(EPSILON, use_fast_variance=False))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_derivatives_of_two_orders_in_both_modes() -> None:
    """Against finite differences."""
    layer = LayerNorm(EPSILON)
    x = (vectors((2, 6)) / 3).astype(np.float32)
    check_grads(
        jax.jit(lambda variables, x: jnp.sin(layer.apply(variables, x))), (params(6), x), order=2,
        modes=("fwd", "rev"), atol=2e-2, rtol=2e-2, eps=1e-2,
    )  # fmt: skip


def test_equal_features_are_normalised_to_the_bias() -> None:
    layer, variables = LayerNorm(1e-12), params(4)
    x = np.full((2, 4), 7.0, np.float32)

    def loss(x):
        found = layer.apply(variables, x)
        return (found**2).sum(), found

    gradient, found = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(found, np.tile(variables["params"]["bias"], (2, 1)))
    assert np.isfinite(gradient).all()


def test_statistics_are_float32_whatever_the_dtype() -> None:
    x = jnp.asarray(vectors((4, 512), 50.0), jnp.bfloat16)
    variables = params(512)
    found = jax.jit(LayerNorm(EPSILON, jnp.bfloat16).apply)(variables, x)
    assert found.dtype == jnp.bfloat16
    wide = jax.jit(LayerNorm(EPSILON).apply)(variables, x.astype(jnp.float32))
    np.testing.assert_allclose(found.astype(jnp.float32), wide, rtol=2**-8, atol=2**-8)
    assert jax.eval_shape(LayerNorm(EPSILON).apply, variables, x).dtype == jnp.float32


def test_parameters_are_named_as_flax_names_them() -> None:
    x = jnp.ones((2, 3))
    ours, theirs = (
        jax.jit(layer.init)(jax.random.key(0), x) for layer in (LayerNorm(), nn.LayerNorm())
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
