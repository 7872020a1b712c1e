"""Batching: deterministic, resumable, and every example exactly once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from train.data.base import Share, ordered_batches, pad, shuffled_batches
from train.data.digits import Digits
from train.registry import ConfigError


def arrays(examples: int) -> dict[str, np.ndarray]:
    return {"id": np.arange(examples), "x": np.arange(examples) * 2.0}


def take(batches, count: int) -> list[np.ndarray]:
    return [batch["id"] for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9])
def test_starting_later_gives_the_same_batches(start: int) -> None:
    whole = take(shuffled_batches(arrays(14), 4, seed=5), 12)
    resumed = take(shuffled_batches(arrays(14), 4, seed=5, start_step=start), 12 - start)
    np.testing.assert_array_equal(whole[start:], resumed)


def test_an_epoch_repeats_no_example_and_epochs_differ() -> None:
    first, second = np.split(np.concatenate(take(shuffled_batches(arrays(12), 4, 0), 6)), 2)
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)


def test_an_epoch_has_as_many_steps_as_batches() -> None:
    data = Digits(batch_size=100)
    assert data.steps_per_epoch == data.examples["train"] // 100
    object.__setattr__(data, "batch_size", 5000)
    with pytest.raises(ConfigError, match="data.batch_size is 5000; expected 1 to"):
        _ = data.steps_per_epoch


def test_seeds_give_different_orders() -> None:
    orders = [tuple(take(shuffled_batches(arrays(40), 40, seed), 1)[0]) for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_the_shares_of_a_batch_are_the_batch() -> None:
    shares = [
        take(shuffled_batches(arrays(14), 6, seed=0, share=Share(number, 3)), 4)
        for number in range(3)
    ]
    np.testing.assert_array_equal(
        np.concatenate(shares, axis=1), take(shuffled_batches(arrays(14), 6, seed=0), 4)
    )


@pytest.mark.parametrize(("examples", "size"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_ordered_batches_hold_every_example_once_in_one_shape(examples: int, size: int) -> None:
    batches = list(ordered_batches(arrays(examples), size))
    assert {batch["x"].shape for batch in batches} == {(size,)}
    seen = np.concatenate([batch["id"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(examples))


def test_padding_is_masked_and_keeps_dtypes() -> None:
    batch = {"x": np.array([3, 4], np.int32), "mask": np.array([True, False])}
    padded = pad(batch, 4)
    np.testing.assert_array_equal(padded["mask"], [True, False, False, False])
    assert padded["x"].dtype == np.int32
    assert padded["x"].shape == (4,)


@pytest.mark.parametrize("size", [0, 6])
def test_a_batch_size_that_cannot_be_is_named(size: int) -> None:
    with pytest.raises(ValueError, match=rf"batch_size is {size}; expected 1 to 5"):
        next(shuffled_batches(arrays(5), size, seed=0))


def test_empty_and_uneven_data_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        next(ordered_batches(arrays(0), 2))
    with pytest.raises(ValueError, match="differ in length"):
        next(ordered_batches({"a": np.ones(2), "b": np.ones(3)}, 2))
