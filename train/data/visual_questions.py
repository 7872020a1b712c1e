"""Questions about pictures, wherever they come from: words, regions, scored answers, noise.

A picture is a set of regions. Each split also exists with noise added to its regions, under its
name with "_noisy" behind it, to see whether a model that errs more is also less sure of itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from train.data.base import (
    WHOLE,
    Batch,
    DataSource,
    Illustration,
    Metadata,
    Share,
    check_least,
    kept,
    ordered_batches,
    shuffled_batches,
)
from train.data.word_vectors import read_glove
from train.registry import ConfigError, check_known
from train.tasks.vqa_answers import score_answers

NOISY = "_noisy"
PEOPLE = 10  # that VQA v2 asks each question
LARGEST_ID = 2**31 - 1  # ids are int32 in a batch
PADDING, UNKNOWN = 0, 1  # words' ids
SPECIAL_WORDS = ("[padding]", "[unknown]")
_SPELLING = str.maketrans({**dict.fromkeys(".,'!?\"()*#:;", ""), "-": " ", "/": " "})


def question_words(text: str) -> list[str]:
    """The words of a question: lower case, without punctuation, cut at hyphens and slashes.

    Example:
        >>> question_words("What's the red/blue T-shirt's size?")
        ['whats', 'the', 'red', 'blue', 't', 'shirts', 'size']
    """
    return text.lower().translate(_SPELLING).split()


def encode_words(texts: Sequence[str], words: Sequence[str], length: int) -> np.ndarray:
    """Questions as ids of words: of n texts int32 [n, length], padded with 0 or cut at the end.

    `words` are by id, the two special ones first. A question without any word reads as one unknown
    word: attention over nothing is undefined.
    """
    special = len(SPECIAL_WORDS)
    number = {word: place for place, word in enumerate(words[special:], special)}
    ids = np.full((len(texts), length), PADDING, np.int32)
    for row, text in enumerate(texts):
        found = [number.get(word, UNKNOWN) for word in question_words(text)[:length]] or [UNKNOWN]
        ids[row, : len(found)] = found
    return ids


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture."""

    identity: int  # in no other split
    image: int  # the number of the picture among those of its split
    text: str
    answers: tuple[str, ...]  # what the people asked said, as they wrote it
    common: str  # the answer that most of them gave


class HumanAnswers(NamedTuple):
    """What people say to the questions of a split: the vocabulary, and what each person wrote."""

    answers: tuple[str, ...]
    people: list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class VisualQuestions(DataSource):
    """What both sources share; `EasyVQA` and `VQAv2` read questions and pictures.

    A batch holds, of B examples, "question" (int32 [B, N] ids of `words`, padded with 0) and
    "question_mask" (bool [B, N]); "image" (float32 [B, M, F], a picture's regions) and "image_mask"
    (bool [B, M]); "score" (float32 [B, C], how right each of `answers` is); "label" (int32 [B], the
    answer with the highest score; of several, the one that most people gave; -1 where all scores
    are 0); "id" (int32 [B], the question's); and "mask" (bool [B]).

    Attributes:
        seed: of the order of the training examples.
        batch_size: examples per training step.
        eval_batch_size: rows per evaluation batch.
        folder: of the files; each source says what "" means.
        max_words: N; longer questions lose their end. 0 for the longest question.
        glove: a text file of word vectors (see `read_glove`); "" for none.
        noise_std: standard deviation of the noise in the noisy splits.
        noise_seed: of that noise. The noise of an example depends on this and its id alone: it is
            the same for every method and seed, whatever the batch size.
    """

    seed: int = 0
    batch_size: int = 64
    eval_batch_size: int = 64
    folder: str = ""
    max_words: int = 0
    glove: str = ""
    noise_std: float = 1.0
    noise_seed: int = 0

    clean_splits: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[tuple[str, ...]] = ("question", "image")

    def __post_init__(self) -> None:
        check_least(self, {"batch_size": 1, "eval_batch_size": 1, "max_words": 0, "noise_seed": 0})
        if not 0.0 <= self.noise_std < np.inf:
            raise ConfigError(f"data.noise_std is {self.noise_std}; expected a number >= 0.")

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The sizes of vocabulary, answers, questions and pictures; reads the questions."""
        regions, features = self._region_shape
        return Metadata(
            model={
                "vocabulary_size": len(self.words),
                "num_answers": len(self.answers),
                "region_features": features,
                "region_positions": regions if self.grid else 0,
            },
            # As parameters of `align_jax.models.MCAN`.
            parameters={"words": {"embedding": self.word_vectors}} if self.glove else {},
        )

    @functools.cached_property
    def examples(self) -> dict[str, int]:
        """Sizes of the splits, the noisy ones too."""
        sizes = {split: len(self._questions[split]) for split in self.clean_splits}
        return sizes | {split + NOISY: size for split, size in sizes.items()}

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers to choose from; a label is a place among them."""
        raise NotImplementedError

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words by their ids: the two special ones, then those of the questions for training
        and validation, in the order in which they first appear.
        """
        questions = (x for split in ("train", "validation") for x in self._questions[split])
        found = dict.fromkeys(word for x in questions for word in question_words(x.text))
        return (*SPECIAL_WORDS, *found)

    @functools.cached_property
    def word_vectors(self) -> np.ndarray | None:
        """Of `words`, float32 [V, 300], zeros for words without one; None without `glove`."""
        return read_glove(Path(self.glove).expanduser(), self.words) if self.glove else None

    def train_batches(self, start_step: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Endless shuffled batches of the training split."""
        table = self._table("train")
        return self._batches(
            "train", shuffled_batches(table, self.batch_size, self.seed, start_step, share)
        )

    def eval_batches(self, split: str, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass over a split, in order."""
        table = self._table(self._clean(split))
        return self._batches(split, ordered_batches(table, self.eval_batch_size, share))

    @property
    def label_names(self) -> tuple[str, ...]:
        """The answers."""
        return self.answers

    def inputs(self, texts: Sequence[tuple[str, ...]]) -> Batch:
        """The model's inputs for new questions, each with the file of its picture."""
        words = encode_words([question for question, _ in texts], self.words, self._length)
        regions, mask = self._padded([self._read_regions(Path(path)) for _, path in texts])
        return {
            "question": words,
            "question_mask": words != PADDING,
            "image": regions,
            "image_mask": mask,
        }

    def example_batch(self) -> Batch:
        """Made up, so that a run's model can be restored where the pictures are not at hand."""
        size, (regions, features) = self.batch_size, self._region_shape
        return {
            "question": np.full((size, self._length), UNKNOWN, np.int32),
            "question_mask": np.ones((size, self._length), bool),
            "image": np.zeros((size, regions, features), np.float32),
            "image_mask": np.ones((size, regions), bool),
            "score": np.zeros((size, len(self.answers)), np.float32),
            "label": np.full(size, -1, np.int32),
            "id": np.zeros(size, np.int32),
            "mask": np.ones(size, bool),
        }

    def references(self, split: str) -> HumanAnswers:
        """What the official accuracy of a split needs."""
        people = [question.answers for question in self._questions[self._clean(split)]]
        return HumanAnswers(self.answers, people)

    def illustration(self, batch: Batch) -> Illustration:
        """The batch's first question in words and its best answer; the picture, if there is one."""
        identity, label = int(batch["id"][0]), int(batch["label"][0])
        text = self.question_text(identity)
        answer = "no answer of the vocabulary" if label < 0 else self.answers[label]
        words = [self.words[word] for word in batch["question"][0][batch["question_mask"][0]]]
        return Illustration(
            f"{text} ({answer})", tuple(words), self.answers, self.picture(identity), self.grid
        )

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches that the regions are; None if they have no order."""
        return None

    def picture(self, identity: int) -> np.ndarray | None:
        """The picture that a question is about, uint8 [height, width, 3], if it is at hand.

        Raises:
            ValueError: there is no question with this id.
        """
        return None

    def picture_path(self, identity: int) -> Path:
        """The file that holds a question's picture, or its regions; errors as of `picture`."""
        raise NotImplementedError

    def question_text(self, identity: int) -> str:
        """A question in words; errors as of `picture`."""
        return self._question(identity)[1].text

    @property
    def _questions(self) -> Mapping[str, Sequence[Question]]:
        """The questions of each split."""
        raise NotImplementedError

    @property
    def _region_shape(self) -> tuple[int, int]:
        """(M, F)."""
        raise NotImplementedError

    def _regions(self, split: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features [B, M, F] and mask [B, M] of the pictures [B] of a split."""
        raise NotImplementedError

    def _read_regions(self, path: Path) -> np.ndarray:
        """Features [M or fewer, F] of a picture in a file of its own."""
        raise NotImplementedError

    def _padded(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Features [B, M, F] and mask [B, M] of pictures with different numbers of regions."""
        regions = np.zeros((len(pictures), *self._region_shape), np.float32)
        mask = np.zeros(regions.shape[:2], bool)
        for row, found in enumerate(pictures):
            regions[row, : len(found)], mask[row, : len(found)] = found, True
        return regions, mask

    def _check_pictures(self, split: str, images: np.ndarray) -> None:
        """Refuses missing pictures before a run's first step rather than in the midst of it."""

    def _clean(self, split: str) -> str:
        """The split that `split` is, or is a noisy copy of."""
        known = [*self.clean_splits, *(name + NOISY for name in self.clean_splits)]
        check_known(f"{type(self).__name__} has no split", split, known)
        return split.removesuffix(NOISY)

    def _question(self, identity: int) -> tuple[str, Question]:
        for split, part in self._questions.items():
            for question in part:
                if question.identity == identity:
                    return split, question
        raise ValueError(f"{type(self).__name__} has no question with the id {identity}.")

    @functools.cached_property
    def _length(self) -> int:
        if self.max_words:
            return self.max_words
        texts = (x.text for part in self._questions.values() for x in part)
        return max(1, *(len(question_words(text)) for text in texts))

    @kept
    def _table(self, split: str) -> dict[str, np.ndarray]:
        """A split's examples, made when they are first asked for: batches before `_batches`.

        As there are thousands of answers, scores [n, 10] are kept for those alone that were given.
        """
        questions = self._questions[split]
        images = np.array([x.image for x in questions], np.int32)
        self._check_pictures(split, images)
        given, scores, best = score_answers([x.answers for x in questions], self.answers)
        return {
            "question": encode_words([x.text for x in questions], self.words, self._length),
            "image": images,
            "given": given,
            "score": scores,
            "label": best,
            "id": np.array([x.identity for x in questions], np.int32),
        }

    def _batches(self, split: str, rows: Iterator[Batch]) -> Iterator[Batch]:
        clean = self._clean(split)
        for chosen in rows:
            regions, region_mask = self._regions(clean, chosen["image"])
            if split != clean:
                self._add_noise(regions, region_mask, chosen["id"])
            given = chosen.pop("given")
            score = np.zeros((len(given), len(self.answers)), np.float32)
            # Added, as the places that are left over all name the first answer.
            np.add.at(score, (np.arange(len(given))[:, None], given), chosen["score"])
            yield chosen | {
                "question_mask": chosen["question"] != PADDING,
                "image": regions,
                "image_mask": region_mask,
                "score": score,
            }

    def _add_noise(self, regions: np.ndarray, mask: np.ndarray, ids: np.ndarray) -> None:
        for features, valid, identity in zip(regions, mask, ids.tolist(), strict=True):
            rng = np.random.default_rng((self.noise_seed, identity))
            shape = (int(valid.sum()), features.shape[-1])
            features[valid] += self.noise_std * rng.standard_normal(shape, np.float32)
