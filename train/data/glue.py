"""GLUE: eight tasks of language understanding, one or two sentences each.

Source: "GLUE: A Multi-Task Benchmark and Analysis Platform" (Wang et al., 2019, arXiv 1804.07461),
as tensorflow-datasets publishes it. The prepared files are read at random access (array_record);
TensorFlow is not needed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from align_jax.pretrained import BUCKETS, Tokenizer
from train.data.base import Batch, DataSource, Illustration, Metadata
from train.data.prepared import prepared_builder
from train.data.text import (
    TokenizedTexts,
    check_sizes,
    checkpoint_tokenizer,
    ordered_text_batches,
    shuffled_text_batches,
    subset_rows,
    text_illustration,
)
from train.registry import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """What a task of GLUE consists of.

    Attributes:
        fields: the names of its texts.
        labels: the names of its classes in order; none for a regression.
        splits: in the order of training, validation, test.
        symmetric: whether a pair's label is the same with its texts in the other order.
    """

    fields: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...] = ("train", "validation", "test")
    symmetric: bool = False


_TWO = ("sentence1", "sentence2")
_MNLI_SPLITS = (
    "train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched",
)  # fmt: skip
GLUE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable")),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(_TWO, ("not_equivalent", "equivalent"), symmetric=True),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), symmetric=True),
    "stsb": GlueTask(_TWO, (), symmetric=True),
    "mnli": GlueTask(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), _MNLI_SPLITS
    ),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": GlueTask(_TWO, ("entailment", "not_entailment")),
}
SCORES = (0.0, 5.0)  # the range of STS-B's similarity


@dataclasses.dataclass(frozen=True)
class Glue(DataSource):
    """A task of GLUE as a data source.

    A batch holds "input_ids", "attention_mask" and "token_type_ids" [B, N], "label" (int [B]; for
    STS-B float [B] from 0 to 5), "id" [B] and "mask" [B]. N is the smallest of `buckets` that the
    batch's longest text fits into.

    Attributes:
        dataset: one of `GLUE`.
        folder: the folder that holds "glue/"; "" means $ALIGN_JAX_DATA/tfds or, without that
            variable, tensorflow-datasets' own default.
        tokenizer: the checkpoint whose tokenizer is used, as `model.pretrained`.
        revision: of the checkpoint on the hub; "" for the newest.
        offline: use the hub's cache and no network.
        max_length: in tokens; of longer texts, the longer of a pair loses tokens first.
        batch_size: examples per training step.
        eval_batch_size: rows per evaluation batch.
        train_examples: size of a random subset of the training split to train on; 0 for all.
        both_orders: train on each pair twice, the second time with its texts exchanged; for tasks
            whose label does not depend on the order (MRPC, QQP, STS-B).
        buckets: lengths that batches are padded to; each one is a compilation.
        window: batches' worth of examples within which those of similar length are put together;
            1 puts them together at random.
        seed: of the order of the training examples.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> next(Glue("mrpc", batch_size=32).train_batches())["label"].shape  # doctest: +SKIP
        (32,)
    """

    dataset: str = "mrpc"
    folder: str = ""
    tokenizer: str = "albert/albert-base-v2"
    revision: str = ""
    offline: bool = False
    max_length: int = 512
    batch_size: int = 32
    eval_batch_size: int = 64
    train_examples: int = 0
    both_orders: bool = False
    buckets: tuple[int, ...] = BUCKETS
    window: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in GLUE:
            raise ConfigError(
                f"data.dataset is {self.dataset!r}; {nearest(self.dataset, GLUE)}known: "
                f"{', '.join(GLUE)}."
            )
        check_sizes(self)
        if self.both_orders and not GLUE[self.dataset].symmetric:
            symmetric = ", ".join(name for name, task in GLUE.items() if task.symmetric)
            raise ConfigError(
                f"data.both_orders is True, but a label of {self.dataset} holds for one order of "
                f"its texts; expected False, or one of {symmetric}."
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an example's texts."""
        return GLUE[self.dataset].fields

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in order; none for a regression."""
        return GLUE[self.dataset].labels

    @functools.cached_property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return checkpoint_tokenizer(self.tokenizer, self.revision, self.offline)

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The head that the task needs, and the tokenizer."""
        head: dict[str, Any] = {"head": "regression", "num_labels": 1}
        if self.label_names:
            head = {"head": "classification", "num_labels": len(self.label_names)}
        return Metadata(model={**head, "tokenizer": self.text_tokenizer})

    @functools.cached_property
    def examples(self) -> dict[str, int]:
        """Sizes of the splits.

        Raises:
            ConfigError: the data set is not prepared, or smaller than the subset to train on.
        """
        sizes = {
            split: self._builder.info.splits[split].num_examples
            for split in GLUE[self.dataset].splits
        }
        return sizes | {"train": len(self._train_rows) * (2 if self.both_orders else 1)}

    def train_batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Endless shuffled batches of the training split."""
        return shuffled_text_batches(
            self._split("train"), self.text_tokenizer, self.buckets,
            batch_size=self.batch_size, window=self.window, seed=self.seed, start_step=start_step,
        )  # fmt: skip

    def eval_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split, in order.

        Raises:
            ConfigError: there is no such split, or it has no labels.
        """
        return ordered_text_batches(
            self._split(split), self.text_tokenizer, self.buckets, self.eval_batch_size
        )

    def inputs(self, texts: Sequence[tuple[str, ...]]) -> Batch:
        """The model's inputs for new examples, one tuple of `fields` each."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        return dict(
            self.text_tokenizer.encode(*columns, max_length=self.max_length, buckets=self.buckets)
        )

    def example_batch(self) -> Batch:
        """Made up, so that a run's model can be restored where the data are not at hand."""
        columns = [["text"] * self.batch_size for _ in self.fields]
        kind = np.int32 if self.label_names else np.float32
        return {
            **self.text_tokenizer.encode(*columns, buckets=self.buckets),
            "label": np.zeros(self.batch_size, kind),
            "id": np.zeros(self.batch_size, np.int32),
            "mask": np.ones(self.batch_size, bool),
        }

    def illustration(self, batch: Batch) -> Illustration:
        """The batch's first example, token by token."""
        return text_illustration(batch, self.text_tokenizer, self.label_names)

    @functools.cached_property
    def _builder(self) -> Any:
        return prepared_builder(
            f"glue/{self.dataset}", "tensorflow_datasets.text.glue", self.folder
        )

    @functools.cached_property
    def _train_rows(self) -> np.ndarray:
        whole = self._builder.info.splits["train"].num_examples
        return subset_rows(whole, self.train_examples)

    @functools.cached_property
    def _cache(self) -> dict[str, TokenizedTexts]:
        return {}

    def _split(self, split: str) -> TokenizedTexts:
        """A split, tokenised when it is first asked for."""
        if split not in GLUE[self.dataset].splits:
            raise ConfigError(
                f"GLUE's {self.dataset} has no split {split!r}; "
                f"{nearest(split, GLUE[self.dataset].splits)}known: "
                f"{', '.join(GLUE[self.dataset].splits)}."
            )
        if split not in self._cache:
            train = split == "train"
            rows = self._train_rows if train else np.arange(self.examples[split])
            self._cache[split] = self._read(split, rows, train and self.both_orders)
        return self._cache[split]

    def _read(self, split: str, rows: np.ndarray, both_orders: bool) -> TokenizedTexts:
        source = self._builder.as_data_source(split=split)
        examples = source.__getitems__(rows.tolist())
        where = f"GLUE's {self.dataset}, split {split!r}"
        columns = [
            [example[field].decode("utf-8") for example in examples] for field in self.fields
        ]
        ids = np.array([example["idx"] for example in examples], np.int32)
        labels = np.array([example["label"] for example in examples])
        check_texts(columns, ids, where)
        if both_orders:
            columns = [columns[0] + columns[1], columns[1] + columns[0]]
            ids, labels = np.tile(ids, 2), np.tile(labels, 2)
        return TokenizedTexts(
            self.text_tokenizer.tokenize(*columns, max_length=self.max_length),
            {"label": checked_labels(labels, ids, len(self.label_names), where), "id": ids},
        )


def check_texts(columns: Sequence[Sequence[str]], ids: np.ndarray, where: str) -> None:
    """Refuses examples without any text; QQP has pairs of which one is empty.

    Raises:
        ConfigError: names the first such example.
    """
    for identity, *texts in zip(ids.tolist(), *columns, strict=True):
        if not any(text.strip() for text in texts):
            raise ConfigError(f"{where}: example {identity} has no text. Remove it from the data.")


def checked_labels(labels: np.ndarray, ids: np.ndarray, classes: int, where: str) -> np.ndarray:
    """The labels as a task takes them: int32 classes, or float32 scores if there are no classes.

    Raises:
        ConfigError: there are none (-1 throughout, as in GLUE's test splits), or one is out of
            range.
    """
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
    return labels.astype(np.int32 if classes else np.float32)
