"""Parameters that stay as they are: which ones, by regular expressions, and a tree without them.

The step differentiates with respect to the others alone, so that the frozen ones have neither
gradients nor optimiser state, and XLA computes no backward pass below the first that is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util

from align_jax import label_parameters
from train.registry import ConfigError, nearest

ADAPTERS = "adapters"  # the sub-tree of a state's parameters that holds low-rank adapters
# What a plain model does not have is frozen only by an expression that says one of its names:
# "encoder/layer_0/" means the layer, and not the networks that play against it.
_OWN_NAMES = {
    "alignment": ("alignment", "critic", "discriminator", "navigator"),
    ADAPTERS: (ADAPTERS,),
}


def split(params: Mapping[str, Any], freeze: tuple[str, ...]) -> tuple[Any, Any]:
    """The parameters that are trained, and those that `freeze` keeps.

    Args:
        params: of a model, perhaps with adapters.
        freeze: regular expressions, each searched for in every path. A parameter of an alignment
            network, or of an adapter, is meant only by one that says so: that has "alignment",
            "critic", "discriminator" or "navigator" in it, or "adapters".

    Returns:
        Two trees of nested dicts. The first has every module of the top level, also one whose
        parameters are all frozen.

    Raises:
        ConfigError: an expression fits no parameter, or nothing of the model would be trained.

    Example:
        >>> params = {"encoder": {"layer_0": {"bias": 1}, "layer_1": {"bias": 2}}}
        >>> split(params, ("layer_0",))
        ({'encoder': {'layer_1': {'bias': 2}}}, {'encoder': {'layer_0': {'bias': 1}}})
    """
    if not freeze:
        return params, {}
    flat = traverse_util.flatten_dict(params, sep="/")
    kept = _frozen(flat, traverse_util.flatten_dict(label_parameters(params), sep="/"), freeze)
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for name, value in flat.items():
        parts[name in kept][name] = value
    trained, frozen = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return {name: trained.get(name, {}) for name in params}, frozen


def join(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> Any:
    """The tree that `split` took apart."""
    if not frozen:
        return trained
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def _frozen(
    flat: Mapping[str, Any], labels: Mapping[str, str], freeze: tuple[str, ...]
) -> set[str]:
    kinds = {
        name: ADAPTERS if name.startswith(f"{ADAPTERS}/") else label
        for name, label in labels.items()
    }
    found: set[str] = set()
    for expression in freeze:
        meant = [
            path
            for path, kind in kinds.items()
            if any(name in expression for name in _OWN_NAMES.get(kind, ("",)))
        ]
        found |= fitting("optimizer.freeze", expression, flat, meant)
    if not any(kind != "alignment" and name not in found for name, kind in kinds.items()):
        raise ConfigError(
            f"optimizer.freeze is {freeze}, which fits every parameter of the model, so that "
            f"nothing would be trained; leave out some, such as {next(reversed(list(_top(flat))))}."
        )
    return found


def fitting(
    field: str, expression: str, flat: Iterable[str], meant: Iterable[str] | None = None
) -> set[str]:
    """The paths, of those meant or of all, that an expression fits.

    Raises:
        ConfigError: there are none.
    """
    found = {path for path in (flat if meant is None else meant) if re.search(expression, path)}
    if not found:
        raise ConfigError(
            f"{field} names {expression!r}, which fits no parameter; "
            f"{nearest(expression, _parts(flat))}the model has {', '.join(_top(flat))}."
        )
    return found


def _parts(flat: Iterable[str]) -> list[str]:
    """Every part of a parameter's path, "layer_0/query" say: what an expression may have meant."""
    split_up = [name.split("/") for name in flat]
    ends = [(x, end) for x in split_up for end in range(1, len(x) + 1)]
    return sorted({"/".join(x[start:end]) for x, end in ends for start in range(end)})


def _top(flat: Iterable[str]) -> dict[str, None]:
    return dict.fromkeys(name.partition("/")[0] for name in flat)
