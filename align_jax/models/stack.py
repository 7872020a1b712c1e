"""One layer applied again and again by `nn.scan`, and the parameters of many layers as a stack.

XLA compiles the body of a scan once, whatever the number of layers. What the layers hold is then
stacked, each array with a leading axis for the layer, under the one name that they share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from align_jax.alignment import CLOUDS, NAME

STACK = "layers"
_LAYER = "layer_"


def scanned(
    layer: nn.Module,
    count: int,
    tokens: Float[Array, "B N E"],
    valid: Bool[Array, "B N"],
    deterministic: bool,
    *,
    shared: bool = False,
) -> Float[Array, "B N E"]:
    """Applies a `TransformerLayer` several times, each time with parameters of its own.

    The name that it has holds their stack; if they are `shared`, its parameters as they are.
    """

    def body(layer: Any, tokens: Array, _: None) -> tuple[Array, None]:
        return layer(tokens, valid, deterministic), None

    sown: dict[Any, int] = dict.fromkeys((NAME, CLOUDS, "intermediates"), 0)
    scan = nn.scan(
        body,
        variable_axes=sown if shared else sown | {"params": 0},
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared, "dropout": True, NAME: True},
        length=count,
    )
    return scan(layer, tokens, None)[0]


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a BERT without `scan_layers` as one with it has them.

    Args:
        params: its "params" collection, of the encoder or with a head.

    Returns:
        A new tree with "layers" in the place of "layer_0", "layer_1" and so on: every array with a
        leading axis for the layer, a NumPy array if it is stacked of NumPy arrays.

    Raises:
        ValueError: the layers do not all hold the same parameters, or one is missing.

    Example:
        >>> stack_layers({"layer_0": {"bias": np.zeros(3)}, "layer_1": {"bias": np.ones(3)}})
        {'layers': {'bias': array([[0., 0., 0.],
               [1., 1., 1.]])}}
    """
    names = [name for name in params if in_stack(name) != name]
    stacked = {
        name: stack_layers(child) if isinstance(child, Mapping) else child
        for name, child in params.items()
        if name not in names
    }
    if not names:
        return stacked
    layers = []
    for number in range(len(names)):
        layers.append(params.get(f"{_LAYER}{number}"))
        shapes = [jax.tree.map(np.shape, layer) for layer in (layers[0], layers[-1])]
        if layers[-1] is None or shapes[0] != shapes[1]:
            raise ValueError(
                f"'{_LAYER}{number}' is missing or does not hold the same parameters as "
                f"'{_LAYER}0', so they make no stack; there are {sorted(names)}. Is "
                f"AlignmentConfig.layers None?"
            )

    def stack(*arrays: Any) -> Any:
        return (np if all(isinstance(x, np.ndarray) for x in arrays) else jnp).stack(arrays)

    return stacked | {STACK: jax.tree.map(stack, *layers)}


def in_stack(name: str) -> str:
    """What a part of a parameter's path is called once layers are stacked."""
    return STACK if re.fullmatch(rf"{_LAYER}\d+", name) else name


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a BERT with `scan_layers` as one without it has them.

    Args:
        params: its "params" collection, of the encoder or with a head.

    Returns:
        A new tree with "layer_0", "layer_1" and so on in the place of "layers".

    Example:
        >>> unstack_layers({"layers": {"bias": np.array([0.0, 1.0])}, "pooler": {}})
        {'pooler': {}, 'layer_0': {'bias': np.float64(0.0)}, 'layer_1': {'bias': np.float64(1.0)}}
    """
    single: dict[str, Any] = {}
    for name, child in params.items():
        if name != STACK or not isinstance(child, Mapping):
            single[name] = unstack_layers(child) if isinstance(child, Mapping) else child
    stack = params.get(STACK)
    if isinstance(stack, Mapping):
        for number in range(len(jax.tree.leaves(stack)[0])):
            single[f"{_LAYER}{number}"] = jax.tree.map(lambda x, n=number: x[n], stack)
    return single
