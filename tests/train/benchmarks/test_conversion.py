"""Both ways to align take the same steps."""

import jax
import numpy as np

from train.benchmarks import conversion


def test_both_ways_have_the_same_gradients() -> None:
    both, params = conversion.steps("ct", batch=2, tokens=5, width=32, layers=1)
    (value, gradient), (other, others) = (jax.jit(f)(params) for f in both.values())
    np.testing.assert_allclose(value, other, rtol=1e-6)
    assert jax.tree.structure(gradient) == jax.tree.structure(others)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
