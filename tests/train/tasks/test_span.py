"""The loss of spans against its definition, and the best spans against trying all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from align_jax.models.heads import SpanLogits
from train.registry import ConfigError
from train.tasks.span import SpanExtraction, best_spans


def logits(batch: int, tokens: int) -> SpanLogits:
    rng = np.random.default_rng(0)
    return SpanLogits(*jnp.asarray(rng.normal(size=(2, batch, tokens)), jnp.float32))


def test_the_loss_is_the_mean_cross_entropy_of_both_ends_without_padding() -> None:
    outputs, valid = logits(2, 7), np.arange(7) < np.array([[7], [4]])
    batch = {
        "attention_mask": valid.astype(np.int32),
        "start": np.array([2, 1]),
        "end": np.array([5, 3]),
    }
    losses = jax.jit(SpanExtraction().loss)
    loss = losses(outputs, batch)
    for row, length in enumerate((7, 4)):
        start, end = (log_softmax(np.float64(x[row, :length])) for x in outputs)
        expected = -(start[batch["start"][row]] + end[batch["end"][row]]) / 2
        assert float(loss[row]) == pytest.approx(expected, rel=1e-5)

    # Whatever the padding says changes nothing, and has no gradient.
    wild = SpanLogits(*(np.where(valid, x, np.float32(np.nan)) for x in outputs))
    np.testing.assert_array_equal(losses(wild, batch), loss)
    gradients = jax.jit(jax.grad(lambda x: losses(x, batch).sum()))(outputs)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[~valid] == 0).all()


@pytest.mark.parametrize(("longest", "count"), [(30, 5), (3, 5), (1, 4), (4, 60)])
def test_the_best_spans_are_the_best_of_all(longest: int, count: int) -> None:
    outputs = logits(3, 9)
    position = np.arange(9)
    inside = (position >= 2) & (position <= np.array([[8], [5], [1]]))  # the last: no token
    scores, starts, ends = best_spans(outputs, jnp.asarray(inside), count, longest)
    assert scores.shape == starts.shape == ends.shape == (3, count)
    for row in range(3):
        tokens = np.flatnonzero(inside[row])
        every = [
            (float(outputs.start[row, a] + outputs.end[row, b]), a, b)
            for a in tokens
            for b in tokens
            if a <= b < a + longest
        ]
        best = sorted(every, reverse=True)[:count]
        found = list(
            zip(*(np.asarray(x)[row].tolist() for x in (scores, starts, ends)), strict=True)
        )
        assert found[: len(best)] == best
        assert np.isneginf(np.asarray(scores)[row, len(best) :]).all()


def test_predictions_of_windows_of_different_lengths_can_be_joined() -> None:
    shapes = []
    for tokens in (4, 40):
        batch = {
            "context": np.array([[1, tokens - 2]]), "id": np.array([3]), "window": np.array([7]),
        }  # fmt: skip
        found = SpanExtraction().predictions(logits(1, tokens), batch)
        shapes.append({name: value.shape for name, value in found.items()})
    assert shapes[0] == shapes[1]
    assert shapes[0]["span_score"] == (1, 20)


def test_an_answer_lies_in_the_context_and_may_be_all_of_it() -> None:
    batch = {"context": np.array([[1, 2]]), "id": np.array([3]), "window": np.array([7])}
    found = SpanExtraction(n_best=4).predictions(logits(1, 4), batch)
    names = ("span_start", "span_end", "span_score")
    spans = zip(*(found[name][0].tolist() for name in names), strict=True)
    assert {(a, b) for a, b, score in spans if score > -np.inf} == {(1, 1), (1, 2), (2, 2)}


def test_no_spans_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.n_best is 0; expected 1 or more"):
        SpanExtraction(n_best=0)
