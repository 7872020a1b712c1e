"""Softmax over the edges that share a node."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.segments import segment_softmax

SEGMENTS = np.array([0, 0, 0, 2, 4, 4], np.int32)  # 1 and 3 are empty


def reference(logits, segments):
    weights = np.zeros_like(logits)
    for segment in set(segments.tolist()):
        rows = np.flatnonzero(segments == segment)
        weights[rows] = jax.nn.softmax(logits[rows], axis=0)
    return weights


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_equals_a_softmax_per_segment(order):
    rng = np.random.default_rng(0)
    segments = SEGMENTS if order == "sorted" else rng.permutation(SEGMENTS)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    weights = segment_softmax(logits, segments, 5, indices_are_sorted=order == "sorted")
    np.testing.assert_allclose(weights, reference(logits, segments), rtol=1e-6)


def test_weights_sum_to_one_within_each_segment_that_has_edges():
    weights = segment_softmax(jnp.arange(12.0).reshape(6, 2), SEGMENTS, 5)
    sums = jax.ops.segment_sum(weights, SEGMENTS, 5)
    np.testing.assert_allclose(sums, np.array([1, 0, 1, 0, 1])[:, None] * np.ones(2), rtol=1e-6)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4, 1e30, 1e4 * SEGMENTS[:, None]])
def test_stable_for_large_logits(shift):
    logits = jnp.array([[0.0], [1.0], [-1.0], [0.0], [2.0], [2.0]]) + shift
    weights = segment_softmax(logits, SEGMENTS, 5)
    np.testing.assert_allclose(weights, reference(np.asarray(logits), SEGMENTS), rtol=1e-6)


def test_gradient_is_that_of_softmax():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 2)).astype(np.float32)
    weight = rng.normal(size=(6, 2)).astype(np.float32)

    gradient = jax.grad(lambda x: jnp.sum(weight * segment_softmax(x, SEGMENTS, 5)))(logits)
    plan = reference(logits, SEGMENTS)
    mean = np.asarray(jax.ops.segment_sum(plan * weight, SEGMENTS, 5))[SEGMENTS]
    np.testing.assert_allclose(gradient, plan * (weight - mean), rtol=1e-5, atol=1e-6)
