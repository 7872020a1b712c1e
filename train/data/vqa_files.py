"""Files of questions about pictures: easy-VQA's, VQA v2's, region features.

Source: "easy-VQA" (Victor Zhou, 2019, github.com/vzhou842/easy-VQA), inside a Python package;
"Making the V in VQA Matter" (Goyal et al., CVPR 2017, arXiv 1612.00837), visualqa.org; regions of
"Bottom-Up and Top-Down Attention" (Anderson et al., CVPR 2018, arXiv 1707.07998).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.json_text import field, read_advised_text, read_json
from train.registry import ConfigError

PEOPLE = 10  # that VQA v2 asks each question
PICTURE_SIZE = 64  # of easy-VQA's pictures, in pixels
LARGEST_ARCHIVE = 2**28  # bytes that a file of regions may unpack to
LARGEST_ID = 2**31 - 1  # ids are int32 in a batch
EASY_ADVICE = "Install easy-vqa again, or set data.folder."


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture."""

    identity: int  # in no other split
    image: int  # the number of the picture among those of its split
    text: str
    answers: tuple[str, ...]  # what the people asked said, as they wrote it
    common: str  # the answer that most of them gave


def easy_vqa_folder() -> Path:
    """Where the installed easy-VQA keeps its data; the package is not imported.

    Raises:
        ConfigError: it is not installed; says which command installs it.
    """
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "easy-VQA is inside the Python package easy-vqa, which is not installed. Run: "
            "pip install --no-deps easy-vqa==1.0 - or set data.folder to the folder that holds "
            "answers.txt, train/ and test/."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read_easy_answers(folder: Path) -> tuple[str, ...]:
    """easy-VQA's answers, in the order of answers.txt.

    Raises:
        ConfigError: there is no such file, it is empty, or names an answer twice.
    """
    path = folder / "answers.txt"
    answers = tuple(read_advised_text(path, EASY_ADVICE).split())
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

    Raises:
        ConfigError: there is no such file, it is no JSON, or not of this form; says where.
    """
    content = read_json(path, EASY_ADVICE)
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
    """PNG files of easy-VQA's size, uint8 [len(paths), 64, 64, 3].

    Raises:
        ConfigError: Pillow is not installed; a picture is missing, corrupt or of another size.
    """
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


def read_vqa(questions: Path, annotations: Path) -> list[Question]:
    """Reads one split of VQA v2: a file of questions and that of their answers.

    Args:
        questions: such as v2_OpenEnded_mscoco_train2014_questions.json.
        annotations: such as v2_mscoco_train2014_annotations.json.

    Raises:
        ConfigError: a file is missing, no JSON, or not of the official form; or the two do not
            belong together. Says where.
    """
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

    Raises:
        ConfigError: there is no such file, it is corrupt or holds pickled objects, or its numbers
            are not features.
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
