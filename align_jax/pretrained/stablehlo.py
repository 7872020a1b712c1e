"""A model as one program for whatever runs StableHLO: `jax.export`, without this library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from align_jax.collection import strip_alignment
from align_jax.models.heads import MultipleChoice
from align_jax.pretrained.convert import config_of, reconfigured
from align_jax.pretrained.errors import PretrainedError, require

STABLEHLO = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
_LIMIT = 2**31 - 2**24  # bytes: a flatbuffer's offsets have 31 bits; some room for the program


def export_stablehlo(
    path: str | os.PathLike[str],
    model: nn.Module,
    params: Mapping[str, Any],
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes a model, for inference, as one program that JAX runs without this library.

    The program's arguments are `input_ids`, `attention_mask` and `token_type_ids`, int32 [B, N]
    ([B, C, N] for multiple choice) for any B and any N that the model has positions for. It
    returns what the model does, as an array or a tuple of arrays. The weights are in it. JAX reads
    it in this version and in those of the next six months.

    Args:
        path: the file; replaced if it is there.
        model: an encoder or one with a head, as `load` and `build` make them.
        params: its "params" collection, with or without alignment networks.
        platforms: what it is to run on, of "cpu", "cuda", "rocm" and "tpu".

    Raises:
        PretrainedError: it is no such model, or larger than 2 GB.
        ValueError: a platform that JAX does not know.
        OSError: the file cannot be written.
        ImportError: flatbuffers is not installed.

    Example:
        See `load_stablehlo`.
    """
    require("flatbuffers", "Writing StableHLO")
    config = config_of(model, "export")
    if not platforms or set(platforms) - {*PLATFORMS, "rocm"}:
        raise ValueError(f"platforms is {tuple(platforms)}; expected some of {PLATFORMS}.")
    plain = strip_alignment(params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(plain))
    if size > _LIMIT:
        raise PretrainedError(
            f"The model has {size / 1e9:.2f} GB of weights; a StableHLO file holds less than 2. "
            "Save it without one."
        )
    inference = reconfigured(model, config, alignment=None, remat=False)

    def program(input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        outputs = inference.apply({"params": plain}, input_ids, attention_mask, token_type_ids)
        return tuple(outputs) if isinstance(outputs, tuple) else outputs

    axes = "b, c, n" if isinstance(model, MultipleChoice) else "b, n"
    shape = export.symbolic_shape(axes, constraints=[f"n <= {config.max_length}"])
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    exported = export.export(jax.jit(program), platforms=tuple(platforms))(*[tokens] * 3)
    Path(path).write_bytes(exported.serialize())


def load_stablehlo(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """Reads the program that `export_stablehlo` wrote.

    Where this library is not there, JAX alone is enough: the model's card says how.

    Args:
        path: the file.

    Returns:
        A function of `input_ids`, `attention_mask` and `token_type_ids`, compiled once for each
        shape; it raises ValueError for more tokens than the model has positions for.

    Raises:
        PretrainedError: the file cannot be read as such a program.
        OSError: there is none.
        ImportError: flatbuffers is not installed.

    Example:
        >>> export_stablehlo("model.stablehlo", model, params)  # doctest: +SKIP
        >>> load_stablehlo("model.stablehlo")(tokens, mask, token_types)  # doctest: +SKIP
        >>> load_stablehlo("no-such-file")
        Traceback (most recent call last):
        FileNotFoundError: ...
    """
    require("flatbuffers", "Reading StableHLO")
    data = Path(path).read_bytes()
    try:
        return jax.jit(export.deserialize(bytearray(data)).call)
    except Exception as error:  # a damaged file can break its reader in any way
        raise PretrainedError(
            f"{os.fspath(path)} cannot be read as StableHLO that jax {jax.__version__} knows "
            f"({type(error).__name__}: {error}). Export the model again."
        ) from error
