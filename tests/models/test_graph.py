"""Sparse features, and the checks that a graph must pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.graph import SparseFeatures, validate_graph


def matrix():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(6, 5)) * (rng.random((6, 5)) < 0.4)).astype(np.float32)


class TestSparseFeatures:
    def test_matmul_equals_the_dense_product(self):
        kernel = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
        product = SparseFeatures.from_dense(matrix()).matmul(kernel)
        np.testing.assert_allclose(product, matrix() @ kernel, rtol=1e-5, atol=1e-6)

    def test_gradient_of_the_kernel_equals_the_dense_one(self):
        kernel = jnp.ones((5, 3))
        sparse = SparseFeatures.from_dense(matrix())
        ours = jax.grad(lambda w: jnp.sum(jnp.sin(sparse.matmul(w))))(kernel)
        dense = jax.grad(lambda w: jnp.sum(jnp.sin(matrix() @ w)))(kernel)
        np.testing.assert_allclose(ours, dense, rtol=1e-5, atol=1e-6)

    def test_rows_without_values_are_zero(self):
        dense = np.zeros((3, 2), np.float32)
        dense[1, 0] = 2
        product = SparseFeatures.from_dense(dense).matmul(jnp.ones((2, 2)))
        np.testing.assert_array_equal(product, [[0, 0], [2, 2], [0, 0]])

    def test_passes_through_jit_with_its_shape(self):
        sparse = jax.tree.map(jnp.asarray, SparseFeatures.from_dense(matrix()))
        assert jax.jit(lambda x: x)(sparse).shape == (6, 5)


class TestValidateGraph:
    features = np.ones((4, 3), np.float32)
    senders = np.array([1, 0, 2, 3])
    receivers = np.array([0, 1, 2, 3])

    def check(self, **change):
        names = ("features", "senders", "receivers")
        validate_graph(**({name: getattr(self, name) for name in names} | change))

    def test_a_good_graph_passes(self):
        train, test = np.array([True, False, False, False]), np.array([False, True, True, False])
        self.check(num_features=3, masks={"train": train, "test": test})
        self.check(features=SparseFeatures.from_dense(self.features))

    def test_an_isolated_node_passes(self):
        self.check(senders=np.array([1, 0]), receivers=np.array([0, 1]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"senders": [], "receivers": []}, "no edges.*self-loops"),
            ({"senders": [1, 0, 2, 4]}, "joins node 4 to node 3.*0 to 3.*senders"),
            ({"receivers": [0, 1, 2, 9]}, "joins node 3 to node 9.*receivers"),
            ({"senders": [-1, 0, 2, 3]}, "joins node -1"),
            ({"senders": [1, 0]}, r"shapes \(2,\) and \(4,\)"),
            ({"receivers": [0, 2, 1, 3]}, "not sorted: entry 2 is 1, after 2.*lexsort"),
            ({"receivers": np.uint8([0, 2, 1, 3])}, "not sorted: entry 2 is 1, after 2"),
            ({"num_features": 7}, "3 columns; expected 7"),
            ({"features": np.ones(3)}, r"shape \(3,\); expected \[N, F\]"),
            ({"features": np.ones((0, 3))}, "at least one node"),
            ({"features": np.full((4, 3), np.nan)}, "12 values.*node 0, column 0"),
        ],
    )
    def test_a_bad_graph_is_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            self.check(**change)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("sparse", [False, True])
    def test_a_bad_feature_is_located(self, bad, sparse):
        features = self.features.copy()
        features[2, 1] = bad
        if sparse:
            features = SparseFeatures.from_dense(features)
        with pytest.raises(ValueError, match=r"1 values.*node 2, column 1"):
            self.check(features=features)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rows": [1, 0]}, "rows out of order"),
            ({"rows": [0, 4]}, "rows that hold 4; expected 0 to 3"),
            ({"columns": [0, -1]}, "columns that hold -1; expected 0 to 2"),
            ({"columns": [0]}, r"columns of shape \(1,\) for values of shape \(2,\)"),
        ],
    )
    def test_misplaced_sparse_values_are_refused(self, change, message):
        good = {"values": [1.0, 2.0], "rows": [0, 1], "columns": [0, 2]}
        arrays = {name: np.array(value) for name, value in (good | change).items()}
        with pytest.raises(ValueError, match=message):
            self.check(features=SparseFeatures(**arrays, shape=(4, 3)))

    def test_indices_must_be_integers(self):
        with pytest.raises(TypeError, match="senders are float64"):
            self.check(senders=self.senders.astype(float))

    @pytest.mark.parametrize(
        ("masks", "error", "message"),
        [
            ({"train": [True] * 4, "test": [False, True, True, False]}, ValueError,
             "'train' and 'test' overlap in 2 nodes, the first of them 1"),
            ({"train": [True, False, False, False], "test": [False] * 4}, ValueError,
             "'test' is empty"),
            ({"train": [True, False]}, ValueError, r"shape \(2,\); expected \(4,\)"),
            ({"train": [0, 1, 1, 0]}, TypeError, "expected bool"),
        ],
    )  # fmt: skip
    def test_bad_masks_are_refused(self, masks, error, message):
        with pytest.raises(error, match=message):
            self.check(masks={name: np.array(mask) for name, mask in masks.items()})
