"""What is held out: the share, of each class as much, and no copy on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from train.data.held_out import held_out


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_each_class_has_its_share(share) -> None:
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    kept, out = held_out(range(1000), labels, share, seed=0)
    assert sorted([*kept, *out]) == list(range(1000))
    np.testing.assert_array_equal(np.bincount(labels[out]), [700 * share, 200 * share, 100 * share])


def test_rare_classes_make_up_the_share_together() -> None:
    """A tenth of each alone would be rounded to none."""
    labels = np.repeat(np.arange(20), 4)
    _, out = held_out(range(80), labels, 0.1, seed=0)
    assert len(out) == 8
    assert np.bincount(labels[out]).max() == 1


def test_copies_stay_together_and_each_class_can_be_learnt() -> None:
    keys = [f"text {number // 3}" for number in range(300)]  # three copies each
    labels = np.arange(300) // 3 % 2
    kept, out = held_out(keys, labels, 0.2, seed=1)
    assert len(out) == pytest.approx(60, abs=3)
    assert not {keys[row] for row in kept} & {keys[row] for row in out}
    kept, out = held_out(["a", "a", "b", "b"], np.array([0, 0, 1, 1]), 0.5, seed=0)
    assert (len(kept), len(out)) == (4, 0)  # of neither class could a part be left


def test_scores_are_held_out_from_high_to_low() -> None:
    scores = np.random.default_rng(0).lognormal(size=1000).astype(np.float32)
    kept, out = held_out(range(1000), scores, 0.1, seed=0)
    assert len(out) == 100
    np.testing.assert_allclose(
        np.quantile(scores[out], [0.1, 0.5, 0.9]), np.quantile(scores[kept], [0.1, 0.5, 0.9]),
        rtol=0.15,
    )  # fmt: skip


def test_the_choice_is_that_of_its_seed() -> None:
    labels = np.zeros(50, int)
    first, same, other = (held_out(range(50), labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == same != other
