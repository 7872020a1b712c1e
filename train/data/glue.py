"""GLUE: eight tasks of language understanding, one or two sentences each.

Source: "GLUE: A Multi-Task Benchmark and Analysis Platform" (Wang et al., 2019, arXiv 1804.07461),
as tensorflow-datasets publishes it. The prepared files are read at random access (array_record);
TensorFlow is not needed.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from train.data.base import Batch, Illustration
from train.data.labelled import Examples, LabelledTexts, checked_examples
from train.data.prepared import prepared_builder, prepared_examples, prepared_text
from train.data.text import text_illustration
from train.registry import ConfigError, check_known


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """What a task of GLUE consists of."""

    fields: tuple[str, ...]  # the names of its texts
    labels: tuple[str, ...]  # the names of its classes in order; none for a regression
    splits: tuple[str, ...] = ("train", "validation", "test")
    symmetric: bool = False  # whether a pair's label is the same in the other order


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


@dataclasses.dataclass(frozen=True)
class Glue(LabelledTexts):
    """A task of GLUE; its batches and other settings are those of `LabelledTexts`.

    Attributes:
        dataset: one of `GLUE`.
        both_orders: train on each pair twice, the second time with its texts exchanged; for tasks
            whose label does not depend on the order (MRPC, QQP, STS-B).
        without_texts_of: tasks of GLUE; training leaves out examples with a text that one of their
            other splits holds too. For a run whose parameters another task then starts from: some
            tasks share texts (STS-B and MRPC). Letters and digits are compared, in lower case.
    """

    dataset: str = "mrpc"
    both_orders: bool = False
    without_texts_of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_known("data.dataset names", self.dataset, GLUE)
        for task in self.without_texts_of:
            check_known("data.without_texts_of names", task, GLUE)
        super().__post_init__()
        if self.both_orders and not GLUE[self.dataset].symmetric:
            symmetric = ", ".join(name for name, task in GLUE.items() if task.symmetric)
            raise ConfigError(
                f"data.both_orders is True, but a label of {self.dataset} holds for one order of "
                f"its texts; expected False, or one of {symmetric}."
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return GLUE[self.dataset].splits

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an example's texts."""
        return GLUE[self.dataset].fields

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in order; none for a regression."""
        return GLUE[self.dataset].labels

    @functools.cached_property
    def examples(self) -> dict[str, int]:
        """Sizes of the splits."""
        sizes = {split: self._builder.info.splits[split].num_examples for split in self.splits}
        return sizes | {"train": len(self._train_rows) * (2 if self.both_orders else 1)}

    def read(self, split: str) -> Examples:
        """The examples of a split, in order; of "train" the subset, in both orders if told."""
        self.check_split(split)
        rows = self._train_rows if split == "train" else np.arange(self.examples[split])
        examples = prepared_examples(self._builder, split, rows)
        where = f"GLUE's {self.dataset}, split {split!r}"
        columns = [
            [prepared_text(x[field], where, x["idx"]) for x in examples] for field in self.fields
        ]
        ids, labels = (np.array([x[name] for x in examples]) for name in ("idx", "label"))
        if split == "train" and self.both_orders:
            columns = [columns[0] + columns[1], columns[1] + columns[0]]
            ids, labels = np.tile(ids, 2), np.tile(labels, 2)
        return checked_examples(columns, labels, ids, len(self.label_names), where)

    def illustration(self, batch: Batch) -> Illustration:
        """The batch's first example, token by token."""
        return text_illustration(batch, self.text_tokenizer, self.label_names)

    @functools.cached_property
    def _builder(self) -> Any:
        return _builder(self.dataset, self.folder)

    @functools.cached_property
    def _train_rows(self) -> np.ndarray:
        allowed = np.arange(self._builder.info.splits["train"].num_examples)
        if self.without_texts_of:
            forbidden = set().union(
                *(
                    texts
                    for task in self.without_texts_of
                    for split in GLUE[task].splits[1:]
                    for texts in _compared_texts(task, split, self.folder)
                )
            )
            texts = _compared_texts(self.dataset, "train", self.folder)
            allowed = allowed[[forbidden.isdisjoint(of_one) for of_one in texts]]
        return allowed[self.subset_rows(len(allowed))]


def _builder(dataset: str, folder: str) -> Any:
    return prepared_builder(f"glue/{dataset}", "tensorflow_datasets.text.glue", folder)


def _compared_texts(dataset: str, split: str, folder: str) -> list[set[str]]:
    """Of each example of a split its texts, their letters and digits in lower case."""
    builder, where = _builder(dataset, folder), f"glue/{dataset}, split {split!r}"
    rows = np.arange(builder.info.splits[split].num_examples)
    return [
        {
            re.sub(r"\W+", "", prepared_text(example[field], where, example["idx"]).lower())
            for field in GLUE[dataset].fields
        }
        for example in prepared_examples(builder, split, rows)
    ]
