"""Finds the attentions of any program that JAX can trace, and hands out their queries and keys."""

from align_jax.finder.search import Found, Input, Missed, find
from align_jax.finder.site import Part, Site, Steps
from align_jax.finder.tap import run

__all__ = ["Found", "Input", "Missed", "Part", "Site", "Steps", "find", "run"]
