"""A SQuAD 2.0 of a few made-up questions, in the official format, and a run on it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from train.configs import squad

CONTEXT = "The cat sat on a mat, and two dogs ran over the hill and the dale."
ANSWERS = [("two dogs", 26), ("The cat", 0), ("the dale", 57), ("a mat", 15)]


def write_squad(folder: pathlib.Path, answers: Sequence[tuple[str, int]] = ANSWERS) -> None:
    """Writes train-v2.0.json and dev-v2.0.json: as many questions with an answer as without."""
    entries: list[dict[str, Any]] = []
    for number, (text, start) in enumerate(answers):
        answer = {"text": text, "answer_start": start}
        entries.append(_entry(f"yes{number}", f"two {text}?", [answer]))
        entries.append(_entry(f"no{number}", "dogs sat?", []))
    content = {
        "version": "v2.0",
        "data": [{"title": "Mats", "paragraphs": [{"context": CONTEXT, "qas": entries}]}],
    }
    for name in ("train", "dev"):
        (folder / f"{name}-v2.0.json").write_text(json.dumps(content))


def _entry(identity: str, question: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    impossible = not answers
    return {
        "id": identity, "question": question, "answers": answers, "is_impossible": impossible,
    }  # fmt: skip


def tiny_config(checkpoint: pathlib.Path, folder: pathlib.Path, method: str = "none") -> ConfigDict:
    """A run of a few steps on the tiny checkpoint."""
    config = squad.get_config("v2")
    config.alignment.method = method
    config.model.pretrained = str(checkpoint)
    config.data.update({"source": "json", "folder": str(folder), "max_length": 32, "stride": 4})
    config.data.update({"max_question": 6, "batch_size": 8, "eval_batch_size": 8, "window": 1})
    config.data.buckets = (32,)
    config.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 0})
    config.train.update({"steps": 200, "log_every": 50, "checkpoint_every": 0})
    config.eval.update({"every": 0, "mmd_examples": 0, "at_start": False})
    return config.lock()
