"""Alignment of NNX models."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from align_jax import (
    AlignmentConfig,
    aligned,
    alignment_clouds,
    alignment_loss,
    alignment_table,
    attention_report,
    game_optimizer,
    label_parameters,
)
from align_jax.convert_nnx import AlignmentParam, AlignmentSown

X = jax.random.normal(jax.random.key(0), (4, 5, 8))
LABELS = jnp.array([0, 1, 2, 0])


class Layer(nnx.Module):
    """Attention, dropout and batch normalisation."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x, mask=None):
        return self.norm(x + self.dropout(self.attention(x, mask=mask)))


class Model(nnx.Module):
    """Two layers and a classifier."""

    def __init__(self, rngs):
        self.first, self.second = Layer(rngs), Layer(rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, mask=None):
        return self.head(self.second(self.first(x, mask), mask).mean(axis=1))


def model():
    """Always the same."""
    made = Model(nnx.Rngs(0))
    made.train()
    return made


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def test_trains_as_nnx_models_do():
    plain, converted = model(), aligned(model(), AlignmentConfig("ct"), X)
    optimizer = nnx.Optimizer(converted, game_optimizer(optax.adam(1e-2)), wrt=nnx.Param)
    networks = nnx.to_pure_dict(nnx.state(converted, AlignmentParam))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(networks)]
    assert len(paths) == 24
    labels = jax.tree.leaves(label_parameters(nnx.state(converted, nnx.Param)))
    assert labels.count("alignment") == 24
    assert labels.count("model") == len(jax.tree.leaves(nnx.state(plain, nnx.Param)))
    assert all("first" in path or "second" in path for path in paths)

    @nnx.jit
    def step(converted, optimizer, plain):
        expected = plain(X)  # with the same dropout

        def loss(converted):
            logits = converted(X)
            value = cross_entropy(logits) + 0.1 * alignment_loss(converted)
            return value, (logits, alignment_table(converted))

        (_, aux), gradient = nnx.value_and_grad(loss, has_aux=True)(converted)
        # Flax before 0.11 gave the optimizer the model when it was made.
        before = len(inspect.signature(optimizer.update).parameters) == 2
        optimizer.update(*(() if before else (converted,)), gradient)
        return expected, *aux, gradient

    expected, logits, table, gradient = step(converted, optimizer, plain)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert sorted(table) == ["first/attention", "second/attention"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.to_pure_dict(gradient)))
    # Statistics and the state of dropout went the same way as the plain model's.
    np.testing.assert_allclose(
        converted.model.first.norm.mean[...], plain.first.norm.mean[...], rtol=1e-5, atol=1e-7
    )
    after = nnx.to_pure_dict(nnx.state(converted, AlignmentParam))
    moved = [not np.array_equal(a, b) for a, b in
             zip(jax.tree.leaves(networks), jax.tree.leaves(after), strict=True)]  # fmt: skip
    assert sum(moved) > 12


def test_evaluation_calls_the_original():
    original = model()
    converted = aligned(original, AlignmentConfig("mmd"), X)
    assert converted.model is original
    converted.eval()
    np.testing.assert_array_equal(converted(X), original(X))
    assert np.isnan(alignment_loss(converted))


def test_what_was_sown_can_be_popped_or_returned():
    converted = aligned(model(), AlignmentConfig("mmd"), X)
    mask = jnp.ones((4, 1, 1, 5), bool).at[0, ..., 3:].set(False)
    call = nnx.jit(lambda converted, mask: converted(X, mask=mask))
    call(converted, mask)
    kept = alignment_loss(converted)
    popped = nnx.pop(converted, AlignmentSown)
    assert alignment_loss(popped) == kept
    call(converted, mask)
    assert len(alignment_table(converted)) == 2
    _, sown = converted.measure(X, mask=mask, collections=["alignment_clouds"])
    clouds = alignment_clouds(sown)["first/attention"]
    assert clouds.query.shape == (4, 5, 2, 4)
    np.testing.assert_array_equal(clouds.query_mask, mask[:, 0, 0])


class Twice(nnx.Module):
    """Holds a converted model in a list, and calls it in a loop that carries it."""

    def __init__(self):
        encoder = aligned(model(), AlignmentConfig("mmd"), X)
        self.parts = nnx.List([encoder]) if hasattr(nnx, "List") else [encoder]

    def __call__(self, x):
        return self.parts[0](x)


def test_a_part_of_another_model():
    outer = Twice()
    nnx.jit(lambda outer: outer(X))(outer)
    expected = alignment_loss(outer.parts[0])
    assert alignment_loss(outer) == expected
    assert list(alignment_table(outer)) == ["parts/0/first/attention", "parts/0/second/attention"]

    @nnx.jit
    def looped(outer):
        return nnx.fori_loop(0, 2, lambda _, c: (c[0], c[0](X).sum()), (outer, jnp.zeros(())))[1]

    fresh = Twice()
    assert np.isfinite(looped(fresh))
    assert np.isfinite(alignment_loss(fresh))


def test_bad_calls_are_named():
    with pytest.raises(TypeError, match=r"aligned\(model, config, x\)"):
        aligned(model(), AlignmentConfig())
    converted = aligned(model(), AlignmentConfig("mmd"), X)
    with pytest.raises(ValueError, match="already aligned"):
        aligned(converted, AlignmentConfig(), X)
    with pytest.raises(ValueError, match="The model Linear has no attention"):
        aligned(nnx.Linear(8, 3, rngs=nnx.Rngs(0)), AlignmentConfig(), X)
    assert str(attention_report(converted, X)) == str(attention_report(converted.model, X))
