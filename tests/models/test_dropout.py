"""Dropout's random bits: their rate, their independence, and what flax's Dropout does too."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.dropout import Dropout, dropped, keep_mask

masked = jax.jit(keep_mask, static_argnums=(1, 2))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("shape", [(400_000,), (40, 3, 50, 70)])
def test_rate(rate, shape) -> None:
    mask = np.asarray(masked(jax.random.key(0), rate, shape))
    assert mask.shape == shape
    deviation = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(1 - mask.mean() - rate) <= 4 * deviation
    assert jax.eval_shape(lambda: keep_mask(jax.random.key(0), rate, ())).shape == ()


def test_masks_look_random() -> None:
    """Neighbours, rows, columns and keys are uncorrelated, and no frequency stands out."""
    size = 500
    masks = [
        np.asarray(masked(jax.random.fold_in(jax.random.key(0), n), 0.5, (size, size))) * 2.0 - 1
        for n in range(12)
    ]
    noise = 1 / size  # standard deviation of a correlation over size * size elements
    for first, second in itertools.pairwise(masks):
        assert abs((first * second).mean()) < 5 * noise
    for shift in (1, 2, 3, 16, 64, 128):
        assert abs((masks[0] * np.roll(masks[0], shift, axis=0)).mean()) < 5 * noise
        assert abs((masks[0] * np.roll(masks[0], shift, axis=1)).mean()) < 5 * noise
    for axis in (0, 1):
        assert masks[0].mean(axis).std() * np.sqrt(size) == pytest.approx(1.0, abs=0.15)
    power = np.abs(np.fft.fft(masks[0].ravel()))[1:] ** 2 / masks[0].size
    assert power.max() < np.log(masks[0].size) + 8  # exponentially distributed, were it noise


def test_the_mean_and_the_gradient_stay() -> None:
    x = np.full((300, 300), 2.0, np.float32)
    key = jax.random.key(1)

    @jax.jit
    def results(x):
        gradient = jax.grad(lambda x: dropped(x, key, 0.25).sum())(x)
        poisoned = jnp.where(keep_mask(key, 0.25, x.shape), x, jnp.nan)
        return dropped(x, key, 0.25), gradient, dropped(poisoned, key, 0.25)

    y, gradient, poisoned = results(x)
    assert float(y.mean()) == pytest.approx(2.0, abs=0.02)
    np.testing.assert_allclose(y, x * gradient, rtol=1e-6)
    half = jax.eval_shape(lambda: dropped(x.astype(jnp.bfloat16), key, 0.25))
    assert half.dtype == jnp.bfloat16
    assert np.isfinite(poisoned).all()


def test_the_module_is_deterministic_when_told_and_in_its_key() -> None:
    x = jnp.ones((4, 100))

    def apply(rate, deterministic, seed=0):
        return Dropout(rate, deterministic).apply({}, x, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(apply(0.5, True), x)
    np.testing.assert_array_equal(apply(0.0, False), x)
    np.testing.assert_array_equal(apply(0.5, False), apply(0.5, False))
    assert (apply(0.5, False) != apply(0.5, False, seed=1)).any()
    with pytest.raises(Exception, match="dropout"):  # flax's own error for a missing RNG
        Dropout(0.5, False).apply({}, x)


@pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")
def test_sharding_does_not_change_the_mask() -> None:
    mesh = jax.make_mesh((4,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jnp.ones((8, 100))
    key = jax.random.key(0)
    expected = dropped(x, key, 0.5)
    sharded = jax.jit(dropped, static_argnums=2)(jax.device_put(x, sharding), key, 0.5)
    np.testing.assert_array_equal(sharded, expected)
