"""Handwritten digits from scikit-learn: 1,797 images of 8x8 pixels, inside the package.

Source: `sklearn.datasets.load_digits`, the test set of the UCI "Optical Recognition of Handwritten
Digits" (Alpaydin & Kaynak, 1998).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from train.data.base import (
    WHOLE,
    Batch,
    DataSource,
    Illustration,
    Metadata,
    Share,
    ordered_batches,
    shuffled_batches,
)

SPLITS = ("train", "validation", "test")
CHANGED = ("test_noisy", "test_rotated")  # the test images again, as no training image is
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Digits(DataSource):
    """The digits, split by class into train, validation and test.

    Attributes:
        seed: of the order of the training examples, and of which they are.
        batch_size: examples per training step.
        eval_batch_size: rows per evaluation batch.
        validation_fraction: share of all examples in the validation split.
        test_fraction: share of all examples in the test split.
        split_seed: of the split itself; apart from `seed`, so that runs with different seeds are
            tested on the same images.
        noise: standard deviation of the Gaussian noise on "test_noisy"; pixels are 0 to 1.
        rotation: degrees by which the images of "test_rotated" are turned at most, either way.
        train_examples: size of a random subset of the training split to train on, with as much of
            each class, and another one for each `seed`; 0 for all.

    Example:
        >>> next(Digits(seed=0, batch_size=4).train_batches())["image"].shape
        (4, 8, 8, 1)
    """

    seed: int = 0
    batch_size: int = 64
    eval_batch_size: int = 256
    validation_fraction: float = 0.1
    test_fraction: float = 0.3
    split_seed: int = 0
    train_examples: int = 0
    noise: float = 0.15
    rotation: float = 30.0

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise ValueError(f"data.{name} is {value}; expected a number between 0 and 1.")
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"data.validation_fraction {self.validation_fraction} and data.test_fraction "
                f"{self.test_fraction} leave nothing to train on; their sum must stay below 1."
            )
        for name in ("noise", "rotation"):
            value = getattr(self, name)
            if not 0.0 <= value < np.inf:
                raise ValueError(f"data.{name} is {value}; expected a finite number of at least 0.")
        whole = len(self._rows["train"])
        # One of each class at least in the subset, and in what is left, or they cannot be cut.
        if self.train_examples and not CLASSES <= self.train_examples <= whole - CLASSES:
            raise ValueError(
                f"data.train_examples is {self.train_examples}; expected 0, for all {whole} "
                f"training examples, or {CLASSES} to {whole - CLASSES}."
            )
        if not 1 <= self.batch_size <= self.examples["train"]:
            raise ValueError(
                f"data.batch_size is {self.batch_size}; expected 1 to "
                f"{self.examples['train']}, the number of training examples."
            )

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The images' size and the number of classes."""
        return Metadata(model={"image_size": 8, "channels": 1, "num_classes": CLASSES})

    @functools.cached_property
    def examples(self) -> dict[str, int]:
        """Sizes of the splits."""
        return {split: len(self._splits[split]["label"]) for split in (*SPLITS, *CHANGED)}

    def train_batches(self, start_step: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Endless shuffled batches of the training split."""
        return shuffled_batches(
            self._splits["train"], self.batch_size, self.seed, start_step, share
        )

    def eval_batches(self, split: str, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass over a split, in order."""
        if split not in self.examples:
            raise ValueError(f"Digits has no split {split!r}; expected one of {[*self.examples]}.")
        return ordered_batches(self._splits[split], self.eval_batch_size, share)

    def example_batch(self) -> Batch:
        """The first training batch."""
        return next(self.train_batches())

    def illustration(self, batch: Batch) -> Illustration:
        """The batch's first image."""
        image = np.repeat((255 * batch["image"][0]).astype(np.uint8), 3, axis=-1)
        names = tuple(str(digit) for digit in range(CLASSES))
        return Illustration(f"a {names[batch['label'][0]]}", (), names, image)

    @functools.cached_property
    def _splits(self) -> dict[str, dict[str, np.ndarray]]:
        rows, (images, labels) = dict(self._rows), self._arrays
        if self.train_examples:
            _, rows["train"] = _stratified(rows["train"], labels, self.train_examples, self.seed)
        splits = {name: {"image": images[row], "label": labels[row]} for name, row in rows.items()}
        test = splits["test"]
        for name, change in zip(CHANGED, (self._noisy, self._rotated), strict=True):
            splits[name] = {"image": change(test["image"]), "label": test["label"]}
        return splits

    def _noisy(self, images: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(self.split_seed).normal(0.0, self.noise, images.shape)
        return np.clip(images + noise, 0.0, 1.0).astype(np.float32)

    def _rotated(self, images: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(self.split_seed)
        angles = rng.uniform(-self.rotation, self.rotation, len(images))
        pairs = zip(images, angles, strict=True)
        return np.stack([ndimage.rotate(*one, reshape=False, order=1) for one in pairs])

    @functools.cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Which of all examples each split holds."""
        _, labels = self._arrays
        rest, test = _stratified(
            np.arange(len(labels)), labels, self.test_fraction, self.split_seed
        )
        share = self.validation_fraction / (1.0 - self.test_fraction)
        train, validation = _stratified(rest, labels, share, self.split_seed)
        return {"train": train, "validation": validation, "test": test}

    @functools.cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, float32 [n, 8, 8, 1] from 0 to 1, and their labels."""
        digits = load_digits()
        images = (digits.images[..., None] / 16.0).astype(np.float32)  # pixels are 0 to 16
        return images, digits.target.astype(np.int32)


def _stratified(
    rows: np.ndarray, labels: np.ndarray, size: float | int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `rows` in two, each class in the same proportion; the second has that size, or share."""
    first, second = train_test_split(rows, test_size=size, stratify=labels[rows], random_state=seed)
    return np.sort(first), np.sort(second)
