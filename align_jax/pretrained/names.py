"""Which tensor of a checkpoint is which parameter, and how its layout differs.

PyTorch's Linear holds [out, in] where Dense holds [in, out]; flax's attention splits its
projections into heads, [E, H, D] in front and [H, D, E] behind. Every rule can be turned around,
so one table serves reading and writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from align_jax.models.albert import AlbertConfig
from align_jax.models.heads import MultipleChoice, SequenceClassifier, SpanExtractor
from align_jax.models.transformer import EncoderConfig
from align_jax.pretrained.config import model_type

Path = tuple[str, ...]

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
        for path, name in (_ALBERT_LAYER if albert else _BERT_LAYER).items():
            yield (f"layer_{number}", *path), f"{prefix}.{name}"
    yield ("pooler",), "pooler" if albert else "pooler.dense"


_BERT_LAYER: dict[Path, str] = {
    ("attention", "query"): "attention.self.query",
    ("attention", "key"): "attention.self.key",
    ("attention", "value"): "attention.self.value",
    ("attention", "out"): "attention.output.dense",
    ("attention_norm",): "attention.output.LayerNorm",
    ("mlp_in",): "intermediate.dense",
    ("mlp_out",): "output.dense",
    ("mlp_norm",): "output.LayerNorm",
}
_ALBERT_LAYER: dict[Path, str] = {
    ("attention", "query"): "attention.query",
    ("attention", "key"): "attention.key",
    ("attention", "value"): "attention.value",
    ("attention", "out"): "attention.dense",
    ("attention_norm",): "attention.LayerNorm",
    ("mlp_in",): "ffn",
    ("mlp_out",): "ffn_output",
    ("mlp_norm",): "full_layer_layer_norm",
}


def canonical_name(name: str, config: EncoderConfig) -> str:
    """A tensor's name without the model's prefix and with today's names for LayerNorm's parts."""
    name = name.removeprefix(f"{model_type(config)}.")
    for legacy, current in (("LayerNorm.gamma", "LayerNorm.weight"),
                            ("LayerNorm.beta", "LayerNorm.bias")):  # fmt: skip
        if name.endswith(legacy):
            name = name.removesuffix(legacy) + current
    return name
