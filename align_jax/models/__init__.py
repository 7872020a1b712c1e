"""Models in Flax Linen that use :class:`align_jax.MultiHeadDotProductAttention`.

Each model is a module beside a frozen configuration dataclass, so that a configuration can be
written down, compared and rejected before any parameter is made.
"""

from align_jax.models.mcan import MCAN, MCANConfig
from align_jax.models.vit import VisionTransformer, ViTConfig

__all__ = ["MCAN", "MCANConfig", "ViTConfig", "VisionTransformer"]
