"""What every data source offers, and the batching that in-memory sources share.

A batch is a dict of NumPy arrays with a common leading axis (B examples) and "mask", bool [B]:
False marks a row that only fills the batch up to its size and is no example.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from train.registry import ConfigError

Batch = dict[str, np.ndarray]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What the rest of the program must know about a data source to build a model.

    Known without reading the data, as far as it can be: a run's model is restored where its data
    are not at hand.

    Attributes:
        model: fields of the model's configuration, {"num_classes": 10, "image_size": 8}; one that
            the model does not have is ignored.
        parameters: those of the model that come with the data, such as the vectors of its words.
        splittable: whether a batch may be cut along its leading axis and spread over devices.
            A graph, whose edges join its rows, may not: it trains on one device.
    """

    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    splittable: bool = True


@dataclasses.dataclass(frozen=True)
class Share:
    """Which rows of every batch this process, the `number`th of `count` from 0, reads.

    Example:
        >>> Share(1, 2).of(np.arange(6))
        array([3, 4, 5])
    """

    number: int = 0
    count: int = 1

    def of(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of a batch's rows, [B] -> [B / count].

        Raises:
            ConfigError: the rows cannot be shared equally.
        """
        size, rest = divmod(len(rows), self.count)
        if rest:
            raise ConfigError(
                f"A batch has {len(rows)} rows; expected a multiple of {self.count}, the number of "
                f"processes. Change data.batch_size or data.eval_batch_size."
            )
        return rows[self.number * size : (self.number + 1) * size]

    def of_batch(self, batch: Batch) -> Batch:
        """This process's part of a whole batch; errors as of `of`."""
        return batch if self.count == 1 else {name: self.of(x) for name, x in batch.items()}


WHOLE = Share()


@dataclasses.dataclass(frozen=True)
class Illustration:
    """What people see of one example, for pictures of what a model makes of it."""

    title: str  # the example in a sentence
    words: tuple[str, ...]  # of its text, one per token
    answers: tuple[str, ...]  # the names of the classes
    image: np.ndarray | None = None  # uint8 [height, width, 3]
    grid: tuple[int, int] | None = None  # rows and columns of patches, which go row by row


def kept(method: Callable[..., T]) -> Callable[..., T]:
    """Makes a method's results once for each of its arguments, and keeps them in its object."""

    @functools.wraps(method)
    def wrapped(self: Any, *key: Any) -> T:
        found = self.__dict__.setdefault(f"_kept_{method.__name__}", {})
        if key not in found:
            found[key] = method(self, *key)
        return found[key]

    return wrapped


class DataSource(Protocol):
    """The data of one experiment. Constructed from the config's `data` section and the seed."""

    @property
    def metadata(self) -> Metadata:
        """What the data say about the model."""

    @property
    def examples(self) -> Mapping[str, int]:
        """Number of examples per split, {"train": 1078, ...}."""

    @property
    def found(self) -> Mapping[str, Any]:
        """What only the data say and a run keeps, so that its model is restored without them.

        By the key in the config that it is for: {"data.labels": ("bad", "good")}.
        """
        return {}

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in which each example is seen about once."""
        batch_size = getattr(self, "batch_size", None)
        if batch_size is None:  # one batch is all that there is
            return 1
        return whole_batches(self.examples["train"], batch_size)

    def description(self) -> Sequence[str]:
        """Lines about the data that people see before training."""
        return ()

    def train_batches(self, start_step: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Endless batches from a step on, of which each holds the share's rows.

        The batch of a step depends on the seed and the step alone, so that a resumed run sees what
        an uninterrupted one would.
        """

    def eval_batches(self, split: str, share: Share = WHOLE) -> Iterator[Batch]:
        """The share's rows of each example of `split`, in order, in batches of few shapes."""

    def example_batch(self) -> Batch:
        """A batch to initialise the model with; only its shapes and dtypes count."""

    def references(self, split: str) -> Any:
        """What a split's corpus metrics need beside arrays, such as texts; None for nothing."""
        return None

    def illustration(self, batch: Batch) -> Illustration | None:
        """What people see of a batch's first example; None if the source has no pictures of it."""
        return None


def data_folder(given: str, name: str, otherwise: str) -> Path:
    """The folder of a source's files: as given; else $ALIGN_JAX_DATA/name; or a third place."""
    root = os.environ.get("ALIGN_JAX_DATA")
    return Path(given or (os.path.join(root, name) if root else otherwise)).expanduser()


def check_least(source: Any, least: Mapping[str, int]) -> None:
    """Raises ConfigError if one of a source's settings is below its number in `least`."""
    for name, smallest in least.items():
        if getattr(source, name) < smallest:
            raise ConfigError(f"data.{name} is {getattr(source, name)}; expected >= {smallest}.")


def whole_batches(examples: int, batch_size: int) -> int:
    """How many batches the examples of an epoch fill.

    Raises:
        ConfigError: there are fewer examples than a batch holds.
    """
    if not 1 <= batch_size <= examples:
        raise ConfigError(
            f"data.batch_size is {batch_size}; expected 1 to {examples}, the number of examples."
        )
    return examples // batch_size


def shuffled_batches(
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    share: Share = WHOLE,
) -> Iterator[Batch]:
    """Endless batches in an order that depends on (seed, epoch) alone.

    The remainder of an epoch that fills no batch is left out of that epoch; each epoch has another
    order, so every example gets its turn.

    Args:
        arrays: with a common leading axis of n examples.
        batch_size: examples per batch, at most n.
        seed: of the order.
        start_step: the number of batches to skip, at no cost.
        share: of each batch's rows, which to yield.

    Raises:
        ConfigError: there are fewer examples than a batch holds.
        ValueError: there are none.
    """
    examples = _common_length(arrays)
    steps = whole_batches(examples, batch_size)
    epoch, position = divmod(start_step, steps)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(examples)
        for chosen in order[: steps * batch_size].reshape(steps, batch_size)[position:]:
            rows = share.of(chosen)
            batch = {name: array[rows] for name, array in arrays.items()}
            yield batch | {"mask": np.ones(len(rows), bool)}
        epoch, position = epoch + 1, 0


def ordered_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int, share: Share = WHOLE
) -> Iterator[Batch]:
    """Every example once, in order, in batches of `batch_size` rows: the last one is padded.

    Arguments and errors as of `shuffled_batches`; mask is False in the padding.
    """
    examples = _common_length(arrays)
    if batch_size < 1:
        raise ConfigError(f"data.eval_batch_size is {batch_size}; expected 1 or more.")
    for start in range(0, examples, batch_size):
        batch = {name: array[start : start + batch_size] for name, array in arrays.items()}
        batch["mask"] = np.ones(min(batch_size, examples - start), bool)
        yield share.of_batch(pad(batch, batch_size))


def pad(batch: Batch, rows: int) -> Batch:
    """Fills a batch up to `rows` rows with copies of its first row, masked out.

    Copies rather than zeros, because zeros need not be a possible input: a sequence without a
    single token gives nan in a softmax, and nan times a mask of zero is nan still.
    """
    missing = rows - len(batch["mask"])
    if missing == 0:
        return batch
    padded = {
        name: np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
        for name, array in batch.items()
    }
    padded["mask"] = np.concatenate([batch["mask"], np.zeros(missing, bool)])
    return padded


def _common_length(arrays: Mapping[str, np.ndarray]) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"The arrays of a data source differ in length: {lengths}.")
    length = next(iter(lengths.values()))
    if length == 0:
        raise ValueError(f"The data source has no examples (arrays {sorted(arrays)} are empty).")
    return length
