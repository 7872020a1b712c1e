"""Questions about pictures: VQA v2. The regions are the published features of detected objects."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np

from train.data.base import check_least, data_folder
from train.data.visual_questions import VisualQuestions
from train.data.vqa_files import Question, read_regions, read_vqa
from train.registry import ConfigError
from train.tasks.vqa_answers import normalize

_COCO = {"train": "train2014", "validation": "val2014"}  # split -> COCO's name of its pictures


@dataclasses.dataclass(frozen=True)
class VQAv2(VisualQuestions):
    """VQA v2: questions about photographs, each answered by ten people.

    Batches as in `VisualQuestions`. The answers to choose from are those that were the most common
    one to more than 8 questions of both splits together (3,129 of them), in the order in which they
    first appear; both they and what people said are normalised (`train.tasks.vqa_answers`). "train"
    are the questions about COCO's train2014, "validation" those about its val2014.

    The files lie as follows, the first four as they are published:

        v2_OpenEnded_mscoco_train2014_questions.json   v2_mscoco_train2014_annotations.json
        v2_OpenEnded_mscoco_val2014_questions.json     v2_mscoco_val2014_annotations.json
        features/train2014/COCO_train2014_000000000009.jpg.npz
        features/val2014/COCO_val2014_000000000042.jpg.npz

    Attributes:
        folder: of the files; "" means $ALIGN_JAX_DATA/vqa or, without that variable, vqa in the
            current folder.
        max_words: as above; 14, as MCAN has it.
        features: the folder that holds train2014/ and val2014/, one file of regions per picture
            (see `read_regions`); "" means features/ in `folder`.
        region_features: F, 2048 in the published features.
        max_regions: M; of pictures with more regions, the first ones count.
        answers_above: an answer is one to choose from if it is the most common one to more
            questions than this.
    """

    max_words: int = 14
    features: str = ""
    region_features: int = 2048
    max_regions: int = 100
    answers_above: int = 8

    clean_splits: ClassVar[tuple[str, ...]] = ("train", "validation")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, {"region_features": 1, "max_regions": 1, "answers_above": 0})

    @functools.cached_property
    def answers(self) -> tuple[str, ...]:
        """The answers to choose from, normalised; a ConfigError if none is frequent enough."""
        common = [x.common for split in self.clean_splits for x in self._questions[split]]
        counts: Counter[str] = Counter()
        for answer, count in Counter(common).items():
            counts[normalize(answer)] += count
        frequent = tuple(answer for answer, count in counts.items() if count > self.answers_above)
        if not frequent:
            raise ConfigError(
                f"data.answers_above is {self.answers_above}, but the most frequent answer occurs "
                f"{max(counts.values())} times."
            )
        return frequent

    @property
    def _folder(self) -> Path:
        return data_folder(self.folder, "vqa", "vqa")

    @functools.cached_property
    def _questions(self) -> dict[str, list[Question]]:
        return {
            split: read_vqa(
                self._folder / f"v2_OpenEnded_mscoco_{coco}_questions.json",
                self._folder / f"v2_mscoco_{coco}_annotations.json",
            )
            for split, coco in _COCO.items()
        }

    @property
    def _region_shape(self) -> tuple[int, int]:
        return self.max_regions, self.region_features

    def picture_path(self, identity: int) -> Path:
        """The file of regions of the picture that a question is about."""
        split, question = self._question(identity)
        return self._path(split, question.image)

    def _read_regions(self, path: Path) -> np.ndarray:
        return read_regions(path, self.region_features, self.max_regions)

    def _path(self, split: str, image: int) -> Path:
        coco = _COCO[split]
        folder = Path(self.features).expanduser() if self.features else self._folder / "features"
        return folder / coco / f"COCO_{coco}_{image:012d}.jpg.npz"

    def _check_pictures(self, split: str, images: np.ndarray) -> None:
        for image in np.unique(images).tolist():
            path = self._path(split, image)
            if not path.is_file():
                raise ConfigError(
                    f"{path} is missing: each picture needs a file of its regions' features. Make "
                    "or download them, or set data.features to their folder."
                )

    def _regions(self, split: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A picture has several questions, which stand together in the files.
        distinct, place = np.unique(images, return_inverse=True)
        paths = [self._path(split, image) for image in distinct.tolist()]
        regions, mask = self._padded([self._read_regions(path) for path in paths])
        return regions[place], mask[place]
