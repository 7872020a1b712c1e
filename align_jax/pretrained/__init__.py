"""Pretrained text encoders: a checkpoint's folder or hub name in, a Flax model out; and back.

The one part of the library that reads and writes files. Nothing else imports it, and what it
needs beyond JAX (`pip install ".[pretrained]"` in a checkout) is imported when a function needs it.
"""

from align_jax.pretrained.card import Card
from align_jax.pretrained.errors import PretrainedError
from align_jax.pretrained.load import HEADS, LoadReport, Pretrained, build, load
from align_jax.pretrained.predict import Prediction
from align_jax.pretrained.save import push_to_hub, save
from align_jax.pretrained.stablehlo import export_stablehlo, load_stablehlo
from align_jax.pretrained.tokenizer import BUCKETS, Tokenizer
from align_jax.pretrained.tokenizer_files import load_tokenizer
from align_jax.pretrained.windows import Windows, encode_windows

__all__ = [
    "BUCKETS",
    "HEADS",
    "Card",
    "LoadReport",
    "Prediction",
    "Pretrained",
    "PretrainedError",
    "Tokenizer",
    "Windows",
    "build",
    "encode_windows",
    "export_stablehlo",
    "load",
    "load_stablehlo",
    "load_tokenizer",
    "push_to_hub",
    "save",
]
