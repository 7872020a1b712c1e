"""Low-rank adapters (LoRA) on kernels, by default those of the query and key projections.

Hu et al., "LoRA", 2022 (arXiv 2106.09685), leave a kernel W as it is and train two thin matrices, A
with `rank` columns and B with as many rows: the layer computes with `W + alpha / rank * A B`. They
are made and merged as parameters, whatever module the kernel belongs to: no model is changed, and
what was trained is what is exported.
"""

# Qwix (0.1.8) adds LoRA in `dot_general` where its right side is a parameter itself, and silently
# not where kernels are reshaped first, as in `flat_dot_general`; and it cannot merge.

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array

from align_jax.collection import label_parameters
from align_jax.numerics import check_patterns, check_positive

QUERY_AND_KEY = r"(^|/)(query|key)/kernel$"
NO_KERNELS = ("bias", "scale", "embedding")  # of a path's end, also where they have two axes


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Which kernels have an adapter, and how large it is.

    Attributes:
      rank: columns of A and rows of B; at most the smaller side of the kernel as a matrix.
      alpha: what `A B` is multiplied by is `alpha / rank`, so that a rank can be changed without
        searching for a learning rate anew.
      targets: regular expressions, each searched for in the paths of the parameters, such as
        "encoder/layer_0/attention/query/kernel". What one fits must be a kernel. Alignment
        networks have no adapters.
      stacked: likewise, of kernels whose leading axis counts layers, as `nn.scan` makes them: each
        layer has an adapter of its own.

    Raises:
      ValueError: if a rank is below 1, alpha is not above 0, or an expression is none.

    Example:
      >>> AdapterConfig(rank=4).alpha / 4
      4.0
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = (QUERY_AND_KEY,)
    stacked: tuple[str, ...] = (r"(^|/)layers/",)

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, got {self.rank!r}.")
        check_positive("alpha", self.alpha)
        for name in ("targets", "stacked"):
            given = getattr(self, name)
            expressions = (given,) if isinstance(given, str) else given
            check_patterns(name, expressions)
            # Lists come out of configuration files; a frozen config must be hashable.
            object.__setattr__(self, name, tuple(expressions))
        if not self.targets:
            raise ValueError("targets is empty; expected the kernels to adapt, such as 'query'.")


def init_adapters(
    key: Array, params: Mapping[str, Any], config: AdapterConfig = AdapterConfig()
) -> dict[str, Any]:
    """Adapters that change nothing yet: A is random, B is zero.

    A's numbers are uniform within the inverse root of the kernel's inputs, as in PEFT. The outputs
    of a kernel are the axes of its bias; without one, all axes but the first.

    Args:
      key: of the random numbers.
      params: the "params" collection of a Linen model, or nested dicts like it.
      config: which kernels, and the rank.

    Returns:
      A tree with `{"a": [*inputs, rank], "b": [rank, *outputs]}` in the place of each kernel, in
      float32 at least, and nothing else. A stack of layers has one more axis in front of each.

    Raises:
      TypeError: if `params` are no nested dicts.
      ValueError: if an expression fits nothing, or what is no kernel; or the rank is too high.

    Example:
      >>> params = {"query": {"kernel": jnp.ones((6, 2, 4)), "bias": jnp.ones((2, 4))}}
      >>> adapters = init_adapters(jax.random.key(0), params, AdapterConfig(rank=3))
      >>> jax.tree.map(jnp.shape, adapters)
      {'query': {'kernel': {'a': (6, 3), 'b': (3, 2, 4)}}}
    """
    flat, paths = _flat(params)
    labels, _ = _flat(label_parameters(params))
    names = [name for name, label in labels.items() if label == "model"]
    found: set[str] = set()
    for expression in config.targets:
        fitting = {name for name in names if re.search(expression, name)}
        if not fitting:
            parts = [name.split("/") for name in names]
            ends = sorted({"/".join(x[start:]) for x in parts for start in range(len(x))})
            near = difflib.get_close_matches(expression, ends, n=3, cutoff=0.0) or ["none"]
            raise ValueError(
                f"No parameter fits {expression!r} of targets. The nearest are {', '.join(near)}."
            )
        found |= fitting
    adapters = {}
    for one, name in zip(jax.random.split(key, len(found)), sorted(found), strict=True):
        stack, inputs, outputs = _axes(name, flat, config)
        dtype = jnp.promote_types(flat[name].dtype, jnp.float32)
        bound = math.prod(inputs) ** -0.5
        a = jax.random.uniform(one, (*stack, *inputs, config.rank), dtype, -bound, bound)
        adapters[paths[name]] = {"a": a, "b": jnp.zeros((*stack, config.rank, *outputs), dtype)}
    return traverse_util.unflatten_dict(adapters)


def merge_adapters(
    params: Mapping[str, Any], adapters: Mapping[str, Any], config: AdapterConfig = AdapterConfig()
) -> dict[str, Any]:
    """The model's parameters with `alpha / rank * A B` added to each adapted kernel.

    Differentiable. Each call takes `rank` multiplications for each number of an adapted kernel.

    Args:
      params: as of `init_adapters`.
      adapters: what `init_adapters` made of them, trained since.
      config: the same as there.

    Returns:
      A new tree of the structure, shapes and dtypes of `params`.

    Raises:
      TypeError: if one of the trees is no nested dict.
      ValueError: if an adapter belongs to no kernel of `params`, or to one of another shape.

    Example:
      >>> params = {"query": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> adapter = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[0.0, 3.0]])}
      >>> config = AdapterConfig(rank=1, alpha=2.0)
      >>> merged = merge_adapters(params, {"query": {"kernel": adapter}}, config)
      >>> merged["query"]["kernel"].tolist()
      [[1.0, 7.0], [1.0, 13.0]]
    """
    merged, paths = _flat(params)
    parts, _ = _flat(adapters)
    for name in sorted({part.rpartition("/")[0] for part in parts}):
        a, b = parts.get(f"{name}/a"), parts.get(f"{name}/b")
        kernel = merged.get(name)
        if kernel is None or a is None or b is None:
            near = difflib.get_close_matches(name, list(merged), n=1, cutoff=0.0)
            raise ValueError(
                f"The adapter {name!r} is none of a kernel of these parameters; the nearest is "
                f"{', '.join(near)}. Expected what init_adapters made of them."
            )
        stack = a.ndim + b.ndim - 2 - kernel.ndim  # 1 of a stack of layers, whose axis both have
        expected = (*a.shape[:-1], *b.shape[1 + stack :]) if stack in (0, 1) else ()
        if expected != kernel.shape or a.shape[-1] != b.shape[stack] or a.shape[-1] != config.rank:
            raise ValueError(
                f"The adapter of {name} has A {a.shape} and B {b.shape}, which makes no kernel of "
                f"shape {kernel.shape} with rank {config.rank}. Merge it into the parameters that "
                f"it was made of, with the config that it was made with."
            )
        # As exact as float32 is: the kernel should not depend on the device that merged it.
        product = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
        change = (jax.vmap(product) if stack else product)(a, b)
        merged[name] = (kernel + config.alpha / config.rank * change).astype(kernel.dtype)
    return traverse_util.unflatten_dict({paths[name]: x for name, x in merged.items()})


def _axes(
    name: str, flat: Mapping[str, Any], config: AdapterConfig
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The sizes of a kernel's axes: that of the layers if it is a stack, inputs and outputs."""
    shape = np.shape(flat[name])
    leading = int(any(re.search(expression, name) for expression in config.stacked))
    stack, own = shape[:leading], shape[leading:]
    bias = np.shape(flat.get(f"{name.rpartition('/')[0]}/bias", np.zeros(0)))[leading:]
    outputs = len(bias) if 0 < len(bias) < len(own) and own[-len(bias) :] == bias else len(own) - 1
    floating = jnp.issubdtype(flat[name].dtype, jnp.floating)  # integers round it away
    if len(own) < 2 or name.rpartition("/")[2] in NO_KERNELS or not floating:
        raise ValueError(
            f"targets fit {name}, of shape {shape}, which is no kernel of floating-point numbers. "
            f"Let them end in 'kernel$'."
        )
    sides = own[: len(own) - outputs], own[len(own) - outputs :]
    largest = min(math.prod(side) for side in sides)
    if config.rank > largest:
        rows, columns = map(math.prod, sides)
        raise ValueError(
            f"rank is {config.rank}, but {name} is a matrix of {rows} x {columns}: expected "
            f"{largest} or less."
        )
    return stack, *sides


def _flat(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """What a tree holds, and the path there, by the path's text; a key may have a "/" itself."""
    if not isinstance(tree, Mapping) or type(tree).__module__.startswith("flax.nnx"):
        what = f"{type(tree).__name__}; nnx.to_pure_dict() makes them of an NNX state"
        raise TypeError(f"Expected nested dicts of arrays, such as 'params', got a {what}.")
    flat = traverse_util.flatten_dict(dict(tree), keep_empty_nodes=True)
    names = {path: "/".join(map(str, path)) for path in flat}
    return {names[path]: x for path, x in flat.items()}, {x: path for path, x in names.items()}
