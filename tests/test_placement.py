"""Whether the compiler may spread a computation: in a mesh, if it has several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from align_jax import placement


@pytest.mark.parametrize(
    ("devices", "kind", "expected"),
    [(4, AxisType.Auto, True), (1, AxisType.Auto, False), (4, AxisType.Manual, False)],
)
def test_spread_by_compiler(devices, kind, expected) -> None:
    if jax.local_device_count() < devices:
        pytest.skip(f"needs {devices} (faked) devices")
    mesh = Mesh(np.asarray(jax.local_devices()[:devices]).reshape(-1, 1), ("data", "model"),
                axis_types=(kind, kind))  # fmt: skip
    assert not placement.spread_by_compiler()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert placement.spread_by_compiler() is expected
        assert placement.works_in_cache() is (not expected and jax.default_backend() == "cpu")


@pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")
@pytest.mark.parametrize(("shape", "whole", "expected"), [
    ((4, 3, 2, 5), False, (2, 3, 1, 5)),
    ((3, 3, 2, 5), False, (3, 3, 1, 5)),  # three samples are whole on both
    ((4, 3, 5, 2), False, (2, 3, 5, 2)),
    ((4, 3, 2, 5), True, (2, 3, 2, 5)),
])  # fmt: skip
def test_each_device_has_its_samples_and_heads(shape, whole, expected) -> None:
    seen = []

    def mean(clouds, mask):
        (cloud,) = clouds
        seen.append((cloud.shape, mask.shape))
        return {"mean": jnp.where(mask[..., None, None], cloud, 0.0).mean(axis=(1, 3))}

    cloud = jax.random.normal(jax.random.key(0), shape)
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, shape[:2])
    weights = jax.random.normal(jax.random.key(2), (shape[0], shape[2]))

    @jax.jit
    def gradient(cloud, mask):
        def loss(cloud):
            found = placement.on_each_device(mean, (cloud,), mask, whole_heads=whole)
            return (weights * found["mean"]).sum()

        return jax.value_and_grad(loss)(cloud)

    alone = gradient(cloud, mask)
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    with jax.set_mesh(mesh), placement.cut_along(samples="data", heads="model"):
        spread = gradient(cloud, mask)
    assert seen == [(shape, shape[:2]), (expected, expected[:2])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), spread, alone)
