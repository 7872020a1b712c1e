"""A tiny checkpoint with a tokenizer, and a GLUE of a few made-up sentences."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from align_jax.models.bert import BertConfig
from align_jax.pretrained import build, save
from tests.pretrained.checkpoints import VOCAB, WORDS, write_word_piece
from tests.train.commands import run_quietly
from train.configs import glue
from train.data.glue import GLUE

SIZES = {"train": 40, "validation": 11, "test": 5}
BUCKETS = (8, 16, 32)


def tiny_checkpoint(folder: pathlib.Path, layers: int = 1) -> pathlib.Path:
    """Writes a small BERT and its WordPiece tokenizer."""
    config = BertConfig(
        vocab_size=len(VOCAB), hidden_size=16, layers=layers, heads=2, mlp_size=16, max_positions=40
    )
    model = build(config, "encoder")
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    save(folder, model, params)
    write_word_piece(folder)
    return folder


class FakeBuilder:
    """Stands in for TFDS' builder of a prepared data set.

    Attributes:
        examples: of each split; tests may change them.
    """

    def __init__(self, dataset: str) -> None:
        self.examples: dict[str, list[dict[str, Any]]] = {}
        rng = np.random.default_rng(0)
        for split in GLUE[dataset].splits:
            kind = split.partition("_")[0]
            self.examples[split] = [
                self._example(dataset, number, rng, labelled=kind != "test")
                for number in range(SIZES[kind])
            ]

    @staticmethod
    def _example(dataset: str, number: int, rng: Any, *, labelled: bool) -> dict[str, Any]:
        task = GLUE[dataset]
        label = number % len(task.labels) if task.labels else float(rng.uniform(0, 5))
        first = "dogs" if label == 1 else "cat"  # something to learn
        texts = {
            field: " ".join([first, *rng.choice(WORDS, rng.integers(1, 8))]).encode()
            for field in task.fields
        }
        return {"idx": 100 + number, "label": label if labelled else -1, **texts}

    @property
    def info(self) -> Any:
        sizes = {name: len(examples) for name, examples in self.examples.items()}
        splits = {n: types.SimpleNamespace(num_examples=size) for n, size in sizes.items()}
        return types.SimpleNamespace(splits=splits)

    def as_data_source(self, split: str) -> Any:
        examples = self.examples[split]
        return types.SimpleNamespace(__getitems__=lambda rows: [examples[row] for row in rows])


def fake_glue(monkeypatch: Any, dataset: str = "mrpc") -> FakeBuilder:
    """Puts a made-up data set in the place of the prepared one."""
    builder = FakeBuilder(dataset)
    monkeypatch.setattr("train.data.glue.prepared_builder", lambda name, module, folder: builder)
    return builder


def tiny_config(
    checkpoint: str | pathlib.Path, dataset: str = "mrpc", method: str = "none"
) -> ConfigDict:
    """A run of a few steps on the tiny checkpoint."""
    config = glue.get_config(dataset)
    config.alignment.method = method
    config.model.pretrained = str(checkpoint)
    config.data.update({"max_length": 32, "batch_size": 8, "eval_batch_size": 8, "window": 2})
    config.data.buckets = (32,)
    config.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 0})
    config.train.update({"steps": 6, "log_every": 2, "checkpoint_every": 3})
    config.eval.update({"every": 6, "mmd_examples": 0, "at_start": False})
    return config.lock()


def tiny_run(
    checkpoint: str, folder: pathlib.Path, dataset: str = "mrpc", method: str = "none"
) -> pathlib.Path:
    """A run that is finished."""
    with pytest.MonkeyPatch.context() as patch:
        fake_glue(patch, dataset)
        run_quietly(tiny_config(checkpoint, dataset, method), folder)
    return folder
