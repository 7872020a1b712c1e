"""Classification against NumPy and scikit-learn."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, log_loss

from train.registry import ConfigError
from train.tasks.classification import Classification
from train.tasks.metrics import compute

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
BATCH = {
    "label": np.array([0, 1, 2, 3, 0, 1]),
    "mask": np.array([True, True, True, True, False, False]),
}


def test_loss_is_scikit_learns_log_loss() -> None:
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    losses = Classification().loss(jnp.asarray(LOGITS), BATCH)
    assert losses.shape == (6,)
    expected = log_loss(BATCH["label"], probabilities, labels=range(4))
    assert losses.mean() == pytest.approx(expected, rel=1e-5)


def test_smoothed_labels_cost_what_they_cost_in_pytorch() -> None:
    torch = pytest.importorskip("torch")
    losses = Classification(label_smoothing=0.2).loss(jnp.asarray(LOGITS), BATCH)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(BATCH["label"]), label_smoothing=0.2, reduction="none"
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_leaves_no_label_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match=f"label_smoothing is {smoothing}"):
        Classification(label_smoothing=smoothing)


def test_metrics_leave_out_padding() -> None:
    values = compute(jax.jit(Classification().metrics)(LOGITS, BATCH))
    expected = accuracy_score(BATCH["label"][:4], LOGITS[:4].argmax(axis=1))
    assert values["accuracy"] == pytest.approx(expected)
    assert 0.0 <= values["ece"] <= 1.0
    probabilities = np.exp(LOGITS[:4]) / np.exp(LOGITS[:4]).sum(axis=1, keepdims=True)
    assert values["brier"] == pytest.approx(np.square(probabilities - np.eye(4)).sum() / 4)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\['pixels'\].*'label', 'mask'"):
        Classification(inputs=("pixels",)).apply(nn.Dense(1), {}, BATCH, train=False)


def test_uncertainty_leaves_out_padding() -> None:
    """Three passes that agree but for noise: certain where the two best answers lie far apart."""
    rng = np.random.default_rng(1)
    mean = np.array([[9, 0, 0, 0], [9, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [9, 0, 0, 0]])
    passes = mean + 0.01 * rng.normal(size=(3, 5, 4))
    passes[0, 3, 2] = 1.5  # the first pass alone would have this one right
    passes = jnp.asarray(passes, jnp.float32)
    batch = {"label": np.array([0, 3, 2, 2, 3]), "mask": np.array([1, 1, 1, 1, 0], bool)}
    values = compute(jax.jit(Classification().stochastic_metrics)(passes, batch))
    certain = scipy.stats.ttest_ind(
        *np.moveaxis(np.asarray(jax.nn.softmax(passes))[:, :4, :2], 2, 0), equal_var=False
    ).pvalue < 0.05  # fmt: skip
    assert certain.tolist()[:2] == [True, True]
    assert values["certain"] == pytest.approx(certain.mean())
    right = np.array([True, False, False, False])
    assert values["pavpu"] == pytest.approx((right == certain).mean())


def test_predictions_hold_what_a_temperature_is_fitted_to() -> None:
    found = Classification().predictions(jnp.asarray(LOGITS, jnp.bfloat16), BATCH)
    assert found["logits"].dtype == jnp.float32
    np.testing.assert_array_equal(found["prediction"], LOGITS.argmax(axis=1))
