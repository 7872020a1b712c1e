"""Texts with labels: what the sources of classification and regression of texts share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from align_jax.pretrained import BUCKETS, Tokenizer
from align_jax.pretrained.tokenizer import Tokens
from train.data.base import WHOLE, Batch, DataSource, Metadata, Share
from train.data.text import (
    TokenizedTexts,
    check_sizes,
    checkpoint_tokenizer,
    ordered_text_batches,
    shuffled_text_batches,
)
from train.registry import ConfigError, nearest

SCORES = (0.0, 5.0)  # the range of a regression's labels: STS-B's similarity


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples as people read them.

    Attributes:
        columns: for each of the source's fields, the text of every example.
        labels: int [n]; float [n] for a regression.
        ids: int [n], what the source calls them.
    """

    columns: Sequence[Sequence[str]]
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Examples:
        """Some of the examples."""
        columns = [[column[row] for row in rows] for column in self.columns]
        return Examples(columns, self.labels[rows], self.ids[rows])

    def texts(self, row: int) -> tuple[str, ...]:
        """The texts of one example, in the order of the fields."""
        return tuple(column[row] for column in self.columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTexts(DataSource):
    """A source whose examples are one text or several, and a label.

    A batch holds "input_ids", "attention_mask" and "token_type_ids" [B, N], or [B, C, N] where an
    example is a choice between C texts; "label" (int [B], for a regression float [B]), "id" [B] and
    "mask" [B]. N is the smallest of `buckets` that the batch's longest text fits into.

    Attributes:
        folder: of tensorflow-datasets' prepared files; "" means $ALIGN_JAX_DATA/tfds or, without
            that variable, tensorflow-datasets' own default.
        tokenizer: the checkpoint whose tokenizer is used, as `model.pretrained`.
        revision: of the checkpoint on the hub; "" for the newest.
        offline: use the hub's cache and no network.
        max_length: in tokens; of longer texts, the longer of a pair loses tokens first.
        batch_size: examples per training step.
        eval_batch_size: rows per evaluation batch.
        train_examples: size of a random subset of the training split to train on; 0 for all.
        buckets: lengths that batches are padded to; each one is a compilation.
        window: batches' worth of examples within which those of similar length are put together;
            1 puts them together at random.
        seed: of the order of the training examples.

    Raises:
        ConfigError: a value is out of range.
    """

    folder: str = ""
    tokenizer: str = "albert/albert-base-v2"
    revision: str = ""
    offline: bool = False
    max_length: int = 512
    batch_size: int = 32
    eval_batch_size: int = 64
    train_examples: int = 0
    buckets: tuple[int, ...] = BUCKETS
    window: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def title(self) -> str:
        """What messages call the data."""
        raise NotImplementedError

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        raise NotImplementedError

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an example's texts."""
        raise NotImplementedError

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in order; none for a regression."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """Texts that an example is a choice between; 1 where it is no such choice."""
        return 1

    def read(self, split: str) -> Examples:
        """The examples of a split as they are, in order; of "train" those that are trained on.

        Raises:
            ConfigError: they cannot be read, or have no or wrong labels.
        """
        raise NotImplementedError

    def tokenize(self, columns: Sequence[Sequence[str]]) -> list[Tokens]:
        """One entry for each example, or for each of its choices in turn.

        Args:
            columns: for each of `fields`, the texts.
        """
        return self._tokens(*columns)

    def _tokens(self, *columns: Sequence[str]) -> list[Tokens]:
        try:
            return self.text_tokenizer.tokenize(*columns, max_length=self.max_length)
        except ValueError as error:  # no positions for so many tokens
            raise ConfigError(f"config.data: {error}") from error

    @functools.cached_property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return checkpoint_tokenizer(self.tokenizer, self.revision, self.offline)

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The head that the task needs, and the tokenizer."""
        head: dict[str, Any] = {"head": "regression", "num_labels": 1}
        if self.choices > 1:
            head = {"head": "multiple_choice"}
        elif self.label_names:
            head = {"head": "classification", "num_labels": len(self.label_names)}
        return Metadata(model={**head, "tokenizer": self.text_tokenizer})

    def train_batches(self, start_step: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Endless shuffled batches of the training split."""
        return shuffled_text_batches(
            self._split("train"), self.text_tokenizer, self.buckets,
            batch_size=self.batch_size, window=self.window, seed=self.seed,
            start_step=start_step, share=share,
        )  # fmt: skip

    def eval_batches(self, split: str, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass over a split, in order.

        Raises:
            ConfigError: there is no such split, or it has no labels.
        """
        return ordered_text_batches(
            self._split(split), self.text_tokenizer, self.buckets, self.eval_batch_size, share
        )

    def inputs(self, texts: Sequence[tuple[str, ...]]) -> Batch:
        """The model's inputs for new examples, one tuple of `fields` each."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        tokens = TokenizedTexts(self.tokenize(columns), {}, self.choices)
        batch = tokens.batch(np.arange(len(texts)), self.text_tokenizer, self.buckets)
        return {name: array for name, array in batch.items() if name != "mask"}

    def example_batch(self) -> Batch:
        """Made up, so that a run's model can be restored where the data are not at hand."""
        kind = np.int32 if self.label_names else np.float32
        return {
            **self.inputs([("text",) * len(self.fields)] * self.batch_size),
            "label": np.zeros(self.batch_size, kind),
            "id": np.zeros(self.batch_size, np.int32),
            "mask": np.ones(self.batch_size, bool),
        }

    def check_split(self, split: str) -> None:
        """Refuses a split that there is not.

        Raises:
            ConfigError: names the nearest one.
        """
        if split not in self.splits:
            raise ConfigError(
                f"{self.title} has no split {split!r}; {nearest(split, self.splits)}known: "
                f"{', '.join(self.splits)}."
            )

    @functools.cached_property
    def _cache(self) -> dict[str, TokenizedTexts]:
        return {}

    def _split(self, split: str) -> TokenizedTexts:
        """A split, tokenised when it is first asked for."""
        self.check_split(split)
        if split not in self._cache:
            examples = self.read(split)
            self._cache[split] = TokenizedTexts(
                self.tokenize(examples.columns),
                {"label": examples.labels, "id": examples.ids},
                self.choices,
            )
        return self._cache[split]


def checked_examples(
    columns: Sequence[Sequence[str]], labels: np.ndarray, ids: np.ndarray, classes: int, where: str
) -> Examples:
    """Examples that something can be learnt or measured from.

    Args:
        columns: for each field, the texts.
        labels: of the examples.
        ids: of the examples.
        classes: how many there are; 0 for a regression.
        where: the data set and split, for messages.

    Returns:
        The examples, with labels as a task takes them: int32 classes, or float32 scores.

    Raises:
        ConfigError: there are no labels (-1 throughout, as in GLUE's test splits), one is out of
            range, or an example has no text at all; QQP has pairs of which one is empty.
    """
    for identity, *texts in zip(ids.tolist(), *columns, strict=True):
        if not any(text.strip() for text in texts):
            raise ConfigError(f"{where}: example {identity} has no text. Remove it from the data.")
    if len(labels) and (labels == -1).all():
        raise ConfigError(
            f"{where} has no labels, so it cannot be trained on or evaluated. Name another split "
            f"in config.eval; python -m train.predict labels new texts."
        )
    low, high = (0, classes - 1) if classes else SCORES
    wrong = np.flatnonzero(~((labels >= low) & (labels <= high)))
    if wrong.size:
        raise ConfigError(
            f"{where}: example {ids[wrong[0]]} has the label {labels[wrong[0]]}; expected {low} to "
            f"{high}."
        )
    kind = np.int32 if classes else np.float32
    return Examples(columns, labels.astype(kind), ids.astype(np.int32))
