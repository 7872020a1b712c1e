"""A text model whose parameters come from a checkpoint: what a config's `model` section names."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
from flax import traverse_util

from align_jax import AdapterConfig, AlignmentConfig
from align_jax.pretrained import Pretrained, Tokenizer, load


@dataclasses.dataclass(frozen=True)
class PretrainedTextConfig:
    """Settings of `pretrained_text`.

    Attributes:
        pretrained: a folder, a name on the hub, or "package:NAME/FOLDER".
        revision: branch, tag or commit on the hub; "" for the newest.
        offline: use what the hub's cache holds, and no network.
        pooling: see `align_jax.models.heads.SequenceClassifier`; "" for the architecture's own.
        dropout: of embeddings and layers.
        attention_dropout: of attention weights.
        classifier_dropout: before the classifier.
        dtype: of the computation, "float32" or "bfloat16".
        remat: recompute activations in the backward pass, for less memory.
        scan_layers: compile one layer, whatever their number; see `align_jax.models.EncoderConfig`.
        adapter_rank: of the low-rank adapters that are trained in place of the encoder's kernels,
            see `align_jax.AdapterConfig`; 0 for none. Without `optimizer.freeze`, the whole encoder
            is frozen beneath them.
        adapter_alpha: an adapter is multiplied by `adapter_alpha / adapter_rank`.
        adapter_targets: regular expressions of the kernels that have one; the query and key
            projections.
        alignment: what to align.
        head: "classification", "regression", "multiple_choice" or "span"; from the data.
        num_labels: number of classes; from the data.
        tokenizer: the data's, which must be the checkpoint's; None is not checked.
    """

    pretrained: str = "albert/albert-base-v2"
    revision: str = ""
    offline: bool = False
    pooling: str = ""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.1
    dtype: str = "float32"
    remat: bool = False
    scan_layers: bool = False
    adapter_rank: int = 0
    adapter_alpha: float = 16.0
    adapter_targets: tuple[str, ...] = AdapterConfig().targets
    alignment: AlignmentConfig | None = None
    head: str = "classification"
    num_labels: int = 2
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter_targets", tuple(self.adapter_targets))  # JSON has lists
        _ = self.adapters  # refuses numbers that make none

    @property
    def adapters(self) -> AdapterConfig | None:
        """Which kernels have an adapter; None if none has."""
        if self.adapter_rank == 0:
            return None
        return AdapterConfig(self.adapter_rank, self.adapter_alpha, self.adapter_targets)


def pretrained_text(config: PretrainedTextConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a checkpoint with a head of the task's.

    Returns:
        The model, and those of its parameters that the checkpoint holds. The others (the head,
        the alignment networks) are left for the run's own seed to initialise.

    Raises:
        PretrainedError: the checkpoint cannot be found or read, or does not fit.
        ValueError: the data's tokenizer is not the model's.
    """
    loaded = load(
        config.pretrained,
        revision=config.revision or None,
        offline=config.offline,
        head=config.head,
        num_labels=config.num_labels if config.head == "classification" else None,
        pooling=config.pooling or None,
        new_head=True,
        alignment=config.alignment,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        classifier_dropout=config.classifier_dropout,
        dtype=config.dtype,
        remat=config.remat,
        scan_layers=config.scan_layers,
    )
    if config.tokenizer is not None:
        _check_tokenizer(config.tokenizer, config.pretrained, loaded)
    fresh = set(loaded.report.fresh)
    flat = traverse_util.flatten_dict(loaded.params, sep="/")
    found = {name: value for name, value in flat.items() if name not in fresh}
    return loaded.model, traverse_util.unflatten_dict(found, sep="/")


def _check_tokenizer(tokenizer: Tokenizer, name: str, loaded: Pretrained) -> None:
    """The same token must mean the same to the data and to the model."""
    tokens = tokenizer.backend.get_vocab(with_added_tokens=True)
    largest = max(tokens.values())
    if largest >= loaded.config.vocab_size:
        raise ValueError(
            f"the data's tokenizer has tokens up to {largest}, the model {name!r} an "
            f"embedding for {loaded.config.vocab_size}; set data.tokenizer to the model's."
        )
    if loaded.tokenizer is None:
        return
    own = loaded.tokenizer.backend.get_vocab(with_added_tokens=True)
    if tokens != own:
        differing = sorted(set(tokens.items()) ^ set(own.items()))[:2]
        raise ValueError(
            f"the data's tokenizer and that of the model {name!r} number the tokens "
            f"differently, for instance {differing}; set data.tokenizer to the model's."
        )
