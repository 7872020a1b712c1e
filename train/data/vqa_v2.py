"""Questions about pictures: VQA v2. The regions are the published features of detected objects.

Source: "Making the V in VQA Matter" (Goyal et al., CVPR 2017, arXiv 1612.00837), visualqa.org;
"Bottom-Up and Top-Down Attention" (Anderson et al., CVPR 2018, arXiv 1707.07998).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from train.data.base import check_least, data_folder
from train.data.json_text import field, read_json
from train.data.visual_questions import LARGEST_ID, PEOPLE, Question, VisualQuestions
from train.registry import ConfigError
from train.tasks.vqa_answers import normalize

LARGEST_ARCHIVE = 2**28  # bytes that a file of regions may unpack to
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


def read_vqa(questions: Path, annotations: Path) -> list[Question]:
    """Reads one split of VQA v2: a file of questions and that of their answers."""
    said: dict[int, tuple[int, str, tuple[str, ...]]] = {}
    for where, entry in _entries(annotations, "annotations"):
        identity = _identity(entry, "question_id", where)
        if identity in said:
            raise ConfigError(f"{where}: there was an annotation of question {identity} before.")
        answers = tuple(
            # Few answers are distinct; each is kept once.
            sys.intern(field(answer, "answer", str, f"{where}.answers"))
            for answer in field(entry, "answers", list, where)
        )
        if len(answers) != PEOPLE:
            raise ConfigError(f"{where} has {len(answers)} answers; expected {PEOPLE}.")
        common = field(entry, "multiple_choice_answer", str, where)
        said[identity] = (_identity(entry, "image_id", where), common, answers)

    found = []
    for where, entry in _entries(questions, "questions"):
        identity, image = (_identity(entry, name, where) for name in ("question_id", "image_id"))
        # Taken out, so that a second question with the same id finds none either.
        annotation = said.pop(identity, None)
        if annotation is None or annotation[0] != image:
            raise ConfigError(
                f"{where}: question {identity} about image {image} has no annotation of its own in "
                f"{annotations}. Do both files belong to the same split?"
            )
        text = field(entry, "question", str, where)
        found.append(Question(identity, image, text, annotation[2], annotation[1]))
    if said:
        raise ConfigError(
            f"{annotations} has an annotation of question {next(iter(said))}, which {questions} "
            "does not ask. Do both files belong to the same split?"
        )
    return found


def read_regions(path: Path, features: int, limit: int) -> np.ndarray:
    """The features of an image's regions, from an .npz file with one array, "x".

    Which axis is the regions' is told by its length: an "x" whose second axis is `features` long is
    [regions, features]; else, if its first is, it is [features, regions], as MCAN's release has it.

    Args:
        path: of the file.
        features: features per region, 2048 in the published files.
        limit: the most regions to return, the first ones.

    Returns:
        float32 [regions, features], at least one region.
    """
    whose = f"{path}, an image's features,"
    try:
        # NumPy itself leaves a file open that turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > LARGEST_ARCHIVE:  # zeros take a thousandth of their room in it
                raise ValueError(f"it unpacks to {size} bytes; expected up to {LARGEST_ARCHIVE}")
            array = np.asarray(archive["x"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"{whose} is missing. Each image needs such a file; see data.features."
        ) from error
    except Exception as error:  # a damaged archive can break its reader in any way
        raise ConfigError(
            f"{whose} is no .npz file with an array of numbers 'x' ({error}). Download or make it "
            "again."
        ) from error
    good = array.ndim == 2 and array.dtype.kind == "f" and features in array.shape and array.size
    if not good:
        raise ConfigError(
            f"{whose} has an 'x' of {array.dtype} {list(array.shape)}; expected floats "
            f"[regions, {features}] or [{features}, regions]. See data.region_features."
        )
    if array.shape[1] != features:
        array = array.T
    array = np.ascontiguousarray(array[:limit], np.float32)
    if not np.isfinite(array).all():
        raise ConfigError(f"{whose} has numbers that are not finite. Download or make it again.")
    return array


def _entries(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """The entries of the list `name` in an official file, each after where it stands."""
    content = read_json(
        path,
        "Download it from https://visualqa.org/download.html; data.folder says where it should be.",
    )
    entries = field(content, name, list, str(path))
    if not entries:
        raise ConfigError(f"{path} holds no {name}.")
    for number, entry in enumerate(entries):
        yield f"{path}, {name}[{number}]", entry


def _identity(entry: Any, name: str, where: str) -> int:
    value = field(entry, name, int, where)
    if not 0 <= value <= LARGEST_ID:
        raise ConfigError(f"{where}: {name} is {value}; expected 0 to {LARGEST_ID}.")
    return value
