"""Models in Flax Linen with :class:`align_jax.Alignment` in every attention.

Each model is a module beside a frozen configuration dataclass, so that a configuration can be
written down, compared and rejected before any parameter is made.
"""

from align_jax.models.albert import AlbertConfig, AlbertEncoder
from align_jax.models.bert import BertConfig, BertEncoder
from align_jax.models.gat import GAT, GATConfig
from align_jax.models.graph import SparseFeatures, validate_graph
from align_jax.models.heads import MultipleChoice, SequenceClassifier, SpanExtractor, SpanLogits
from align_jax.models.mcan import MCAN, MCANConfig
from align_jax.models.stack import stack_layers, unstack_layers
from align_jax.models.transformer import EncoderConfig
from align_jax.models.vit import VisionTransformer, ViTConfig

__all__ = [
    "GAT",
    "MCAN",
    "AlbertConfig",
    "AlbertEncoder",
    "BertConfig",
    "BertEncoder",
    "EncoderConfig",
    "GATConfig",
    "MCANConfig",
    "MultipleChoice",
    "SequenceClassifier",
    "SpanExtractor",
    "SpanLogits",
    "SparseFeatures",
    "ViTConfig",
    "VisionTransformer",
    "stack_layers",
    "unstack_layers",
    "validate_graph",
]
