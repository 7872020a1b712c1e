"""Parameters of models without the time that it takes to make them, and programs as text."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from align_jax import strip_alignment


def random_parameters(model: nn.Module, *inputs: Any, scale: float = 0.3, seed: int = 0) -> Any:
    """Random numbers in the shapes of a model's parameters; biases are not 0, nor are scales 1.

    To initialise a model takes longer, for its program has to be compiled.
    """
    shapes = jax.eval_shape(
        lambda *inputs: model.init(jax.random.key(0), *inputs, mutable=["params"]), *inputs
    )
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        numbers = scale * rng.normal(size=leaf.shape) + (path[-1].key == "scale")
        return numbers.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


def initial_program(model: nn.Module, *inputs: Any) -> str:
    """By which a model's parameters, but those of its alignment, are made, as text.

    Models of the same program start from the same numbers; to compile it would take far longer.
    """

    def init(rng: Any) -> Any:
        return strip_alignment(model.init(rng, *inputs, mutable=["params"])["params"])

    return jax.jit(init).lower(jax.random.key(0)).as_text()


def inference_program(model: nn.Module, params: Any, *inputs: Any) -> str:
    """By which a model's outputs are computed, as text: of the parameters only what it reads."""
    return jax.jit(model.apply).lower({"params": params}, *inputs).as_text()
