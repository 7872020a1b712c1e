"""A user's own labelled texts, out of files with named columns (see `train.data.tables`)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.base import Batch, Illustration, check_least, kept
from train.data.held_out import held_out
from train.data.labelled import Examples, LabelledTexts, chunks
from train.data.tables import Problems, files_of, read_rows
from train.data.text import text_illustration
from train.registry import ConfigError

_INTEGER = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0+)?")  # programs may write 5 as 5.0
MISSING = ("na", "n/a", "#n/a", "<na>", "nan", "null", "none")  # as programs write no number
SHOWN = 20  # classes that are counted by name
SCORES = " If the labels are scores, take --config=train/configs/texts.py:regression."


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """The rows of a file or several, as they were read."""

    columns: list[list[str]]  # for each field, the texts
    labels: list[str]  # as the files have them, in writing
    places: list[tuple[Path, str]]  # the file and line of each row

    @functools.cached_property
    def keys(self) -> list[tuple[str, ...]]:
        """What is the same for copies of a text, also with other blanks or capitals."""
        same = [[" ".join(text.split()).casefold() for text in column] for column in self.columns]
        return [tuple(sorted(texts)) for texts in zip(*same, strict=True)]


@dataclasses.dataclass(frozen=True)
class OwnTexts(LabelledTexts):
    """Texts or pairs of texts in a user's own files, each with a class or a score.

    The splits are "train", "validation" and, where a file is named for it, "test". Batches and
    other settings are those of `LabelledTexts`.

    Attributes:
        train: the file to train on, CSV, TSV, JSON lines or Parquet; or a pattern, "parts/*.csv".
        validation: a file to validate on; "" for a share of `train`.
        test: a file to test on; "" for none.
        text: the column of the texts.
        text_pair: the column of the second texts; "" where an example is a single text.
        label: the column of the labels.
        regression: whether the labels are scores, not classes.
        labels: the names of the classes in order. () for those that `train` has, in the order of
            their numbers if they are whole numbers, else of their letters.
        validation_share: of `train`, at random and with as much of each class; copies of a text
            stay on one side.
        split_seed: of that choice; apart from `seed`, so that runs with different seeds are
            validated on the same texts.
        fingerprint: of all texts and labels; "" for whatever they are. A run keeps it, so that it
            does not go on with other data.

    Example:
        >>> OwnTexts(train="reviews.csv", labels=("bad", "good")).splits
        ('train', 'validation')
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    text: str = "text"
    text_pair: str = ""
    label: str = "label"
    regression: bool = False
    labels: tuple[str, ...] = ()
    validation_share: float = 0.1
    split_seed: int = 0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "labels", tuple(map(str, self.labels)))  # JSON has lists
        check_least(self, {"split_seed": 0})
        if not self.train:
            raise ConfigError(
                "data.train is empty; name your file of texts: --config.data.train=reviews.csv "
                "--config.data.text=COLUMN --config.data.label=COLUMN."
            )
        for key, name in self._columns.items():
            if not name:
                raise ConfigError(f"{key} is empty; name the column.")
        columns = list(self._columns.values())
        if len(set(columns)) < len(columns):
            raise ConfigError(f"data names a column twice: {', '.join(columns)}.")
        if not self.validation and not 0 < self.validation_share < 1:
            raise ConfigError(
                f"data.validation_share is {self.validation_share}; expected a number between 0 "
                f"and 1, or a file of its own as data.validation."
            )
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise ConfigError(f"data.labels is {self.labels}; expected two or more, each once.")

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return ("train", "validation", "test") if self.test else ("train", "validation")

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of the texts."""
        return (self.text, self.text_pair) if self.text_pair else (self.text,)

    @functools.cached_property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in order; none for a regression."""
        if self.regression:
            return ()
        return self.labels or _classes(self._raw("train"))

    @property
    def found(self) -> Mapping[str, Any]:
        """What a run keeps of its data: classes, fingerprint, the scores' place and scale."""
        if self.fingerprint:  # it has been kept
            return {}
        _ = self.examples  # what is wrong with any file is said before a run's folder is made
        scores = {}
        if self.regression:
            labels = self.read("train").labels.astype(np.float64)
            scores = {"task.center": float(labels.mean()), "task.scale": float(labels.std())}
        return {
            "data.labels": self.label_names,
            "data.fingerprint": self._fingerprint,
            "eval.final": self.splits[1:],
            **scores,
        }

    def read(self, split: str) -> Examples:
        """The examples of a split; their ids count the rows of its files."""
        self.check_split(split)
        if self.fingerprint and self.fingerprint != self._fingerprint:
            raise ConfigError(
                f"The texts or labels of {self.train}, or of the files beside it, are not those of "
                f"the run any more: their fingerprint is {self._fingerprint}, data.fingerprint "
                f"{self.fingerprint}. Train anew in another --workdir."
            )
        return self._examples[split]

    @functools.cached_property
    def _examples(self) -> dict[str, Examples]:
        """Of each split."""
        whole = self._labelled("train")
        if self.validation:
            kept, others = whole, {"validation": self._labelled("validation")}
        else:
            rows, out = held_out(
                self._raw("train").keys, whole.labels, self.validation_share, self.split_seed
            )
            if not len(out):
                raise ConfigError(
                    f"data.validation_share is {self.validation_share}, which of the "
                    f"{len(whole)} texts in {self.train} is none. Raise it, or name a file of its "
                    f"own as data.validation."
                )
            kept, others = whole.take(rows), {"validation": whole.take(out)}
        if self.test:
            others["test"] = self._labelled("test")
        train = kept.take(self.subset_rows(len(kept)))
        if self.regression and np.ptp(train.labels) == 0:
            raise ConfigError(
                f"The {len(train)} texts to train on all have the score {train.labels[0]:g}, "
                f"though others in {self.train} have not; there is nothing to learn. Train on more "
                f"of them: data.train_examples is {self.train_examples}."
            )
        return {"train": train, **others}

    def description(self) -> list[str]:
        """Lines on classes, lengths and copies, for people to see before training."""
        train = self.read("train")
        sizes = ", ".join(f"{name} {size}" for name, size in self.examples.items())
        lines = [f"Texts: {sizes}.", self._spread(train), *_alike(self.label_names)]
        return [*lines, self._lengths(train), *self._copies()]

    def illustration(self, batch: Batch) -> Illustration:
        """The batch's first example, token by token."""
        return text_illustration(batch, self.text_tokenizer, self.label_names)

    @property
    def _columns(self) -> dict[str, str]:
        """The columns by the settings that name them; the label's is the last."""
        names = ("text", "text_pair", "label") if self.text_pair else ("text", "label")
        return {f"data.{name}": getattr(self, name) for name in names}

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in ("train", "validation", "test"):
            if getattr(self, split):
                raw = self._raw(split)
                digest.update(json.dumps([raw.columns, raw.labels]).encode())
        return digest.hexdigest()[:16]

    @kept
    def _raw(self, split: str) -> _Labelled:
        """The rows of a split's files, in which none lacks a text or a label."""
        problems, rows, places = Problems(), [], []
        for path in files_of(getattr(self, split), f"data.{split}"):
            for row in read_rows(path, self._columns, problems):
                *texts, label = row.values
                wrong = self._wrong(texts) or _wrong_label(label, self.label, self.regression)
                if wrong:
                    problems.add(path, row.place, wrong)
                    continue
                rows.append((*(text or "" for text in texts), _written(label)))
                places.append((path, row.place))
        problems.raise_any()
        *columns, labels = (list(column) for column in zip(*rows, strict=True))
        return _Labelled(columns, labels, places)

    def _wrong(self, texts: Sequence[Any]) -> str:
        """What is wrong with the texts of a row; of a pair one may be empty."""
        for name, text in zip(self.fields, texts, strict=True):
            if text is not None and not isinstance(text, str):
                return f"has no text in {name!r} but {text!r:.60}"
        if not any(text and text.strip() for text in texts):
            return f"has no text in {' or '.join(map(repr, self.fields))}"
        return ""

    def _labelled(self, split: str) -> Examples:
        """The examples of a split's files, in which each label is one of the classes."""
        raw, ids = self._raw(split), np.arange(1, len(self._raw(split).labels) + 1, dtype=np.int32)
        if self.regression:
            scores = np.array([float(x) for x in raw.labels], np.float32)
            if split == "train" and np.ptp(scores) == 0:
                raise ConfigError(
                    f"All {len(scores)} scores in {self.train} are {scores[0]:g}; there is nothing "
                    f"to learn. Check data.label, {self.label!r}."
                )
            return Examples(raw.columns, scores, ids)
        numbers, problems = {name: at for at, name in enumerate(self.label_names)}, Problems()
        labels = np.zeros(len(ids), np.int32)
        known = ", ".join(self.label_names[:SHOWN]) + (", ..." if len(numbers) > SHOWN else "")
        for row, (label, place) in enumerate(zip(raw.labels, raw.places, strict=True)):
            number = numbers.get(label, numbers.get(_whole(label)))
            if number is None:
                whose = "is none of data.labels" if self.labels else f"{self.train} does not have"
                problems.add(*place, f"has the label {label[:60]!r}, which {whose}")
            else:
                labels[row] = number
        problems.raise_any(f" Known: {known}.")
        return Examples(raw.columns, labels, ids)

    def _spread(self, train: Examples) -> str:
        if self.regression:
            x = train.labels
            return (
                f"Scores: {x.min():g} to {x.max():g}, mean {x.mean():.4g}, standard deviation "
                f"{x.std():.4g}."
            )
        classes = len(self.label_names)
        counts = {
            split: np.bincount(self.read(split).labels, minlength=classes) for split in self.splits
        }
        often = np.argsort(-counts["train"], kind="stable")
        shown = sorted(often[:SHOWN].tolist())
        by_name = "; ".join(
            f"{self.label_names[x]}: {' + '.join(str(count[x]) for count in counts.values())}"
            for x in shown
        )
        more = f"; and {classes - SHOWN} rarer ones" if classes > SHOWN else ""
        return f"Classes ({' + '.join(counts)}): {by_name}{more}."

    def _lengths(self, train: Examples) -> str:
        lengths = self.tokenized("train").lengths.copy()
        cut = np.flatnonzero(lengths >= self.max_length)  # or just as long as is allowed
        if cut.size:
            uncut: list[int] = []
            for part in chunks(train.take(cut).columns):
                inputs = list(zip(*part, strict=True)) if len(part) > 1 else list(part[0])
                encodings = self.text_tokenizer.backend.encode_batch_fast(inputs)
                uncut += [len(encoding.ids) for encoding in encodings]
            lengths[cut] = uncut
        middle, most = (int(x) for x in np.quantile(lengths, (0.5, 0.9), method="inverted_cdf"))
        longer = (lengths > self.max_length).mean()
        return (
            f"Tokens: half of the texts to train on have {middle} or fewer, 90 % {most} or fewer, "
            f"the longest {lengths.max()}. {longer:.1%} are longer than data.max_length, "
            f"{self.max_length}, and are truncated."
        )

    def _copies(self) -> list[str]:
        said = []
        raw = self._raw("train")
        kinds = collections.defaultdict(set)
        for key, label in zip(raw.keys, raw.labels, strict=True):
            kinds[key].add(label)
        copies, torn = len(raw.keys) - len(kinds), sum(len(x) > 1 for x in kinds.values())
        if copies:
            other = f", of {torn} with different labels" if torn else ""
            said.append(f"Copies: {copies} rows of {self.train} repeat the text of another{other}.")
        for split in ("validation", "test"):
            if getattr(self, split):
                known = sum(key in kinds for key in self._raw(split).keys)
                if known:
                    said.append(
                        f"Copies: {known} texts of {getattr(self, split)} are in {self.train} too, "
                        f"so that {split} measures what was learnt by heart."
                    )
        return said


def _wrong_label(label: Any, name: str, regression: bool) -> str:
    """What is wrong with a label as a file has it."""
    if label is None or (isinstance(label, str) and not label.strip()):
        return f"has no label in {name!r}"
    if isinstance(label, list):
        return f"has the labels {label!r:.60}; expected one label for each text"
    if not isinstance(label, str | int | float):
        return f"has the label {label!r:.60}; expected a word or a number"
    if isinstance(label, float) and not math.isfinite(label):
        return f"has the label {label}; expected a finite number"
    if not regression:
        return ""
    python_alone = isinstance(label, str) and "_" in label  # takes 1_5 for 15
    try:
        score = float("nan" if isinstance(label, bool) else "none" if python_alone else label)
    except ValueError:
        return f"has the score {label!r:.60}; expected a number, such as 3.5"
    except OverflowError:  # of a whole number, where one with a point is infinite
        score = math.inf
    finite = math.isfinite(score) and abs(score) <= np.finfo(np.float32).max
    return "" if finite else f"has the score {label!r:.60}; expected a finite number"


def _written(label: Any) -> str:
    """A label as people write it."""
    if isinstance(label, bool):
        return "true" if label else "false"  # as in JSON
    return label.strip() if isinstance(label, str) else repr(label)


def _whole(label: str) -> str:
    """A whole number without decimals; anything else as it is."""
    found = _INTEGER.fullmatch(label)
    return found[1] if found else label


def _alike(names: Sequence[str]) -> list[str]:
    """What is said of classes that may be meant to be one, or scores."""
    kinds = collections.defaultdict(list)
    for name in names:
        plain = unicodedata.normalize("NFKC", name.casefold())
        seen = "".join(x for x in plain if unicodedata.category(x) != "Cf")
        kinds[" ".join(seen.split())].append(name)
    pairs = [" and ".join(_told_apart(x)) for x in kinds.values() if len(x) > 1]
    said = []
    if pairs:
        said.append(
            f"Classes that differ in capitals, blanks or what is not seen alone: "
            f"{', '.join(pairs)[:200]}. They are learnt as different ones; write them alike if "
            f"they are not."
        )
    if _numbers(names) and any(float(name) % 1 for name in names):
        said.append(f"The classes are numbers.{SCORES}")
    return said


def _told_apart(names: Sequence[str]) -> list[str]:
    """In quotes; by their characters' numbers where an accent is one character or two."""
    composed = {unicodedata.normalize("NFC", name) for name in names}
    return list(map(repr if len(composed) == len(names) else ascii, names))


def _classes(raw: _Labelled) -> tuple[str, ...]:
    """The classes in order: at least two, of at least two examples.

    Nor may some be numbers, and others what programs write where there is none.
    """
    missing = {label for label in set(raw.labels) if label.casefold() in MISSING}
    given = set(raw.labels) - missing
    if missing and given and _numbers(given):
        problems = Problems()
        for label, place in zip(raw.labels, raw.places, strict=True):
            if label in missing:
                problems.add(*place, f"has no label but {label!r}")
        problems.raise_any(" If it is a class, name all of them as data.labels.")
    whole = all(_INTEGER.fullmatch(label) for label in set(raw.labels))
    labels = [_whole(label) for label in raw.labels] if whole else raw.labels
    counts = collections.Counter(labels)
    if len(counts) == 1:
        raise ConfigError(
            f"{raw.places[0][0]}: all {len(labels)} rows have the label {labels[0][:60]!r}; "
            f"expected two classes or more. Check data.label."
        )
    problems = Problems()
    for label, place in zip(labels, raw.places, strict=True):
        if counts[label] == 1:
            problems.add(*place, f"is the only one of its class, {label[:60]!r}")
    problems.raise_any(
        " A class takes two examples or more." + (SCORES if _numbers(counts) else "")
    )
    return tuple(sorted(counts, key=int) if whole else sorted(counts))


def _numbers(labels: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(label)) for label in labels)
    except ValueError:
        return False
