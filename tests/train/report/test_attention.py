"""Attention maps: the weights are those that the attention used."""

from __future__ import annotations

import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.special

from align_jax import AlignmentConfig, Clouds, MultiHeadDotProductAttention
from tests.train.tiny_glue import fake_glue, tiny_config
from train.experiment.experiment import build_experiment
from train.registry import ConfigError
from train.report.attention import attention_weights, draw_words, example_maps


def test_the_weights_are_those_that_flax_sows() -> None:
    tokens = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    valid = np.array([[True] * 5, [True, True, True, False, False]])
    attention = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("ct"))
    variables = jax.jit(attention.init)(jax.random.key(1), tokens)
    apply = functools.partial(
        attention.apply, sow_weights=True, mutable=["intermediates", "alignment_clouds"]
    )
    _, sown = jax.jit(apply)(variables, tokens, mask=valid[:, None, None, :])
    expected = sown["intermediates"]["attention_weights"][0]
    found = sown["alignment_clouds"]["alignment"]
    weights = attention_weights(Clouds(*(np.asarray(found[x][0]) for x in Clouds._fields)))
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_padded_keys_get_no_weight_and_the_rest_adds_up_to_one() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(1, 3, 2, 4)), rng.normal(size=(1, 4, 2, 4))
    mask = np.array([[True, False, True, True]])
    weights = attention_weights(Clouds(query, key, np.ones((1, 3), bool), mask))
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0)
    assert not weights[..., 1].any()
    scores = query[0, 2, 1] @ key[0, [0, 2, 3], 1].T / 2
    np.testing.assert_allclose(weights[0, 1, 2, [0, 2, 3]], scipy.special.softmax(scores))


def test_a_texts_map_is_between_its_tokens(checkpoint, tmp_path, monkeypatch) -> None:
    builder = fake_glue(monkeypatch)
    builder.examples["validation"][9] |= {"sentence1": b"$the$ dogs", "sentence2": b"a cat"}
    experiment = build_experiment(tiny_config(checkpoint))
    state = experiment.initial_state()
    maps = example_maps(experiment, state, 9)  # of the second batch
    shown = maps.shown
    assert maps.words.shape == (len(shown.words),) * 2
    np.testing.assert_allclose(maps.words.sum(axis=-1), 1.0, rtol=1e-5)
    assert maps.patches is None
    assert maps.prediction in shown.answers
    with pytest.raises(ConfigError, match="no example 11 to draw: validation has 11"):
        example_maps(experiment, state, 11)

    figure, axes = plt.subplots()
    draw_words(axes, np.eye(2), ("$a$", "b$"))  # dollars are no formulas
    figure.savefig(tmp_path / "words.png")
    plt.close(figure)
