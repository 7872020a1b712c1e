"""A VQA v2 and an easy-VQA of a few made-up questions, in the formats of the published files."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COCO = {"train": "train2014", "validation": "val2014"}
FEATURES = 6  # per region
REGIONS = {1: 2, 2: 5, 3: 1, 4: 3, 5: 4, 6: 1}  # image -> its number of regions

Asked = tuple[int, str, Sequence[str]]  # image, question, what ten people said

QUESTIONS: dict[str, list[Asked]] = {
    "train": [
        (1, "Is it red?", ["yes"] * 7 + ["no"] * 2 + ["maybe"]),
        (1, "How many dogs?", ["two"] * 6 + ["2"] * 3 + ["3"]),
        (2, "Is the T-shirt red/blue?", ["no"] * 6 + ["yes"] * 4),
        (3, "How many cats?", ["2"] * 5 + ["The two"] * 5),
        (3, "What's it?", ["a ghost"] * 10),
        (4, "Is this a dog?", ["no"] * 10),
        (2, "Is it blue?", ["yes"] * 10),
    ],
    "validation": [
        (5, "Is this a zebra?", ["yes"] * 9 + ["no"]),
        (6, "Is it a cat?", ["no"] * 10),
        (5, "How many?", ["two"] * 10),
    ],
}


def question_id(image: int, number: int) -> int:
    """The id of a split's question, counted from 0."""
    return image * 1000 + number


def vqa_content(split: str, asked: Sequence[Asked]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file of questions and that of annotations hold."""
    questions, annotations = [], []
    for number, (image, text, answers) in enumerate(asked):
        both = {"image_id": image, "question_id": question_id(image, number)}
        questions.append({**both, "question": text})
        common = Counter(answers).most_common(1)[0][0]
        said = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": person}
            for person, answer in enumerate(answers, 1)
        ]
        kind = {"question_type": "is", "answer_type": "other"}
        annotations.append({**both, **kind, "multiple_choice_answer": common, "answers": said})
    about = {"data_type": "mscoco", "data_subtype": COCO[split]}
    return {**about, "questions": questions}, {**about, "annotations": annotations}


def write_vqa(
    folder: pathlib.Path, asked: Mapping[str, Sequence[Asked]] = QUESTIONS, *, transposed: bool
) -> None:
    """Writes four JSON files, and features of each picture as MCAN's are: `transposed`."""
    for split, questions in asked.items():
        coco = COCO[split]
        content = vqa_content(split, questions)
        (folder / f"v2_OpenEnded_mscoco_{coco}_questions.json").write_text(json.dumps(content[0]))
        (folder / f"v2_mscoco_{coco}_annotations.json").write_text(json.dumps(content[1]))
        for image in {image for image, *_ in questions}:
            path = features_path(folder, split, image)
            path.parent.mkdir(parents=True, exist_ok=True)
            regions = features(image)
            np.savez(path, x=regions.T if transposed else regions)


def features_path(folder: pathlib.Path, split: str, image: int) -> pathlib.Path:
    """Where the regions of a picture are."""
    return folder / "features" / COCO[split] / f"COCO_{COCO[split]}_{image:012d}.jpg.npz"


def features(image: int) -> np.ndarray:
    """The regions of a picture, float32 [regions, FEATURES]."""
    shape = REGIONS.get(image, 1), FEATURES
    return np.random.default_rng(image).standard_normal(shape).astype(np.float32)


EASY_ANSWERS = ("circle", "red", "no", "yes")
EASY_TRAIN = [
    ["what color is the shape?", "red", 0],
    ["is there a circle?", "yes", 0],
    ["is there a red shape?", "no", 1],
    ["what shape is in the image?", "circle", 2],
    ["is there a circle in the image?", "no", 3],
    ["is there a red circle?", "yes", 4],
    ["is there not a circle?", "no", 4],
]
EASY_TEST = [["is there a mauve shape?", "no", 0], ["what shape is it?", "circle", 1]]


def write_easy_vqa(folder: pathlib.Path, copies: int = 1) -> None:
    """Writes answers.txt, questions.json and pictures of random pixels; needs Pillow.

    Args:
        folder: where to; must exist.
        copies: how often the questions for training are asked, of other pictures each time.
    """
    from PIL import Image

    (folder / "answers.txt").write_text("\n".join(EASY_ANSWERS) + "\n")
    rng = np.random.default_rng(0)
    train = [[*asked, image + 5 * n] for n in range(copies) for *asked, image in EASY_TRAIN]
    for part, questions in (("train", train), ("test", EASY_TEST)):
        (folder / part / "images").mkdir(parents=True)
        (folder / part / "questions.json").write_text(json.dumps(questions))
        for number in {number for *_, number in questions}:
            # Channels of different mean and spread.
            pixels = rng.integers((0, 90, 200), (256, 130, 220), (64, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / "images" / f"{number}.png")
