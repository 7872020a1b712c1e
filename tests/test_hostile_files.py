"""Files that were damaged at random, or made to do harm: a clear error, or a valid result.

Each format's own tests try what its readers must say. Here the same bytes are spoilt in many ways
that nobody thought of; whatever else a reader raises would reach the user as a stack trace.
"""

from __future__ import annotations

import json
import pathlib
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from align_jax import pretrained
from align_jax.models import AlbertConfig
from align_jax.pretrained import PretrainedError
from tests.pretrained import test_tokenizer_settings as settings_files
from tests.train import tiny_vqa
from tests.train.data.test_planetoid import toy_parts
from tests.train.data.test_planetoid import write as write_planetoid
from tests.train.tiny_glue import tiny_checkpoint
from tests.train.tiny_squad import write_squad
from train.data import easy_vqa, planetoid, vqa_v2
from train.data.squad import Squad
from train.data.transfer_files import read_labelled
from train.data.vqa_v2 import VQAv2
from train.data.word_vectors import read_glove
from train.predict import decoded, read_texts
from train.registry import ConfigError
from train.run.folder import CheckpointError, read_config
from train.run.log import read_records

tokenizers = pytest.importorskip("tokenizers")
EXPECTED = (PretrainedError, ConfigError, CheckpointError)
SPOILT = 25  # versions of each file of a checkpoint
OFTEN = 100  # and of every other
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
    return lambda: pretrained.load(folder, head="encoder")  # which compiles no new head


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


def word_piece_reader(folder: pathlib.Path) -> Callable[[], Any]:
    """A vocabulary with all that may stand beside it."""
    settings_files.write(folder, settings_files.BERT)
    beside = {
        "tokenizer_config.json": {"do_lower_case": True, "tokenizer_class": "BertTokenizer"},
        "special_tokens_map.json": {"cls_token": settings_files.token("[CLS]")},
        "added_tokens.json": {"<e1>": settings_files.N},
        "config.json": {"tokenizer_class": None},
    }
    settings_files.write(folder, beside)
    return tokenizer_reader(folder, settings_files.config_of(settings_files.BERT))


def byte_level_reader(folder: pathlib.Path) -> Callable[[], Any]:
    settings_files.write(folder, settings_files.ROBERTA)
    settings_files.write(folder, settings_files.settings(add_prefix_space=True))
    return tokenizer_reader(folder, settings_files.config_of(settings_files.ROBERTA))


def tokenizer_json_reader(folder: pathlib.Path) -> Callable[[], Any]:
    """With a regular expression, and settings that change the file."""
    read = word_piece_reader(folder)
    backend = read().backend
    pre = tokenizers.pre_tokenizers
    split = pre.Split(tokenizers.Regex(r"[a-z]+(?=x)|\\s"), "isolated")
    backend.pre_tokenizer = pre.Sequence([split, pre.BertPreTokenizer()])
    for path in folder.iterdir():
        path.unlink()
    (folder / "tokenizer.json").write_text(backend.to_str())
    decoder = {str(settings_files.N): settings_files.token("<e1>")}
    values = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": decoder}
    settings_files.write(folder, settings_files.settings(do_lower_case=False, **values))
    return read


def tokenizer_reader(folder: pathlib.Path, config: Any) -> Callable[[], Any]:
    def read() -> Any:
        tokenizer = pretrained.load_tokenizer(folder, config)
        windows = {"max_length": 32, "stride": 2, "max_question": 8}
        pretrained.encode_windows(tokenizer, ["who x"], ["Caf\u00e9 sings. " * 20], **windows)
        return tokenizer

    return read


def pieces_reader(folder: pathlib.Path) -> Callable[[], Any]:
    (folder / "spiece.model").write_bytes(pieces("<pad>", "<unk>", "[CLS]", "[SEP]", "a", "b"))
    return tokenizer_reader(folder, AlbertConfig(vocab_size=9, hidden_size=8, heads=2))


def pieces(*texts: str) -> bytes:
    """A SentencePiece model; the second piece stands for unknown text."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    fields = []
    for place, text in enumerate(texts):
        score = b"\x15" + struct.pack("<f", -place)
        fields.append(field(1, field(1, text.encode()) + score + bytes([0x18, 1 + (place == 1)])))
    return b"".join(fields)


def easy_vqa_reader(folder: pathlib.Path) -> Callable[[], Any]:
    tiny_vqa.write_easy_vqa(folder)
    answers = easy_vqa.read_easy_answers(folder)

    def read() -> None:
        for part in ("train", "test"):
            asked = easy_vqa.read_easy_questions(folder / part / "questions.json", answers)
            easy_vqa.read_pictures([folder / part / "images" / f"{x.image}.png" for x in asked])

    return read


def regions_reader(folder: pathlib.Path) -> Callable[[], Any]:
    np.savez(folder / "a.npz", x=np.ones((3, 6), np.float32))
    np.savez_compressed(folder / "b.npz", x=np.ones((6, 3)), y=np.arange(3))
    return lambda: [vqa_v2.read_regions(folder / x, 6, 4) for x in ("a.npz", "b.npz")]


def labelled_reader(folder: pathlib.Path) -> Callable[[], Any]:
    (folder / "a.jsonl").write_text('{"a": "x", "b": "y", "label": 1}\n')
    (folder / "b.csv").write_text('startphrase,b,label\n"x, y",z,1\nv,"e ""f""",0\n')
    (folder / "c.txt").write_text("x\ty\t(4, 6)\tu\nv\tw\t(2, 6)\n")
    fields = {"a.jsonl": ("a", "b"), "b.csv": ("context", "b")}
    fields["c.txt"] = ("sentence1", "sentence2")
    return lambda: [read_labelled(folder / x, y, ("no", "yes")) for x, y in fields.items()]


def glove_reader(folder: pathlib.Path) -> Callable[[], Any]:
    (folder / "vectors.txt").write_text("a 1 2 3\nb -1 2e5 .5\nx y 1 2 3\n")
    return lambda: read_glove(folder / "vectors.txt", ["a", "b"], 3)


def predicted_reader(folder: pathlib.Path) -> Callable[[], Any]:
    (folder / "texts.jsonl").write_text('{"a": "x", "b": "\\ud83d\\ude00"}\n\n{"a": "", "b": "y"}')

    def read() -> None:
        lines = (folder / "texts.jsonl").read_bytes().splitlines(keepends=True)
        list(read_texts(decoded(lines, "texts"), ("a", "b"), "texts"))

    return read


READERS = {
    "byte-level": byte_level_reader,
    "checkpoint": checkpoint_reader,
    "easy-VQA": easy_vqa_reader,
    "glove": glove_reader,
    "labelled": labelled_reader,
    "pieces": pieces_reader,
    "planetoid": planetoid_reader,
    "predicted": predicted_reader,
    "regions": regions_reader,
    "run": run_reader,
    "squad": squad_reader,
    "tokenizer.json": tokenizer_json_reader,
    "vqa": vqa_reader,
    "word pieces": word_piece_reader,
}


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.fault(
    "Every file that is read (checkpoints, tokenizers, data sets, runs), spoilt at random",
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
    times = SPOILT if reader == "checkpoint" else min(OFTEN, 400 // len(list(files(folder))))
    for path in files(folder):
        for _ in range(times):
            path.write_bytes(spoilt(everything[path], rng))
            try:
                read()
            except EXPECTED:
                refused += 1
            assert set(files(tmp_path)) == set(everything)  # nothing was written
        path.write_bytes(everything[path])
    assert refused > SPOILT // 2


def npy(shape: str, kind: str = "<f4", data: bytes = bytes(72)) -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


MEMBERS = {
    "no array": b"hello",
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "objects": npy("(3, 6)", "|O"),
    "records": npy("(3, 6)", "f4,f4"),
    "a shape that is none": npy("(3, -6)"),
    "a huge shape": npy("(1000000000000, 6)"),
    "a shape that overflows": npy(f"({2**62}, 6)"),
    "a header that is code": npy("__import__('os').abort()"),
    "a header without end": b"\x93NUMPY\x01\x00\xe8\xfd" + b"(" * 65000,
    "zeros without end": npy("(3000, 6)", data=bytes(72000)),
}


@pytest.mark.filterwarnings("ignore")  # of NumPy about what it reads
@pytest.mark.parametrize("member", MEMBERS)
def test_a_members_damage_is_its_files(member, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(vqa_v2, "LARGEST_ARCHIVE", 2**16)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", MEMBERS[member])
    with pytest.raises(ConfigError, match=r"a.npz, an image's features"):
        vqa_v2.read_regions(tmp_path / "a.npz", 6, 4)


@pytest.mark.parametrize("flags", [(6, b"\x01"), (8, b"\x63")])  # encrypted; packed by no known way
def test_an_archive_that_cannot_be_unpacked_is_named(flags, tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((3, 6), np.float32))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    place, value = flags
    for start, more in ((content.index(b"PK\x03\x04"), 0), (content.index(b"PK\x01\x02"), 2)):
        content[start + place + more : start + place + more + 1] = value
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a.npz, an image's features"):
        vqa_v2.read_regions(tmp_path / "a.npz", 6, 4)


@pytest.mark.fault(
    "An invalid regular expression in a tokenizer.json, or one that takes for ever",
    "An error in place of a panic of the Rust library",
)
@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
def test_a_regular_expression_that_panics_is_an_error(part, tmp_path) -> None:
    tokenizer = word_piece_reader(tmp_path)()
    content = json.loads(tokenizer.backend.to_str())
    config = settings_files.config_of(settings_files.BERT)
    for path in tmp_path.iterdir():
        path.unlink()
    steps = {
        "pre_tokenizer": {"type": "Split", "behavior": "Isolated", "invert": False},
        "normalizer": {"type": "Replace", "content": "b"},
    }
    for pattern in ("(", "(x+x+)+y"):
        changed = {**content, part: {**steps[part], "pattern": {"Regex": pattern}}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        if pattern == "(":
            with pytest.raises(PretrainedError, match="cannot be read as a tokenizer"):
                pretrained.load_tokenizer(tmp_path, config)
            continue
        tokenizer = pretrained.load_tokenizer(tmp_path, config)
        windows = {"max_length": 32, "stride": 2, "max_question": 8}
        for call in (
            lambda: tokenizer.encode(["x" * 60]),  # noqa: B023
            lambda: pretrained.encode_windows(tokenizer, ["x" * 60], ["a"], **windows),  # noqa: B023
            lambda: pretrained.encode_windows(tokenizer, ["a"], ["x" * 60], **windows),  # noqa: B023
        ):
            with pytest.raises(PretrainedError, match=r"fails on a text \(.*retry-limit"):
                call()
        assert tokenizer.encode(["cafe"])["attention_mask"].sum() > 2  # it still works
