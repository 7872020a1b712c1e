"""What goes wrong with a checkpoint, and the packages that reading one needs."""

from __future__ import annotations

import importlib
from types import ModuleType

# The packages of the extra "pretrained" in pyproject.toml.
EXTRA = ("flatbuffers", "huggingface_hub", "safetensors", "tokenizers")


class PretrainedError(ValueError):
    """A checkpoint cannot be found, read, or turned into a model; the message says what to do.

    Example:
        >>> from align_jax import pretrained
        >>> pretrained.load("./no-such-folder")
        Traceback (most recent call last):
        align_jax.pretrained.errors.PretrainedError: There is no folder './no-such-folder'. ...
    """


def require(module: str, purpose: str) -> ModuleType:
    """Imports an optional package; the error says how to install it, and its purpose."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        install = (
            '`pip install ".[pretrained]"` in a checkout of align_jax installs all that '
            "align_jax.pretrained needs"
            if package in EXTRA
            else f"pip install {package}"
        )
        raise ImportError(f"{purpose} needs the package {package!r}: {install}.") from error
