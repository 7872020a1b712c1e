"""Parameters of models, for tests that do not ask what a model starts from."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np


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
