"""A checkpoint's tensors into a model's parameters, each one used or listed; and back.

PyTorch's Linear holds [out, in] where Dense holds [in, out]; flax's attention splits its
projections into heads, [E, H, D] in front and [H, D, E] behind. Every rule can be turned around,
so one table serves reading and writing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from align_jax.models.albert import AlbertConfig
from align_jax.models.bert import BertConfig
from align_jax.models.heads import MultipleChoice, SequenceClassifier, SpanExtractor
from align_jax.models.stack import unstack_layers
from align_jax.models.transformer import EncoderConfig
from align_jax.pretrained.config import model_type
from align_jax.pretrained.errors import PretrainedError

Path = tuple[str, ...]
Tensors = Mapping[str, tuple[np.ndarray, str]]  # with the file that each came from

SAME, TRANSPOSED = "same", "transposed"


class Entry(NamedTuple):
    """One parameter and its tensor."""

    path: Path
    name: str  # of the tensor, without the model's prefix ("bert.") for the encoder's
    # SAME, or TRANSPOSED for a matrix with its axes swapped. Splitting into heads is reshaping, and
    # follows from the parameter's shape.
    layout: str
    base: bool  # whether the tensor belongs to the encoder

    def to_parameter(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The parameter of this shape."""
        matrix = tensor.T if self.layout == TRANSPOSED else tensor
        return np.ascontiguousarray(matrix).reshape(shape)

    def to_tensor(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor as the checkpoint holds it."""
        matrix = parameter.reshape(self.tensor_shape(parameter.shape, stored=False))
        return np.ascontiguousarray(matrix.T if self.layout == TRANSPOSED else matrix)

    def tensor_shape(self, shape: tuple[int, ...], *, stored: bool = True) -> tuple[int, ...]:
        """Shape of the tensor for a parameter of this shape; before transposing if not stored."""
        if self.layout == SAME:
            return (int(np.prod(shape)),) if "attention" in self.path else shape
        # query, key and value split their outputs into heads, `out` its inputs.
        cut = -1 if self.path[-2] == "out" else 1
        matrix = (int(np.prod(shape[:cut])), int(np.prod(shape[cut:])))
        return matrix[::-1] if stored else matrix


def entries(model: object, config: EncoderConfig) -> list[Entry]:
    """Every parameter of a model (an encoder, or one with a head), with its tensor.

    The pooler is listed even where the model has none: what the caller does not need, it skips.
    """
    heads = isinstance(model, SequenceClassifier | MultipleChoice | SpanExtractor)
    root: Path = ("encoder",) if heads else ()
    pairs = [(root + path, name, True) for path, name in _encoder(config)]
    if isinstance(model, SpanExtractor):
        pairs.append((("span",), "qa_outputs", False))
    elif isinstance(model, SequenceClassifier | MultipleChoice):
        names = {"pooler": "classifier", "mean": "mean_classifier", "dense": "classifier.out_proj"}
        pairs.append((("classifier",), names[model.pooling], False))
        if model.pooling == "dense":
            pairs.append((("head_dense",), "classifier.dense", False))
    return [entry for path, name, base in pairs for entry in _entries(path, name, base)]


def _entries(path: Path, name: str, base: bool) -> Iterator[Entry]:
    """The parameters of one layer: a Dense, an Embed or a LayerNorm, by its name."""
    if path[-1] in ("word", "position", "token_type"):
        yield Entry((*path, "embedding"), f"{name}.weight", SAME, base)
        return
    norm = path[-1].endswith("norm")
    ours, layout = ("scale", SAME) if norm else ("kernel", TRANSPOSED)
    yield Entry((*path, ours), f"{name}.weight", layout, base)
    yield Entry((*path, "bias"), f"{name}.bias", SAME, base)


def _encoder(config: EncoderConfig) -> Iterator[tuple[Path, str]]:
    """The encoder's layers: where ours are, and what the checkpoint calls them."""
    for part in ("word", "position", "token_type"):
        yield ("embeddings", part), f"embeddings.{part}_embeddings"
    yield ("embeddings", "norm"), "embeddings.LayerNorm"
    albert = isinstance(config, AlbertConfig)
    if isinstance(config, AlbertConfig):
        yield ("embedding_projection",), "encoder.embedding_hidden_mapping_in"
        prefixes = [
            f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"
            for group in range(config.groups)
            for inner in range(config.group_layers)
        ]
    else:
        prefixes = [f"encoder.layer.{number}" for number in range(config.layers)]
    for number, prefix in enumerate(prefixes):
        for path, names in _LAYER.items():
            yield (f"layer_{number}", *path), f"{prefix}.{names[albert]}"
    yield ("pooler",), "pooler" if albert else "pooler.dense"


# The parts of a layer: where ours are, and what checkpoints of BERT and of ALBERT call them.
_LAYER: dict[Path, tuple[str, str]] = {
    ("attention", "query"): ("attention.self.query", "attention.query"),
    ("attention", "key"): ("attention.self.key", "attention.key"),
    ("attention", "value"): ("attention.self.value", "attention.value"),
    ("attention", "out"): ("attention.output.dense", "attention.dense"),
    ("attention_norm",): ("attention.output.LayerNorm", "attention.LayerNorm"),
    ("mlp_in",): ("intermediate.dense", "ffn"),
    ("mlp_out",): ("output.dense", "ffn_output"),
    ("mlp_norm",): ("output.LayerNorm", "full_layer_layer_norm"),
}


def canonical_name(name: str, config: EncoderConfig) -> str:
    """A tensor's name without the model's prefix and with today's names for LayerNorm's parts."""
    name = name.removeprefix(f"{model_type(config)}.")
    for legacy, current in (("gamma", "weight"), ("beta", "bias")):
        if name.endswith(f"LayerNorm.{legacy}"):
            name = name.removesuffix(legacy) + current
    return name


def config_of(model: nn.Module, do: str) -> EncoderConfig:
    """The encoder's configuration; a `PretrainedError` if there is none, of what one cannot do."""
    config = getattr(model, "config", None)
    if not isinstance(config, EncoderConfig):
        raise PretrainedError(
            f"Cannot {do} a {type(model).__name__}: expected a text encoder or one with a head. "
            "Pass the model that `load` returned; of an aligned(model), pass the model inside."
        )
    return config


def reconfigured(model: nn.Module, config: EncoderConfig, **changes: Any) -> nn.Module:
    """The model with other options.

    With `scan_layers=False` its parameters are named as a checkpoint's tensors, layer by layer.
    """
    return model.clone(config=dataclasses.replace(config, **changes), parent=None)


def has_stack(config: EncoderConfig) -> bool:
    """Whether the layers' parameters are stacked (ALBERT's only one needs no stack)."""
    return isinstance(config, BertConfig) and config.scan_layers


@functools.cache  # a model is traced once, however often it is loaded and saved
def parameter_shapes(model: nn.Module) -> Mapping[Path, tuple[int, ...]]:
    """Path -> shape of every parameter, alignment networks included; nothing is computed."""
    shapes = jax.eval_shape(lambda: _init(model, 0))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}


@functools.partial(jax.jit, static_argnames=("model", "wanted", "seed"))
def fresh_parameters(model: nn.Module, wanted: frozenset[Path], seed: int) -> dict[Path, jax.Array]:
    """The model's own initial values of some parameters; the others are never computed."""
    flat = traverse_util.flatten_dict(_init(model, seed))
    return {path: flat[path] for path in wanted}


def _init(model: nn.Module, seed: int) -> dict[str, Any]:
    tokens = jnp.zeros((1, 1, 2) if isinstance(model, MultipleChoice) else (1, 2), jnp.int32)
    return model.init(jax.random.key(seed), tokens, mutable=["params"])["params"]


def to_parameters(
    model: nn.Module,
    config: EncoderConfig,
    shapes: Mapping[Path, tuple[int, ...]],
    tensors: Tensors,
    *,
    folder: str,
    new_head: bool,
) -> tuple[dict[Path, np.ndarray], tuple[str, ...]]:
    """Parameters out of a checkpoint's tensors, float32, and the names of those it did not use.

    Raises:
        PretrainedError: a tensor of the encoder is missing (of the pooler or head, one may be), or
            any is twice there, of a wrong shape, or not finite.
    """
    by_name: dict[str, str] = {}
    for name in tensors:
        canonical = canonical_name(name, config)
        if canonical in by_name:
            raise PretrainedError(
                f"{folder} holds {canonical!r} twice, as {by_name[canonical]!r} and {name!r}. "
                "Remove one of them."
            )
        by_name[canonical] = name

    parameters: dict[Path, np.ndarray] = {}
    missing: list[str] = []
    used: set[str] = set()
    for entry in entries(model, config):
        if entry.path not in shapes or (new_head and not entry.base):
            continue
        if entry.name not in by_name:
            if entry.base and "pooler" not in entry.path:
                missing.append(entry.name)
            continue
        name, shape = by_name[entry.name], shapes[entry.path]
        tensor, file = tensors[name]
        advice = "The sizes in config.json do not belong to these weights."
        if not entry.base:
            advice = "Pass new_head=True for a new head."
            if isinstance(model, SequenceClassifier) and model.labels > 1:
                advice = "Pass the num_labels that it was trained with, or new_head=True."
        what = f"{folder}/{file}: tensor {name!r}"
        expected = entry.tensor_shape(shape)
        if tensor.shape != expected:
            raise PretrainedError(f"{what} has shape {tensor.shape}, expected {expected}. {advice}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise PretrainedError(f"{what} is {tensor.dtype}, expected floats.")
        if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
            raise PretrainedError(
                f"{what} holds NaN or infinity. The file is damaged, or its training diverged: use "
                "another one."
            )
        parameters[entry.path] = entry.to_parameter(tensor.astype(np.float32, copy=False), shape)
        used.add(name)
    if missing:
        shown = ", ".join(repr(name) for name in missing[:5])
        first = entries(model, config)[0].name
        wrapped = sorted(name for name in tensors if name.endswith(f".{first}"))
        if wrapped and first in missing:
            raise PretrainedError(
                f"{folder} holds {wrapped[0]!r} where {first!r} or "
                f"'{model_type(config)}.{first}' is expected: the names have the prefix of a "
                f"wrapper, {wrapped[0].removesuffix(first)!r}. Save the model that is inside it "
                "(as wrapper.module or its like), or take the prefix off the names."
            )
        raise PretrainedError(
            f"{folder} lacks {len(missing)} of the encoder's tensors: {shown}"
            f"{', ...' if len(missing) > 5 else ''}. It holds "
            f"{sorted(tensors)[:3]}... Is it a {model_type(config)} checkpoint, and do the sizes "
            "in config.json belong to it?"
        )
    return parameters, tuple(sorted(set(tensors) - used))


def to_tensors(
    model: nn.Module, config: EncoderConfig, params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """A model's parameters, without alignment networks, under a checkpoint's names, float32.

    The encoder's names have the model's prefix if there is a head.

    Raises:
        PretrainedError: the parameters are not this model's.
    """
    flat = traverse_util.flatten_dict(dict(params))
    shapes = parameter_shapes(model)
    for path in sorted(set(flat) ^ set(shapes)):
        what = "is missing" if path in shapes else "is none of this model's"
        raise PretrainedError(
            f"Parameter {'/'.join(path)!r} {what}. Pass the params of the model that is saved."
        )
    for path, shape in shapes.items():
        if np.shape(flat[path]) != shape:
            raise PretrainedError(
                f"Parameter {'/'.join(path)!r} has shape {np.shape(flat[path])}, expected {shape}. "
                "Is it replicated over devices? Take one copy."
            )
    if has_stack(config):
        flat = traverse_util.flatten_dict(unstack_layers(jax.device_get(params)))
    with_head = any(path[0] == "encoder" for path in flat)
    tensors = {}
    for entry in entries(model, config):
        if entry.path not in flat:
            continue
        value = np.asarray(jax.device_get(flat[entry.path]), np.float32)
        prefix = f"{model_type(config)}." if with_head and entry.base else ""
        tensors[prefix + entry.name] = entry.to_tensor(value)
    return tensors
