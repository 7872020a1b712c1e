"""Order, padding and resumption of text batches, and where a tokenizer is found."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from align_jax.pretrained.tokenizer import Tokens
from tests.train.tiny_glue import BUCKETS, tiny_checkpoint
from train.data.text import (
    TextSource,
    TokenizedTexts,
    checkpoint_tokenizer,
    epoch_order,
)
from train.registry import ConfigError

LENGTHS = np.random.default_rng(0).integers(3, 30, size=50)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> TextSource:
    checkpoint = str(tiny_checkpoint(tmp_path_factory.mktemp("bert")))
    return TextSource(tokenizer=checkpoint, buckets=BUCKETS, batch_size=8, window=2, seed=3)


@pytest.fixture(scope="module")
def tokenizer(source):
    return source.text_tokenizer


@pytest.fixture(scope="module")
def texts() -> TokenizedTexts:
    tokens = [Tokens(np.full(n, 5, np.int32), np.zeros(n, np.int32)) for n in LENGTHS]
    return TokenizedTexts(tokens, {"id": np.arange(len(tokens))})


@pytest.mark.parametrize("window", [1, 3, 100])
def test_an_epoch_holds_each_example_at_most_once_and_leaves_out_less_than_a_batch(window) -> None:
    order = epoch_order(LENGTHS, 8, window, (0, 0))
    assert order.shape == (6, 8)
    assert len(set(order.reshape(-1).tolist())) == 48


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(LENGTHS, 8, 3, (0, 0))
    np.testing.assert_array_equal(first, epoch_order(LENGTHS, 8, 3, (0, 0)))
    assert (first != epoch_order(LENGTHS, 8, 3, (0, 1))).any()
    assert (first != epoch_order(LENGTHS, 8, 3, (1, 0))).any()


def test_a_window_puts_examples_of_similar_length_together_but_not_in_order() -> None:
    spread = {
        window: np.ptp(LENGTHS[epoch_order(LENGTHS, 8, window, (0, 0))], axis=1).mean()
        for window in (1, 6)
    }
    assert spread[6] < 0.5 * spread[1]
    longest = LENGTHS[epoch_order(LENGTHS, 8, 6, (0, 0))].max(axis=1)
    assert (np.diff(longest) < 0).any()


def test_resuming_yields_what_an_uninterrupted_run_would_see(texts, source) -> None:
    whole = list(itertools.islice(source.shuffled(texts), 15))
    for start in (1, 5, 6, 13):
        resumed = next(source.shuffled(texts, start))
        for name, array in whole[start].items():
            np.testing.assert_array_equal(resumed[name], array)
    first, second = ([batch["id"].tolist() for batch in whole[n : n + 6]] for n in (0, 6))
    assert first != second  # epochs


def test_a_batch_is_padded_to_the_smallest_bucket_that_fits(texts, tokenizer) -> None:
    batch = texts.batch(np.array([int(LENGTHS.argmin())]), tokenizer, BUCKETS)
    assert batch["input_ids"].shape == (1, 8)
    eight = Tokens(np.full(8, 5, np.int32), np.zeros(8, np.int32))
    batch = TokenizedTexts([eight], {}).batch(np.array([0]), tokenizer, BUCKETS)
    assert batch["input_ids"].shape == (1, 8)
    batch = texts.batch(np.arange(50), tokenizer, BUCKETS)
    assert batch["input_ids"].shape == (50, 32)
    np.testing.assert_array_equal(batch["attention_mask"].sum(axis=1), LENGTHS)


def test_ordered_batches_hold_every_example_once(texts, source) -> None:
    batches = list(source.ordered(texts, 8))
    assert all(len(batch["mask"]) == 8 for batch in batches)
    ids = np.concatenate([batch["id"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(ids, np.arange(50))


def test_a_batch_larger_than_the_data_is_refused(texts, source) -> None:
    with pytest.raises(ValueError, match="batch_size is 51; expected 1 to 50"):
        next(dataclasses.replace(source, batch_size=51).shuffled(texts))


def test_a_missing_checkpoint_is_a_config_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match="config.data.tokenizer: .*no folder"):
        checkpoint_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="config.data.tokenizer: .*--no-deps no-such-weights"):
        checkpoint_tokenizer("package:no_such_weights/model")
