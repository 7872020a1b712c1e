"""Where a computation runs, as far as that decides how to lay it out."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec


def by_platform(
    on_cpu: Callable[..., Any],
    elsewhere: Callable[..., Any],
    *arguments: Any,
    on_tpu: Callable[..., Any] | None = None,
) -> Any:
    """Calls one of functions that give the same numbers, as the platform has it.

    The choice falls when a program is lowered, not when it is traced: `jax.export` writes for a TPU
    what suits a TPU, also on a machine whose JAX knows the CPU alone. All are traced, so that
    they should be small, or be traced once for all layers: JAX remembers what module-level
    functions and those behind `jax.jit` came to.

    Args:
      on_cpu: what suits a cache of some hundred kilobytes.
      elsewhere: for GPU and TPU, whose operations should be few and large.
      *arguments: trees of arrays.
      on_tpu: for a TPU alone; None for what suits a GPU as well.
    """
    of_tpu = {} if on_tpu is None else {"tpu": on_tpu}
    return jax.lax.platform_dependent(*arguments, cpu=on_cpu, default=elsewhere, **of_tpu)


def spread_by_compiler() -> bool:
    """Whether several devices form a mesh that the compiler may shard arrays over.

    Inside `jax.pmap` and `jax.shard_map` a function sees its own share, which is not split again.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and any(kind != jax.sharding.AxisType.Manual for kind in mesh.axis_types)


# Those of a mesh along which samples, heads and the features of words are sharded.
_Axes = tuple[str | None, str | None, str | None]
_AXES: contextvars.ContextVar[_Axes | None] = contextvars.ContextVar("axes", default=None)


@contextlib.contextmanager
def cut_along(
    *, samples: str | None = None, heads: str | None = None, words: str | None = None
) -> Iterator[None]:
    """Says along which axes of a mesh a model's arrays are sharded, while it is traced.

    Alignment compares the tokens of one sample and one head, so each device can do it for its own.
    The compiler does not see that by itself: it makes iterations of Sinkhorn wait for each other on
    all devices, and gathers heads that are put on one axis with the samples.

    The mesh is that of `jax.set_mesh`, with axes of the type Auto. Without a mesh, and for an axis
    that it does not have, nothing changes.

    Args:
      samples: the axis of the batch, such as "data".
      heads: the axis of the attention's heads, such as "model".
      words: the axis along which tables of embeddings have their features sharded, under FSDP that
        of the batch; None where each device has whole embeddings.
    """
    token = _AXES.set((samples, heads, words))
    try:
        yield
    finally:
        _AXES.reset(token)


def on_each_device(function: Callable[..., Any], *arguments: Any, whole_heads: bool = False) -> Any:
    """Calls a function of clouds on each device for its own samples and heads.

    Args:
      function: takes trees of clouds `[B, N, H, ...]` and masks `[B, N]` (or None), and returns a
        tree of arrays `[B, H]`. It treats samples apart, and heads too.
      *arguments: its own.
      whole_heads: whether it needs all heads, which are then the axis N.
    """
    axes, mesh = _AXES.get(), jax.sharding.get_abstract_mesh()
    if axes is None or not spread_by_compiler():
        return function(*arguments)
    batch, _, heads = jax.tree.leaves(arguments)[0].shape[:3]

    def cut(axis: str | None, size: int) -> str | None:
        # What cannot be cut into equal parts is whole on each device.
        return axis if axis in mesh.axis_names and size % mesh.shape[axis] == 0 else None

    samples, parts = cut(axes[0], batch), None if whole_heads else cut(axes[1], heads)
    specs = jax.tree.map(
        lambda x: PartitionSpec(samples, None, parts) if x.ndim > 2 else PartitionSpec(samples),
        arguments,
    )
    mapped = jax.shard_map(
        function, in_specs=specs, out_specs=PartitionSpec(samples, parts), check_vma=False
    )
    return mapped(*arguments)


def look_up(table: Callable[[Array], Array], ids: Array, features: int) -> Array:
    """Looks up embeddings: each device its features of all samples' ids, then whole for its own.

    So no device ever holds the whole table, nor its gradient, which are most of what a small
    encoder's step would have to gather and to add up over devices.

    Args:
      table: from ids `[B, ...]` to embeddings `[B, ..., F]`.
      ids: its argument.
      features: the number F.
    """
    samples, _, words = _AXES.get() or (None, None, None)
    mesh = jax.sharding.get_abstract_mesh()
    if words not in mesh.axis_names or not spread_by_compiler():
        return table(ids)
    # What cannot be cut into equal parts is whole on each device.
    if any(size % mesh.shape[words] for size in (ids.shape[0], features)):
        return table(ids)
    constrain = jax.lax.with_sharding_constraint
    found = table(constrain(ids, PartitionSpec()))
    found = constrain(found, PartitionSpec(*[None] * ids.ndim, words))
    return constrain(found, PartitionSpec(samples))


def matmul_precision() -> str | None:
    """JAX's setting `jax_default_matmul_precision`, None where it is not set.

    JAX states this attribute in no type, so that it is read in one place.
    """
    return getattr(jax.config, "jax_default_matmul_precision", None)
