"""From a trained model to a folder that `transformers` loads, and from there to the hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from align_jax.collection import strip_alignment
from align_jax.models.albert import AlbertEncoder
from align_jax.models.bert import BertEncoder
from align_jax.models.heads import MultipleChoice, SequenceClassifier, SpanExtractor
from align_jax.models.stack import unstack_layers
from align_jax.models.transformer import EncoderConfig
from align_jax.pretrained.card import CARD, Card, card_text, may_write
from align_jax.pretrained.config import model_type, numbered_labels, to_json, usual_problem
from align_jax.pretrained.convert import config_of, reconfigured, to_tensors
from align_jax.pretrained.errors import PretrainedError, require
from align_jax.pretrained.files import ALIGNMENT, BIN, OWN_SAFETENSORS, SAFETENSORS
from align_jax.pretrained.own_class import MODULE, own_class
from align_jax.pretrained.stablehlo import STABLEHLO, export_stablehlo
from align_jax.pretrained.tokenizer import Tokenizer
from align_jax.pretrained.tokenizer_files import tokenizer_files

_CLASSES = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert"}


def save(
    folder: str | os.PathLike[str],
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    label_names: Sequence[str] | None = None,
    alignment: bool = False,
    card: Card | None = None,
    stablehlo: bool = False,
) -> None:
    """Writes config.json, model.safetensors and the tokenizer, for `load` and `transformers`.

    `transformers` either loads the folder exactly or refuses it. It has no class for a classifier
    with pooling "mean", with "dense" (but for RoBERTa) or with "pooler" for RoBERTa; none for
    multiple choice but with "pooler"; and none for an encoder without a pooler. With one of these
    comes a file of a few lines of PyTorch, which `from_pretrained(folder, trust_remote_code=True)`
    runs. Without that option, and in the classes of `transformers` itself, loading raises: they
    know no such type as config.json names, and the weights are in align_jax.safetensors.

    Args:
        folder: made if it does not exist; files of the same names in it are replaced.
        model: an encoder or one with a head, as `load` and `build` make them.
        params: its "params" collection, with or without alignment networks.
        tokenizer: written too, unless None.
        label_names: names of the classes in order; None takes the model's, which are those that it
            was loaded with, or else numbers them.
        alignment: write alignment.safetensors too, the networks that inference does not need.
        card: what README.md, the model's card, is to say beyond what the model shows; None writes
            one too, but leaves alone a README.md that `save` did not write.
        stablehlo: write model.stablehlo too, see `export_stablehlo`.

    Raises:
        PretrainedError: the parameters are not this model's, the names are not one per class, the
            folder is a URL, or it holds another model's weights that would be taken for these.
        OSError: a file cannot be written.
        ImportError: safetensors is not installed; for stablehlo, flatbuffers.

    Example:
        See `load`.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(folder)):  # would make a folder "gs:"
        raise PretrainedError(
            f"{os.fspath(folder)!r} is a URL; expected a folder of this machine. Save the model to "
            "one, and copy it."
        )
    path = Path(folder)
    require("safetensors.numpy", "Writing a checkpoint")
    config = config_of(model, "save")
    plain = strip_alignment(params)
    prefix, task, pooling = _architecture(model, config)
    labels = model.labels if isinstance(model, SequenceClassifier) else 0
    values = to_json(
        config,
        architecture=f"{prefix}{f'For{task}' if task else 'Model'}",
        label_names=_label_names(model, label_names, labels),
        problem=(getattr(model, "problem", "") or usual_problem(labels)) if labels else None,
    )
    tensors = to_tensors(reconfigured(model, config, alignment=None), config, plain)
    if stablehlo:
        require("flatbuffers", "Writing StableHLO")

    path.mkdir(parents=True, exist_ok=True)
    own = pooling is not None
    _remove_weights(path, own=own)
    if pooling is not None:
        code = own_class(values, prefix, task, pooling)
        (path / f"{MODULE}.py").write_text(code, encoding="utf-8")
    text = json.dumps(values, indent=2, sort_keys=True)
    (path / "config.json").write_text(text + "\n", encoding="utf-8")
    _write_tensors(path / (OWN_SAFETENSORS if own else SAFETENSORS), tensors, {"format": "pt"})
    if alignment and (networks := _alignment_networks(params, plain)):
        _write_tensors(path / ALIGNMENT, networks)
    if tokenizer is not None:
        tokenizer.save(path)
    if stablehlo:
        export_stablehlo(path / STABLEHLO, model, plain)
    if card is not None or may_write(path):
        text = card_text(
            model,
            config,
            card or Card(),
            folder=path.resolve().name,
            label_names=tuple(values.get("id2label", {}).values()),
            own_code=own,
            tokenizer=tokenizer_files(path) is not None,
            stablehlo=stablehlo,
        )
        (path / CARD).write_text(text, encoding="utf-8")


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    message: str = "Upload a model of align_jax",
) -> str:
    """Uploads a model's folder to the hub, with its card.

    Args:
        folder: as `save` wrote it.
        repo_id: "OWNER/NAME", or "NAME" of your own; made if it is not there.
        private: whether only its owner sees a repository that is made here.
        token: of the hub; None takes the one of `hf auth login`, or of $HF_TOKEN.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        PretrainedError: the folder holds no model, or the hub refuses or cannot be reached.
        ImportError: huggingface_hub is not installed.

    Example:
        >>> push_to_hub("no-such-folder", "ann/reviews")
        Traceback (most recent call last):
        align_jax.pretrained.errors.PretrainedError: 'no-such-folder' holds no config.json; ...
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise PretrainedError(
            f"{os.fspath(folder)!r} holds no config.json; expected a folder that `save` wrote."
        )
    hub = require("huggingface_hub", "Uploading a model")
    try:
        api = hub.HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=path, commit_message=message)
    # As with downloads, each kind of failure is a class of its own, some of them httpx's.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise PretrainedError(
            f"Could not upload {os.fspath(folder)!r} to {repo_id!r}: {reason} Check the name, that "
            "you are logged in (hf auth login, or $HF_TOKEN) with a token that may write, and the "
            "network."
        ) from error
    return str(made)


def _architecture(model: nn.Module, config: EncoderConfig) -> tuple[str, str, str | None]:
    """Prefix and task of the class in `transformers`; and the pooling, if there is no such class.

    A pooling of "" stands for an encoder without a pooler: AutoModel's would make one up.
    """
    prefix = _CLASSES[model_type(config)]
    if isinstance(model, BertEncoder | AlbertEncoder):
        return prefix, "", None if model.pooler else ""
    if isinstance(model, SpanExtractor):
        return prefix, "QuestionAnswering", None
    choice = isinstance(model, MultipleChoice)
    task = "MultipleChoice" if choice else "SequenceClassification"
    # Each architecture has one of either there: RoBERTa's classifier is the one with a dense layer.
    theirs = "dense" if prefix == "Roberta" and not choice else "pooler"
    return prefix, task, None if model.pooling == theirs else model.pooling


def _label_names(
    model: nn.Module, names: Sequence[str] | None, labels: int
) -> Sequence[str] | None:
    if labels == 0 and names is not None:
        raise PretrainedError(f"label_names {list(names)!r} were given for a model without.")
    if labels == 0:
        return None
    if names is None:
        return getattr(model, "label_names", ()) or numbered_labels(labels)
    if len(names) != labels or len(set(names)) != labels:
        raise PretrainedError(
            f"label_names must be {labels} different names, one per class, got {list(names)!r}."
        )
    return list(names)


def _alignment_networks(params: Any, plain: Any) -> dict[str, np.ndarray]:
    # Files know single layers alone, whatever the model's own parameters look like.
    flat, kept = (
        traverse_util.flatten_dict(unstack_layers(jax.device_get(tree)), sep="/")
        for tree in (params, plain)
    )
    return {name: np.asarray(flat[name], np.float32) for name in sorted(set(flat) - set(kept))}


def _remove_weights(folder: Path, *, own: bool) -> None:
    """Removes what an earlier `save` left and would be taken for this model's weights."""
    for name in (f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json"):
        if own and (folder / name).exists():
            raise PretrainedError(
                f"{folder} holds {name}, another model's weights, which classes of transformers "
                "would take for this one's. Remove it, or name another folder."
            )
    (folder / (SAFETENSORS if own else OWN_SAFETENSORS)).unlink(missing_ok=True)
    (folder / ALIGNMENT).unlink(missing_ok=True)
    (folder / STABLEHLO).unlink(missing_ok=True)


def _write_tensors(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Beside config.json, which has been written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    # safetensors lets nobody but the owner read it, whatever the umask says.
    shutil.copymode(path.parent / "config.json", path)
