"""The forms that a checkpoint's weights are found in: those that are read, and all the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from align_jax.pretrained.errors import PretrainedError

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
OWN_SAFETENSORS = "align_jax.safetensors"  # of a model that transformers has no class for
ALIGNMENT = "alignment.safetensors"
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


def has_weights(folder: Path, file: str) -> bool:
    """Whether a folder holds weights as one file of this name, or as several with an index."""
    return (folder / file).is_file() or (folder / f"{file}.index.json").is_file()


def what_there_is(folder: Path) -> str:
    """What a folder holds in place of weights that are read, and what to do about it.

    Args:
        folder: one without them.

    Returns:
        A sentence or two.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "model.onnx").touch()
        ...     what_there_is(Path(folder))
        'It holds model.onnx, an exported graph: use the checkpoint that it was made from.'
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if found := _other_form(x.name for x in entries if x.is_file()):
        return found
    for path in entries:
        if path.is_dir() and any(has_weights(path, file) for file in (SAFETENSORS, BIN)):
            return f"Its folder {path.name!r} holds weights: give {str(path)!r}."
    return "Point to the folder with the weights."


def what_a_repository_has(files: Sequence[str]) -> str:
    """`what_there_is`, of a repository on the hub without weights that are read.

    Args:
        files: their paths in it.

    Example:
        >>> what_a_repository_has(["README.md", "0_Transformer/model.safetensors"])
        "Its folder '0_Transformer' has weights: download it, and give that folder."
    """
    if found := _other_form(file for file in files if "/" not in file):
        return found
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder and name in (SAFETENSORS, BIN):
            return f"Its folder {folder!r} has weights: download it, and give that folder."
    return _other_form(files) or "Choose one with weights."


def _other_form(files: Iterable[str]) -> str:
    """What the first file is that holds weights in another form; "" if none does."""
    files = [x for x in files if not x.rpartition("/")[2].startswith(_NO_WEIGHTS)]
    for ending, form in _OTHERS.items():
        for file in files:
            if file.endswith(ending) and file not in (SAFETENSORS, BIN):
                return f"It holds {file}, {form}."
    return ""


def refuse_adapters(folder: Path) -> None:
    """Refuses a checkpoint with an adapter, which would be left out without a word.

    Raises:
        PretrainedError: names the adapter's file.
    """
    for file in _ADAPTERS:
        if (folder / file).is_file():
            raise PretrainedError(
                f"{folder} holds {file} beside its weights, {_MERGE}. Or remove the adapter's "
                "files to load the checkpoint without it."
            )
