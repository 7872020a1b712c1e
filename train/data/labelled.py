"""Texts with labels: what the sources of classification and regression of texts share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from align_jax.pretrained.tokenizer import Tokens
from train.data.base import Batch, Metadata, kept
from train.data.text import TextSource, TokenizedTexts
from train.registry import ConfigError, check_known

CHUNK = 4096  # texts tokenised at once: what the tokenizer returns takes far more than its tokens
SCORES = (0.0, 5.0)  # the range of a regression's labels: STS-B's similarity


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples as people read them."""

    columns: Sequence[Sequence[str]]  # for each of the source's fields, the text of every example
    labels: np.ndarray  # int [n]; float [n] for a regression
    ids: np.ndarray  # int [n], what the source calls them

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
class LabelledTexts(TextSource):
    """A source whose examples are one text or several, and a label.

    A batch holds "input_ids", "attention_mask" and "token_type_ids" [B, N], or [B, C, N] where an
    example is a choice between C texts; "label" (int [B], for a regression float [B]), "id" [B] and
    "mask" [B]. N is the smallest of `buckets` that the batch's longest text fits into.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        raise NotImplementedError

    @functools.cached_property
    def examples(self) -> dict[str, int]:
        """Sizes of the splits."""
        return {split: len(self.read(split)) for split in self.splits}

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
        """The examples of a split as they are, in order; of "train" those that are trained on."""
        raise NotImplementedError

    def tokenize(self, columns: Sequence[Sequence[str]]) -> list[Tokens]:
        """The texts of each of `fields`: an entry per example, or for each of its choices."""
        return self._tokens(*columns)

    def _tokens(self, *columns: Sequence[str]) -> list[Tokens]:
        tokenize = functools.partial(self.text_tokenizer.tokenize, max_length=self.max_length)
        try:
            return [tokens for part in chunks(columns) for tokens in tokenize(*part)]
        except ValueError as error:  # no positions for so many tokens
            raise ConfigError(f"config.data: {error}") from error

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The head that the task needs, and the tokenizer."""
        head: dict[str, Any] = {"head": "regression", "num_labels": 1}
        if self.choices > 1:
            head = {"head": "multiple_choice"}
        elif self.label_names:
            head = {"head": "classification", "num_labels": len(self.label_names)}
        return Metadata(model={**head, "tokenizer": self.text_tokenizer})

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
        """Raises ConfigError if there is no such split; names the nearest one."""
        check_known(f"{type(self).__name__} has no split", split, self.splits)

    @kept
    def tokenized(self, split: str) -> TokenizedTexts:
        """A split, tokenised when it is first asked for."""
        examples = self.read(split)
        arrays = {"label": examples.labels, "id": examples.ids}
        return TokenizedTexts(self.tokenize(examples.columns), arrays, self.choices)


def chunks(columns: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """The columns in parts of at most `CHUNK` texts."""
    for at in range(0, len(columns[0]), CHUNK):
        yield [column[at : at + CHUNK] for column in columns]


def checked_examples(
    columns: Sequence[Sequence[str]], labels: np.ndarray, ids: np.ndarray, classes: int, where: str
) -> Examples:
    """Examples that something can be learnt or measured from.

    Args:
        columns: for each field, the texts.
        labels: of the examples; they become int32 classes, or float32 scores.
        ids: of the examples.
        classes: how many there are; 0 for a regression.
        where: the data set and split, for messages.

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
