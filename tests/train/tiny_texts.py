"""A user's own texts: a few made-up sentences in a file of any kind, and runs on them."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tests.pretrained.checkpoints import WORDS
from train.configs import texts

COLUMNS = ("review", "stars")


def rows_of(size: int, classes: Sequence[Any] = (1, 5)) -> list[tuple[Any, ...]]:
    """As many rows, with something to learn and, among them, a comma, a quote and a line end."""
    rng = np.random.default_rng(size)
    rows = []
    for number in range(size):
        label = classes[number % len(classes)]
        words = [("cat", "dogs")[number % 2], *rng.choice(WORDS, rng.integers(3, 8)), str(number)]
        rows.append((f'{words[0]}, "{words[1]}"\n{" ".join(words[2:])}', label))
    return rows


def write_table(
    path: pathlib.Path, rows: Sequence[Sequence[Any]], columns: Sequence[str] = COLUMNS
) -> pathlib.Path:
    """Writes rows as the path's ending says."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        values = [list(column) for column in zip(*rows, strict=True)]
        table = pyarrow.table(dict(zip(columns, values, strict=True)))
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([columns, *rows])
    return path


def tiny_config(checkpoint: str, train: pathlib.Path, kind: str = "", **data: Any) -> ConfigDict:
    """A run of a few steps on the tiny checkpoint; `data` are settings of that section."""
    config = texts.get_config(kind)
    config.model.pretrained = checkpoint
    config.data.update({"train": str(train), "text": "review", "label": "stars", "max_length": 32})
    config.data.update({"batch_size": 8, "eval_batch_size": 8, "window": 2, "buckets": (32,)})
    config.data.update(data)
    config.optimizer.learning_rate = 1e-2
    config.train.update({"epochs": 6.0, "min_steps": 0, "log_every": 4, "microbatch_size": 0})
    config.eval.update({"mmd_examples": 0, "at_start": False})
    return config.lock()
