"""SQuAD 1.1 and 2.0: questions about a text, whose answer is a span of it or, in 2.0, none.

A long context is read in several overlapping windows; an example of a batch is one window.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.pretrained import encode_windows
from align_jax.pretrained.tokenizer import Tokens
from train.data.base import Batch, Metadata, data_folder, kept
from train.data.prepared import prepared_builder, prepared_examples
from train.data.squad_files import Question, check_questions, read_json, read_prepared
from train.data.text import TextSource, TokenizedTexts
from train.registry import ConfigError, check_known

VERSIONS = ("v1.1", "v2.0")
SOURCES = ("tfds", "json")
FILES = {"train": "train", "validation": "dev"}  # split -> beginning of the official file's name
TFDS_MODULE = "tensorflow_datasets.datasets.squad.squad_dataset_builder"
CHUNK = 512  # questions tokenised at once


@dataclasses.dataclass(frozen=True)
class SquadWindows:
    """Questions with their windows."""

    questions: Sequence[Question]
    texts: TokenizedTexts  # their windows, in the order of the questions
    offsets: Sequence[np.ndarray]  # of each, int [n, 2]: characters of the context per token


@dataclasses.dataclass(frozen=True)
class Squad(TextSource):
    """SQuAD as a data source.

    A batch holds, of B windows, "input_ids", "attention_mask" and "token_type_ids" [B, N]; "start"
    and "end" [B], the answer's first and last token, both 0 (the first token, which is no text's)
    where the window does not hold it; "context" [B, 2], the first and last token of the context;
    "id" [B], the number of the question in its split; "window" [B], that of the window; "mask" [B].

    Attributes:
        version: "v1.1" or "v2.0".
        source: "tfds" for tensorflow-datasets' prepared files, "json" for the official files.
        folder: of the prepared files as in `prepared_builder`; or of train-v2.0.json and so on,
            where "" means $ALIGN_JAX_DATA/squad or, without that variable, the current folder.
        max_length: of a window in tokens.
        stride: tokens that a window shares with the one before.
        max_question: a question is cut after so many tokens.
        train_examples: size of a random subset of the training questions; 0 for all.
    """

    version: str = "v2.0"
    source: str = "tfds"
    stride: int = 128
    max_question: int = 64
    max_length: int = dataclasses.field(default=384, kw_only=True)
    batch_size: int = dataclasses.field(default=48, kw_only=True)

    fields = ("question", "context")
    label_names = ()

    def __post_init__(self) -> None:
        check_known("data.version is", self.version, VERSIONS)
        check_known("data.source is", self.source, SOURCES)
        super().__post_init__()

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The head that the task needs, and the tokenizer."""
        return Metadata(model={"head": "span", "tokenizer": self.text_tokenizer})

    @functools.cached_property
    def examples(self) -> dict[str, int]:
        """Number of questions per split."""
        return {split: len(self._questions(split)) for split in FILES}

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in which each window, of which long contexts have several, is seen."""
        return max(len(self.tokenized("train")) // self.batch_size, 1)

    def tokenized(self, split: str) -> TokenizedTexts:
        """A split's windows."""
        return self.references(split).texts

    @kept
    def references(self, split: str) -> SquadWindows:
        """A split's questions with their answers, and their windows, made when first asked for."""
        return self.windows(self._questions(split))

    def example_batch(self) -> Batch:
        """Made up, so that a run's model can be restored where the data are not at hand."""
        made = self.windows([Question("0", "text", "text")] * self.batch_size)
        return next(self.ordered(made.texts, self.eval_batch_size))

    def windows(self, questions: Sequence[Question]) -> SquadWindows:
        """Cuts questions with their contexts into windows."""
        tokens: list[Tokens] = []
        offsets: list[np.ndarray] = []
        arrays: dict[str, list[Any]] = {"start": [], "end": [], "context": [], "id": []}
        for first in range(0, len(questions), CHUNK):
            chunk = questions[first : first + CHUNK]
            try:
                made = encode_windows(
                    self.text_tokenizer,
                    [one.question for one in chunk],
                    [one.context for one in chunk],
                    max_length=self.max_length,
                    stride=self.stride,
                    max_question=self.max_question,
                )
            except ValueError as error:
                raise ConfigError(f"config.data: {error}") from error
            lengths = made.batch["attention_mask"].sum(axis=1)
            for row, (length, number) in enumerate(zip(lengths, made.example, strict=True)):
                ids, types = (made.batch[x][row, :length] for x in ("input_ids", "token_type_ids"))
                tokens.append(Tokens(ids.copy(), types.copy()))
                offsets.append(made.offsets[row, :length].copy())
                inside = np.flatnonzero(made.in_context[row])
                # A context without any token: an empty range, from 1 to 0.
                context = (inside[0], inside[-1]) if inside.size else (1, 0)
                answer = answer_tokens(chunk[number], offsets[-1], context)
                row_values = (*answer, context, first + number)
                for values, value in zip(arrays.values(), row_values, strict=True):
                    values.append(value)
        columns = {name: np.array(values, np.int32) for name, values in arrays.items()}
        columns["window"] = np.arange(len(tokens), dtype=np.int32)
        return SquadWindows(questions, TokenizedTexts(tokens, columns), offsets)

    @kept
    def _questions(self, split: str) -> list[Question]:
        check_known("SQuAD has no split", split, FILES)
        if self.source == "json":
            folder = data_folder(self.folder, "squad", "squad")
            path = folder / f"{FILES[split]}-{self.version}.json"
            questions, where = read_json(path), str(path)
        else:
            builder = prepared_builder(f"squad/{self.version}", TFDS_MODULE, self.folder)
            where = f"squad/{self.version}, split {split!r}"
            questions = read_prepared(prepared_examples(builder, split), where)
        check_questions(questions, where)
        if split != "train":
            return questions
        return [questions[row] for row in self.subset_rows(len(questions))]


def answer_tokens(
    question: Question, offsets: np.ndarray, context: tuple[int, int]
) -> tuple[int, int]:
    """The first and last token of a question's first answer, in one window.

    The `offsets` are the characters that its tokens cover, int [n, 2], the `context` is from its
    first token to its last. (0, 0) where there is no answer or the window does not hold all of it.
    """
    first, last = context
    if not question.answers or last < first:
        return 0, 0
    answer, begin = question.answers[0], question.starts[0]
    begin += len(answer) - len(answer.lstrip())
    end = begin + len(answer.strip())
    inside = offsets[first : last + 1]
    touching = np.flatnonzero((inside[:, 1] > begin) & (inside[:, 0] < end))
    if not touching.size or begin < inside[0, 0] or end > inside[-1, 1]:
        return 0, 0
    return int(first + touching[0]), int(first + touching[-1])
