"""Where a computation runs, as far as that decides how to lay it out."""

import jax


def works_in_cache() -> bool:
    """Whether to take what fits a cache at a time: on a CPU, unless XLA spreads the arrays.

    Under `jax.jit` with a mesh (`jax.set_mesh`) the compiler cuts the arrays along axes of its
    choice. A loop along such an axis would first gather it, on every device.
    """
    return jax.default_backend() == "cpu" and not spread_by_compiler()


def spread_by_compiler() -> bool:
    """Whether several devices form a mesh that the compiler may cut arrays along.

    Inside `jax.pmap` and `jax.shard_map` a function sees its own share, which no one cuts again.

    Example:
      >>> spread_by_compiler()
      False
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and any(kind != jax.sharding.AxisType.Manual for kind in mesh.axis_types)


def matmul_precision() -> str | None:
    """JAX's setting `jax_default_matmul_precision`, None where it is not set.

    JAX states this attribute in no type, so that it is read in one place.

    Example:
      >>> with jax.default_matmul_precision("highest"):
      ...     matmul_precision()
      'highest'
    """
    return getattr(jax.config, "jax_default_matmul_precision", None)
