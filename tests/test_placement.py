"""Whether the compiler may spread a computation: in a mesh, if it has several devices."""

import jax
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
