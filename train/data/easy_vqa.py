"""Questions about pictures: easy-VQA, inside a Python package. The regions are patches.

Source: Victor Zhou, 2019, github.com/vzhou842/easy-VQA.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from train.data.base import check_least, kept
from train.data.json_text import read_advised_text, read_json
from train.data.visual_questions import LARGEST_ID, PEOPLE, Question, VisualQuestions
from train.registry import ConfigError

PICTURE_SIZE = 64  # in pixels
CHANNELS = 4  # red, green, blue, and contrast with the background
ADVICE = "Install easy-vqa again, or set data.folder."


@dataclasses.dataclass(frozen=True)
class EasyVQA(VisualQuestions):
    """easy-VQA: 48,248 questions about 5,000 pictures of one coloured shape each; 13 answers.

    Batches as in `VisualQuestions`. The regions are square patches, by rows of the picture, each
    pixel by pixel, with a fourth channel beside red, green and blue (see `add_contrast`). A channel
    has mean 0 and variance 1 over all pixels of the training split's pictures, so noise of variance
    1 is as strong as the picture. Ids count the questions for training and validation, then those
    for testing, in the order of the files. `references` says of each answer that ten people gave
    it, so the official accuracy is the plain one.

    Attributes:
        folder: that holds answers.txt, train/ and test/; "" means the installed package
            (pip install --no-deps easy-vqa==1.0).
        patch_size: side of a patch in pixels; divides 64.
        validation_fraction: share of the pictures for training that validate, with all their
            questions: no picture is in both splits.
        split_seed: of that choice; apart from `seed`, so that runs with different seeds are
            validated on the same pictures.
    """

    patch_size: int = 8
    validation_fraction: float = 0.1
    split_seed: int = 0

    clean_splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, {"patch_size": 1, "split_seed": 0})
        if PICTURE_SIZE % self.patch_size:
            raise ConfigError(
                f"data.patch_size is {self.patch_size}; expected a divisor of {PICTURE_SIZE}."
            )
        if not 0.0 < self.validation_fraction < 1.0:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}; expected a number "
                "between 0 and 1."
            )

    @functools.cached_property
    def answers(self) -> tuple[str, ...]:
        """The answers, in the order of answers.txt."""
        return read_easy_answers(self._folder)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return (PICTURE_SIZE // self.patch_size,) * 2

    def picture_path(self, identity: int) -> Path:
        """The PNG that a question is about."""
        split, question = self._question(identity)
        part = "test" if split == "test" else "train"
        return self._folder / part / "images" / f"{question.image}.png"

    def picture(self, identity: int) -> np.ndarray:
        """The picture that a question is about, uint8 [64, 64, 3]; see the base class."""
        split, question = self._question(identity)
        return self._pictures(split, np.array([question.image]))[0, ..., :3]

    @functools.cached_property
    def _folder(self) -> Path:
        return Path(self.folder).expanduser() if self.folder else easy_vqa_folder()

    @functools.cached_property
    def _questions(self) -> dict[str, list[Question]]:
        given = read_easy_questions(self._folder / "train" / "questions.json", self.answers)
        test = read_easy_questions(
            self._folder / "test" / "questions.json", self.answers, first=len(given)
        )
        images = sorted({x.image for x in given})
        count = round(self.validation_fraction * len(images))
        if not 0 < count < len(images):
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}: of {len(images)} "
                f"pictures, {count} would validate. Both splits need one at least."
            )
        held = set(np.random.default_rng(self.split_seed).permutation(images)[:count].tolist())
        return {
            "train": [x for x in given if x.image not in held],
            "validation": [x for x in given if x.image in held],
            "test": test,
        }

    @property
    def _region_shape(self) -> tuple[int, int]:
        rows, columns = self.grid
        return rows * columns, CHANNELS * self.patch_size**2

    @kept
    def _decoded(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of a folder's pictures, and the pictures, uint8 [n, 64, 64, 4]."""
        splits = ("test",) if part == "test" else ("train", "validation")
        numbers = np.unique([x.image for name in splits for x in self._questions[name]])
        folder = self._folder / part / "images"
        paths = [folder / f"{number}.png" for number in numbers.tolist()]
        return numbers, add_contrast(read_pictures(paths))

    def _pictures(self, split: str, images: np.ndarray) -> np.ndarray:
        """Some pictures of a split, uint8 [B, 64, 64, 4]."""
        numbers, pictures = self._decoded("test" if split == "test" else "train")
        return pictures[np.searchsorted(numbers, images)]

    @functools.cached_property
    def _standard(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the channels, [4] each."""
        images = np.unique([x.image for x in self._questions["train"]])
        pixels = self._pictures("train", images).reshape(-1, CHANNELS)
        # Of counts, as floats for all pixels would fill gigabytes.
        counts = np.stack(
            [np.bincount(pixels[:, channel], minlength=256) for channel in range(CHANNELS)]
        )
        values, share = np.arange(256), counts / len(pixels)
        mean = share @ values
        std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
        # A channel that never changes says nothing, whatever it is divided by.
        return mean, np.where(std > 0, std, 1.0)

    def _regions(self, split: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        regions = self._standardised(self._pictures(split, images))
        return regions, np.ones(regions.shape[:2], bool)

    def _read_regions(self, path: Path) -> np.ndarray:
        return self._standardised(add_contrast(read_pictures([path])))[0]

    def _standardised(self, pictures: np.ndarray) -> np.ndarray:
        mean, std = (np.tile(x, self.patch_size**2).astype(np.float32) for x in self._standard)
        regions = cut_patches(pictures, self.patch_size).astype(np.float32)
        regions -= mean
        regions /= std
        return regions


def add_contrast(pictures: np.ndarray) -> np.ndarray:
    """Adds to each pixel how far its colour lies from the picture's median colour.

    A patch enters the model through one linear layer, to which a yellow edge and a blue one have
    nothing in common; in this channel they look alike, as a detector's features would.

    Of uint8 [B, height, width, 3] it makes uint8 [B, height, width, 4]; the distance is the root of
    the mean square over the channels.

    Example:
        >>> add_contrast(np.full((1, 2, 2, 3), 7, np.uint8))[0, 0, 0].tolist()
        [7, 7, 7, 0]
    """
    background = np.median(pictures, axis=(1, 2), keepdims=True)
    squares = (pictures - background.astype(np.float32)) ** 2
    contrast = np.sqrt(squares.mean(axis=-1, keepdims=True)).round().astype(np.uint8)
    return np.concatenate([pictures, contrast], axis=-1)


def cut_patches(pictures: np.ndarray, size: int) -> np.ndarray:
    """Pictures [B, 64, 64, channels] as patches of side p, [B, (64 / p)^2, p * p * channels].

    By rows; each patch is flattened, row by row, its channels innermost.
    """
    count, side, _, channels = pictures.shape
    across = side // size
    cut = pictures.reshape(count, across, size, across, size, channels)
    return cut.swapaxes(2, 3).reshape(count, across**2, size * size * channels)


def easy_vqa_folder() -> Path:
    """Where the installed easy-VQA keeps its data; the package is not imported."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "easy-VQA is inside the Python package easy-vqa, which is not installed. Run: "
            "pip install --no-deps easy-vqa==1.0 - or set data.folder to the folder that holds "
            "answers.txt, train/ and test/."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read_easy_answers(folder: Path) -> tuple[str, ...]:
    """easy-VQA's answers, in the order of answers.txt."""
    path = folder / "answers.txt"
    answers = tuple(read_advised_text(path, ADVICE).split())
    if not answers or len(set(answers)) < len(answers):
        raise ConfigError(f"{path} should name at least one answer a line, each of them once.")
    return answers


def read_easy_questions(path: Path, answers: Sequence[str], first: int = 0) -> list[Question]:
    """Reads one of easy-VQA's questions.json.

    Each answer counts as given by ten people, so that it is judged as those of VQA v2 are: the
    official accuracy is then the plain one.

    Args:
        path: of the file, [[question, answer, number of the picture], ...].
        answers: those that may occur.
        first: the first question's id; the others' are the numbers after it.
    """
    content = read_json(path, ADVICE)
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{path} should be a list of [question, answer, picture].")
    questions = []
    for number, entry in enumerate(content):
        types = [type(value) for value in entry] if isinstance(entry, list) else []
        if types != [str, str, int] or not 0 <= entry[2] <= LARGEST_ID:
            raise ConfigError(
                f"{path}: entry {number} should be [question, answer, number of the picture]."
            )
        text, answer, image = entry
        if answer not in answers:
            raise ConfigError(
                f"{path}: entry {number} has the answer {answer!r}, which answers.txt does not."
            )
        answer = sys.intern(answer)
        questions.append(Question(first + number, image, text, (answer,) * PEOPLE, answer))
    return questions


def read_pictures(paths: Sequence[Path]) -> np.ndarray:
    """PNG files of easy-VQA's size, uint8 [len(paths), 64, 64, 3]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(
            f"easy-VQA's pictures are read by Pillow: pip install pillow ({error})."
        ) from error
    pictures = np.empty((len(paths), PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)
    for row, path in enumerate(paths):
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                # Before the pixels are decoded, of which a hostile file may claim any number.
                if picture.size != (PICTURE_SIZE, PICTURE_SIZE):
                    raise ConfigError(
                        f"{path} has {picture.size[0]} x {picture.size[1]} pixels; expected "
                        f"{PICTURE_SIZE} x {PICTURE_SIZE}."
                    )
                pictures[row] = np.asarray(picture.convert("RGB"))
        except ConfigError:
            raise
        except Exception as error:  # a damaged picture can break its decoder in any way
            raise ConfigError(
                f"{path} cannot be read as a PNG ({error}). For easy-VQA's own pictures, install "
                "easy-vqa again or set data.folder."
            ) from error
    return pictures
