"""Corpora of a few made-up sentences in local files, and runs on them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tests.pretrained.checkpoints import WORDS
from train.configs import transfer
from train.data.transfer import DOMAINS

SIZES = {"train": 40, "validation": 13}
OTHER = 10  # examples of each other domain


def write_domains(folder: pathlib.Path, name: str) -> None:
    """Writes each corpus of a task as JSON lines."""
    domains = DOMAINS[name]
    for split, size in SIZES.items():
        _write(folder / f"{domains.source.name}-{split}.jsonl", name, size)
    for corpus in domains.targets:
        _write(folder / f"{corpus.name}.jsonl", name, OTHER)


def _write(path: pathlib.Path, name: str, size: int) -> None:
    domains, rng = DOMAINS[name], np.random.default_rng(len(path.name))
    lines = []
    for number in range(size):
        label = number % len(domains.labels)
        values: dict[str, Any] = {field: _text(rng, label == 1) for field in domains.fields}
        if domains.choices > 1:
            right = [number == label for number in range(domains.choices)]
            endings = [_text(rng, one) for one in right]
            values = {"context": values["context"], "endings": endings}
        lines.append(json.dumps({**values, "label": label}))
    path.write_text("\n".join(lines) + "\n")


def _text(rng: np.random.Generator, right: bool) -> str:
    first = "dogs" if right else "cat"  # something to learn
    return " ".join([first, *rng.choice(WORDS, rng.integers(1, 8))])


def tiny_config(
    checkpoint: pathlib.Path, folder: pathlib.Path, name: str, method: str = "none"
) -> ConfigDict:
    """A run of a few steps on the tiny checkpoint."""
    config = transfer.get_config(name)
    config.alignment.method = method
    config.model.pretrained = str(checkpoint)
    config.model.dropout = config.model.attention_dropout = 0.0
    config.data.update({"source": "files", "files": str(folder), "max_length": 32})
    config.data.update({"batch_size": 8, "eval_batch_size": 8, "window": 2})
    config.data.buckets = (32,)
    config.optimizer.learning_rate = 1e-2
    config.train.update({"steps": 6, "log_every": 2, "checkpoint_every": 3})
    config.eval.update({"every": 6, "mmd_examples": 4, "at_start": False})
    return config.lock()
