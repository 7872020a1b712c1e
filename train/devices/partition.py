"""Which axis of which parameter is cut along which axis of a mesh.

A parameter's path says what its axes mean ("heads", "mlp", ...), and a mesh's rules say which of
these meanings are spread over which of its axes. A parameter of another model, whose path says
nothing, stays whole, or is cut along its longest axis under FSDP.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align_jax.models.stack import STACK

DATA, MODEL = "data", "model"

# Smaller parameters (norms, biases, the alignment's networks) are not worth cutting under FSDP.
LEAST_SIZE = 2**12

# The end of a parameter's path -> what its axes mean. Optimisers' moments end in the same path.
LOGICAL_AXES = (
    (r"(query|key|value)/kernel", ("embed", "heads", "head")),
    (r"(query|key|value)/bias", ("heads", "head")),
    (r"out/kernel", ("heads", "head", "embed")),
    (r"mlp_in/kernel", ("embed", "mlp")),
    (r"mlp_in/bias", ("mlp",)),
    (r"mlp_out/kernel", ("mlp", "embed")),
    (r"(word|words)/embedding", ("vocabulary", "embed")),
)
# Megatron's way (Shoeybi et al. 2019): heads and the hidden layer are computed apart, and their
# contributions added once per block.
TENSOR_RULES = (("heads", MODEL), ("mlp", MODEL), ("vocabulary", MODEL))


def shardings(tree: Any, mesh: Mesh, fsdp: bool, in_use: bool = False) -> Any:
    """Where each array of a state, or of shapes, lies on a mesh with the axes "data" and "model".

    With `fsdp`, parameters are cut along "data" as well (Zhao et al. 2023). While they are `in_use`
    only tables of words are: of these a step takes few rows (`align_jax.placement.look_up`).

    Example:
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
        >>> found = shardings({"mlp_in": {"bias": np.zeros(8)}}, mesh, fsdp=False)
        >>> tuple(found["mlp_in"]["bias"].spec)
        ('model',)
    """

    def placed(path: Any, x: Any) -> NamedSharding:
        name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(x)
        # Each layer is cut as it would be without the stack: a scan takes them one by one, and a
        # layer that lay on one device alone would have to be sent to all others.
        stack = int(bool(shape) and STACK in name.split("/"))
        axes = _axes(name, shape[stack:], mesh, fsdp, in_use)
        return NamedSharding(mesh, PartitionSpec(*[None] * stack, *axes))

    return jax.tree_util.tree_map_with_path(placed, tree)


def _axes(
    name: str, shape: tuple[int, ...], mesh: Mesh, fsdp: bool, in_use: bool
) -> list[str | None]:
    axes: list[str | None] = [None] * len(shape)
    table = False
    for pattern, meanings in LOGICAL_AXES:
        if len(meanings) == len(shape) and re.search(rf"(^|/)({pattern})$", name):
            axes = list(nn.logical_to_mesh_axes(meanings, TENSOR_RULES) or axes)
            table = "vocabulary" in meanings
            break
    # What cannot be cut into equal parts stays whole: 12 heads over 8 devices, 30,522 words over 4.
    pairs = list(zip(axes, shape, strict=True))
    axes = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in pairs]
    if fsdp and np.prod(shape) >= LEAST_SIZE:
        whole = [number for number, axis in enumerate(axes) if axis is None]
        free = [number for number in whole if shape[number] % mesh.shape[DATA] == 0]
        if free and (table or not in_use):
            axes[max(free, key=lambda number: shape[number])] = DATA
    return axes
