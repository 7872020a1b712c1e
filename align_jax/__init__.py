"""Alignment attention for JAX and Flax (Zhang et al., NeurIPS 2021, arXiv 2110.12567)."""

from align_jax import calibration, divergences, yardstick
from align_jax.adapters import AdapterConfig, init_adapters, merge_adapters
from align_jax.aligned_function import AlignedFunction, aligned_function
from align_jax.alignment import Alignment
from align_jax.attention import MultiHeadDotProductAttention
from align_jax.attention_report import AttentionReport, attention_report
from align_jax.collection import (
    AlignmentSums,
    Clouds,
    alignment_clouds,
    alignment_loss,
    alignment_sums,
    alignment_table,
    cloud_mmd,
    label_parameters,
    merge_parameters,
    strip_alignment,
)
from align_jax.config import AlignmentConfig
from align_jax.convert import AlignedModel, aligned
from align_jax.gradient_reversal import reverse_gradient
from align_jax.masks import token_masks
from align_jax.optimizer import game_optimizer
from align_jax.version import __version__

__all__ = [
    "AdapterConfig",
    "AlignedFunction",
    "AlignedModel",
    "Alignment",
    "AlignmentConfig",
    "AlignmentSums",
    "AttentionReport",
    "Clouds",
    "MultiHeadDotProductAttention",
    "__version__",
    "aligned",
    "aligned_function",
    "alignment_clouds",
    "alignment_loss",
    "alignment_sums",
    "alignment_table",
    "attention_report",
    "calibration",
    "cloud_mmd",
    "divergences",
    "game_optimizer",
    "init_adapters",
    "label_parameters",
    "merge_adapters",
    "merge_parameters",
    "reverse_gradient",
    "strip_alignment",
    "token_masks",
    "yardstick",
]
