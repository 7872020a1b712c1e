"""What sources of text share: the checkpoint's tokenizer, and batches of few different lengths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from align_jax.models import EncoderConfig
from align_jax.pretrained import BUCKETS, PretrainedError, Tokenizer, load_tokenizer
from align_jax.pretrained.config import from_json
from align_jax.pretrained.files import find_folder, read_json
from align_jax.pretrained.tokenizer import Tokens
from train.data.base import (
    WHOLE,
    Batch,
    DataSource,
    Illustration,
    Share,
    check_least,
    pad,
    whole_batches,
)
from train.registry import ConfigError

SUBSET_SEED = 0  # apart from the run's seed, so that all seeds train on the same examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource(DataSource):
    """What all sources of text share.

    Attributes:
        folder: of tensorflow-datasets' prepared files, as of `prepared_builder`.
        tokenizer: the checkpoint whose tokenizer is used, as `model.pretrained`.
        revision: of the checkpoint on the hub; "" for the newest.
        offline: use the hub's cache and no network.
        max_length: in tokens; of longer texts, the longer of a pair loses tokens first.
        batch_size: rows per training step.
        eval_batch_size: rows per evaluation batch.
        train_examples: size of a random subset of the training split to train on; 0 for all.
        new_subset: draw the subset with the seed, another one for each; else it is always the same.
        buckets: lengths that batches are padded to; each one is a compilation.
        window: batches' worth of examples within which those of similar length are put together;
            1 puts them together at random.
        seed: of the order of the training examples.
    """

    folder: str = ""
    tokenizer: str = "albert/albert-base-v2"
    revision: str = ""
    offline: bool = False
    max_length: int = 512
    batch_size: int = 32
    eval_batch_size: int = 64
    train_examples: int = 0
    new_subset: bool = False
    buckets: tuple[int, ...] = BUCKETS
    window: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, {"batch_size": 1, "eval_batch_size": 1, "window": 1, "train_examples": 0})

    def tokenized(self, split: str) -> TokenizedTexts:
        """A split, tokenised when it is first asked for."""
        raise NotImplementedError

    def subset_rows(self, whole: int) -> np.ndarray:
        """Which of so many training examples to train on, in ascending order.

        Raises:
            ConfigError: `train_examples` is more than the whole.

        Example:
            >>> TextSource(train_examples=2).subset_rows(3).size
            2
        """
        if self.train_examples > whole:
            raise ConfigError(
                f"data.train_examples is {self.train_examples}; expected 0 (all) to {whole}."
            )
        if not self.train_examples:
            return np.arange(whole)
        rng = np.random.default_rng(self.seed if self.new_subset else SUBSET_SEED)
        return np.sort(rng.permutation(whole)[: self.train_examples])

    @functools.cached_property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return checkpoint_tokenizer(self.tokenizer, self.revision, self.offline)

    def train_batches(self, start_step: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Endless shuffled batches of the training split."""
        return self.shuffled(self.tokenized("train"), start_step, share)

    def eval_batches(self, split: str, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass over a split, in order."""
        return self.ordered(self.tokenized(split), self.eval_batch_size, share)

    def shuffled(
        self, texts: TokenizedTexts, start_step: int = 0, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Endless batches in an order that depends on (seed, epoch) alone, see `epoch_order`."""
        lengths, batch_size, window, seed = texts.lengths, self.batch_size, self.window, self.seed
        epoch, position = divmod(start_step, whole_batches(len(texts), batch_size))
        while True:
            for rows in epoch_order(lengths, batch_size, window, (seed, epoch))[position:]:
                yield texts.batch(rows, self.text_tokenizer, self.buckets, share)
            epoch, position = epoch + 1, 0

    def ordered(
        self, texts: TokenizedTexts, batch_size: int, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Every example once, in order, `batch_size` rows each: the last batch is padded."""
        for start in range(0, len(texts), batch_size):
            rows = np.arange(start, min(start + batch_size, len(texts)))
            whole = texts.batch(rows, self.text_tokenizer, self.buckets)
            yield share.of_batch(pad(whole, batch_size))


@dataclasses.dataclass(frozen=True)
class TokenizedTexts:
    """The examples of one split, tokenised and not yet padded."""

    tokens: Sequence[Tokens]  # of each example, or of each of its choices in turn
    arrays: dict[str, np.ndarray]  # what else a batch holds, with a leading example axis
    choices: int = 1  # C, sequences per example: between so many it is chosen

    def __len__(self) -> int:
        return len(self.tokens) // self.choices

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, of several choices the longest one's, int [n]."""
        lengths = np.array([len(one.input_ids) for one in self.tokens])
        return lengths.reshape(-1, self.choices).max(axis=1)

    def batch(
        self, rows: np.ndarray, tokenizer: Tokenizer, buckets: Sequence[int], share: Share = WHOLE
    ) -> Batch:
        """Some of the examples, padded to the smallest bucket that holds the longest of them all.

        Arrays of tokens are [B, N], or with choices [B, C, N].
        """
        longest = self.lengths[rows].max()
        enough = [bucket for bucket in buckets if bucket >= longest] or [int(longest)]
        rows = share.of(rows)
        sequences = (rows[:, None] * self.choices + np.arange(self.choices)).reshape(-1)
        tokens = [self.tokens[number] for number in sequences.tolist()]
        padded = tokenizer.pad(tokens, buckets=enough)
        if self.choices > 1:
            shape = (len(rows), self.choices, -1)
            padded = {name: array.reshape(shape) for name, array in padded.items()}
        chosen = {name: array[rows] for name, array in self.arrays.items()}
        return {**padded, **chosen, "mask": np.ones(len(rows), bool)}


def epoch_order(
    lengths: np.ndarray, batch_size: int, window: int, seed: tuple[int, ...]
) -> np.ndarray:
    """Which examples make each batch of an epoch.

    The examples are shuffled. Of every `window` batches' worth, those of similar length then go
    into one batch, so that less is padding, and these batches are shuffled again. The remainder
    that fills no batch is left out; which examples that hits differs between epochs.

    Args:
        lengths: of the n examples.
        batch_size: examples per batch.
        window: in batches; 1 leaves the order random in all respects.
        seed: of this epoch.

    Example:
        >>> epoch_order(np.array([9, 1, 8, 2]), 2, 2, (0, 0)).shape
        (2, 2)
    """
    rng = np.random.default_rng(seed)
    steps = len(lengths) // batch_size
    order = rng.permutation(len(lengths))[: steps * batch_size]
    for start in range(0, steps * batch_size, window * batch_size):
        part = order[start : start + window * batch_size]
        batches = part[np.argsort(lengths[part], kind="stable")].reshape(-1, batch_size)
        order[start : start + window * batch_size] = rng.permutation(batches).reshape(-1)
    return order.reshape(steps, batch_size)


def text_illustration(batch: Batch, tokenizer: Tokenizer, labels: Sequence[str]) -> Illustration:
    """What people see of a batch's first example: its tokens, and which of `labels` it has."""
    ids = batch["input_ids"][0][batch["attention_mask"][0] == 1]
    words = [tokenizer.backend.decode([x], skip_special_tokens=False) for x in ids.tolist()]
    label = batch["label"][0]
    answer = labels[int(label)] if labels else f"{float(label):.2f}"
    return Illustration(f"id {batch['id'][0]} ({answer})", tuple(words), tuple(labels))


def checkpoint_tokenizer(name: str, revision: str = "", offline: bool = False) -> Tokenizer:
    """A checkpoint's tokenizer; arguments as of `PretrainedTextConfig`."""
    try:
        return load_tokenizer(*_checkpoint(name, revision, offline))
    except (PretrainedError, ImportError) as error:
        raise ConfigError(f"config.data.tokenizer: {error}") from error


def checkpoint_width(name: str, revision: str = "", offline: bool = False) -> int:
    """The size of a checkpoint's hidden vectors; all else as of `checkpoint_tokenizer`."""
    try:
        return _checkpoint(name, revision, offline)[1].hidden_size
    except (PretrainedError, ImportError) as error:
        raise ConfigError(f"config.model.pretrained: {error}") from error


def _checkpoint(name: str, revision: str, offline: bool) -> tuple[Path, EncoderConfig]:
    folder = find_folder(name, revision=revision or None, offline=offline, weights=False)
    return folder, from_json(read_json(folder / "config.json"), str(folder / "config.json"))
