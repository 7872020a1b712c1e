"""Files that were damaged at random, or made to do harm: a clear error, or a valid result.

Each format's own tests try what its readers must say. Here the same bytes are spoilt in many ways
that nobody thought of; whatever else a reader raises would reach the user as a stack trace.
"""

from __future__ import annotations

import json
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from align_jax import pretrained
from align_jax.pretrained import PretrainedError
from tests.train import tiny_vqa
from tests.train.data.test_planetoid import toy_parts
from tests.train.data.test_planetoid import write as write_planetoid
from tests.train.tiny_glue import tiny_checkpoint
from tests.train.tiny_squad import write_squad
from train.data import planetoid
from train.data.squad import Squad
from train.data.vqa_v2 import VQAv2
from train.registry import ConfigError
from train.run.folder import CheckpointError, read_config
from train.run.log import read_records

EXPECTED = (PretrainedError, ConfigError, CheckpointError)
SPOILT = 25  # versions of each file
VALUES = [
    None, True, -1, 0, 1e308, 10**18, "", "x" * 1000, "../../etc/passwd", "\x00", [], {}, [[]],
    float("nan"),
]  # fmt: skip


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """Other bytes: cut short, overwritten, filled in, or JSON with another value in it."""
    kind = rng.choice(["cut", "bits", "zeros", "insert", "json", "json"])
    place = rng.randrange(len(content))
    if kind == "json":
        try:
            return json.dumps(with_another_value(json.loads(content), rng)).encode()
        except ValueError:
            kind = "bits"
    if kind == "cut":
        return content[:place]
    if kind == "zeros":
        return content[:place] + bytes(20) + content[place + 20 :]
    if kind == "insert":
        return content[:place] + rng.randbytes(rng.randrange(1, 40)) + content[place:]
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def with_another_value(tree: Any, rng: random.Random) -> Any:
    """The JSON tree with one of its values, at any depth, replaced or removed."""
    if rng.random() < 0.2 or not isinstance(tree, dict | list) or not tree:
        return rng.choice(VALUES)
    key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
    if rng.random() < 0.15:
        del tree[key]
    else:
        tree[key] = with_another_value(tree[key], rng)
    return tree


def checkpoint_reader(folder: pathlib.Path) -> Callable[[], Any]:
    tiny_checkpoint(folder)
    return lambda: pretrained.load(folder)


def squad_reader(folder: pathlib.Path) -> Callable[[], Any]:
    write_squad(folder)
    tokenizer = tiny_checkpoint(folder.parent / "tokenizer")
    settings = {"max_length": 16, "stride": 3, "max_question": 6, "batch_size": 1, "buckets": (16,)}

    def read() -> None:
        source = Squad(source="json", folder=str(folder), tokenizer=str(tokenizer), **settings)
        next(source.train_batches())
        list(source.eval_batches("validation"))

    return read


def vqa_reader(folder: pathlib.Path) -> Callable[[], Any]:
    tiny_vqa.write_vqa(folder, transposed=True)

    def read() -> None:
        source = VQAv2(
            folder=str(folder), region_features=tiny_vqa.FEATURES, answers_above=1, batch_size=1,
            eval_batch_size=2, max_words=5, max_regions=4,
        )  # fmt: skip
        for split in ("train", "validation"):
            list(source.eval_batches(split))

    return read


def planetoid_reader(folder: pathlib.Path) -> Callable[[], Any]:
    write_planetoid(folder, toy_parts()[0])

    def read() -> None:
        try:
            planetoid.read(folder, "toy", num_validation=2)
        except (ValueError, FileNotFoundError) as error:  # the config's builder names the section
            if str(folder) not in str(error):
                raise
            raise ConfigError(str(error)) from error

    return read


def run_reader(folder: pathlib.Path) -> Callable[[], Any]:
    (folder / "config.json").write_text(json.dumps({"name": "x", "model": {"layers": 2}}))
    records = [{"step": step, "split": "train", "loss": 0.5} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return lambda: (read_config(folder), read_records(folder))


READERS = {
    "checkpoint": checkpoint_reader,
    "planetoid": planetoid_reader,
    "run": run_reader,
    "squad": squad_reader,
    "vqa": vqa_reader,
}


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.fault(
    "Files of checkpoints, SQuAD, VQA, Planetoid and runs, spoilt at random 25 times each",
    "A clear error or a valid result, nothing written, nothing run",
)
@pytest.mark.filterwarnings("ignore")  # of NumPy about what it reads
@pytest.mark.parametrize("reader", READERS)
def test_a_spoilt_file_is_an_error_that_is_ours(reader, tmp_path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    read = READERS[reader](folder)
    read()
    rng, refused = random.Random(reader), 0
    everything = {path: path.read_bytes() for path in files(tmp_path)}
    for path in files(folder):
        for _ in range(SPOILT):
            path.write_bytes(spoilt(everything[path], rng))
            try:
                read()
            except EXPECTED:
                refused += 1
            assert set(files(tmp_path)) == set(everything)  # nothing was written
        path.write_bytes(everything[path])
    assert refused > SPOILT // 2
