"""Dense layers as products of two matrices, on a CPU in forms that XLA computes fast there."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from align_jax.placement import by_platform, matmul_precision, spread_by_compiler

try:
    from jax.experimental import layout
except ImportError:  # experimental, so it may move; then products are the ordinary ones
    layout = None  # type: ignore[assignment]

# Inner products of rows and columns, and so on.
_ROWS_COLUMNS = (((1,), (0,)), ((), ()))
_ROWS_ROWS = (((1,), (1,)), ((), ()))
_COLUMNS_COLUMNS = (((0,), (0,)), ((), ()))
_ALGORITHM = "BF16_BF16_F32"
# JAX 0.6 can prescribe a layout in compiled functions alone.
_PRESCRIBES_LAYOUTS = layout is not None and not hasattr(layout, "DeviceLocalLayout")


def flat_dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`jax.lax.dot_general`, with the axes that belong together merged into one first.

    For the `dot_general` of flax's layers. The gradient of a kernel contracts over batch and
    tokens. If these are two axes, XLA on a CPU copies the larger operand into another order first,
    and takes a slower product. A step of MiniLM (32 x 64 tokens, 2 cores) takes a fifth less time
    with merged axes, and again a seventh less with `_product`'s derivative.

    Products of bfloat16 with sums in float32 are what XLA on a CPU leaves to the processor's matrix
    unit, if there is one. Here that is done for inputs of bfloat16, and for others if `precision`,
    or else JAX's setting `jax_default_matmul_precision`, is "BF16_BF16_F32", which XLA itself
    takes for float32 on a CPU. These products have no derivative in forward mode: JAX refuses it.

    Merged are inputs [..., *contracted] and a kernel [*contracted, ...]. Products of another form
    go to `jax.lax.dot_general` as they are.
    """
    (lhs_axes, rhs_axes), batch_axes = dimension_numbers
    kept, count = lhs.ndim - len(lhs_axes), len(rhs_axes)
    as_of_a_layer = [*lhs_axes, *rhs_axes] == [*range(kept, lhs.ndim), *range(count)]
    if any(batch_axes) or not as_of_a_layer or not kept:
        return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type)
    outer, columns, width = lhs.shape[:kept], rhs.shape[count:], math.prod(rhs.shape[:count])
    rows, kernel = lhs.reshape(math.prod(outer), width), rhs.reshape(width, math.prod(columns))
    if _in_bfloat16(rows, kernel, precision) and not spread_by_compiler():
        dtype = preferred_element_type or jnp.promote_types(rows.dtype, kernel.dtype)
        product = _bfloat16_product(rows, kernel, dtype)
    else:
        product = _product(rows, kernel, precision, preferred_element_type)
    return product.reshape(outer + columns)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _product(
    rows: Float[Array, "T K"], kernel: Float[Array, "K F"], precision: Any, dtype: Any
) -> Float[Array, "T F"]:
    return lax.dot_general(rows, kernel, _ROWS_COLUMNS, precision, dtype)


@_product.defjvp
def _product_jvp(
    precision: Any, dtype: Any, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Backwards, the kernel's gradient is a product of two matrices as they lie in memory."""
    (rows, kernel), (rows_tangent, kernel_tangent) = primals, tangents
    from_rows = lax.dot_general(rows_tangent, kernel, _ROWS_COLUMNS, precision, dtype)
    from_kernel = _by_kernel(rows, kernel_tangent, precision, dtype)
    return _product(rows, kernel, precision, dtype), from_rows + from_kernel


@functools.partial(jax.jit, static_argnums=(2, 3))  # traced once for all layers of a shape
def _by_kernel(
    rows: Float[Array, "T K"], kernel: Float[Array, "K F"], precision: Any, dtype: Any
) -> Float[Array, "T F"]:
    """The product whose derivative by the kernel is taken.

    The gradient contracts over the rows, T, so that one of two matrices has to be transposed first:
    on a CPU the narrower one, behind a barrier, without which XLA folds the transpose into a slower
    product.
    """

    def on_cpu(rows: Array, kernel: Array) -> Array:
        if kernel.shape[0] <= kernel.shape[1]:
            columns = lax.optimization_barrier(rows.T)
            return lax.dot_general(columns, kernel, _COLUMNS_COLUMNS, precision, dtype)
        transposed = lax.dot_general(kernel.T, rows, _ROWS_ROWS, precision, dtype)
        return lax.optimization_barrier(transposed).T

    def elsewhere(rows: Array, kernel: Array) -> Array:
        return lax.dot_general(rows, kernel, _ROWS_COLUMNS, precision, dtype)

    return by_platform(on_cpu, elsewhere, rows, kernel)


def _in_bfloat16(rows: Array, kernel: Array, precision: Any) -> bool:
    """Whether the operands are of bfloat16, or shall be rounded to it."""
    if not _PRESCRIBES_LAYOUTS:
        return False
    if precision is None:
        precision = matmul_precision()
    algorithm = getattr(precision, "name", precision)
    dtypes = {rows.dtype, kernel.dtype}
    if algorithm == _ALGORITHM:
        return dtypes <= {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    return algorithm is None and dtypes == {jnp.dtype("bfloat16")}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bfloat16_product(
    rows: Float[Array, "T K"], kernel: Float[Array, "K F"], dtype: Any
) -> Float[Array, "T F"]:
    """The product of operands rounded to bfloat16, summed in float32."""
    rounded = rows.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _summed_in_float32(*rounded, _ROWS_COLUMNS, dtype)


def _bfloat16_product_fwd(
    rows: Array, kernel: Array, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    wide = [jnp.zeros((), x.dtype) for x in (rows, kernel)]
    rows, kernel = rows.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _bfloat16_product(rows, kernel, dtype), (rows, kernel, *wide)


def _bfloat16_product_bwd(
    dtype: Any, residuals: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array]:
    rows, kernel, of_rows, of_kernel = residuals
    gradient = gradient.astype(jnp.bfloat16)
    return (
        _summed_in_float32(gradient, kernel, _ROWS_ROWS, of_rows.dtype),
        _summed_in_float32(rows, gradient, _COLUMNS_COLUMNS, of_kernel.dtype),
    )


def _summed_in_float32(lhs: Array, rhs: Array, numbers: Any, dtype: Any) -> Array:
    return by_platform(*_in_float32(numbers), lhs, rhs).astype(dtype)


@functools.cache
def _in_float32(numbers: Any) -> tuple[Any, Any]:
    """Products of bfloat16 with sums in float32: on a CPU, and elsewhere."""

    def elsewhere(lhs: Array, rhs: Array, numbers: Any = numbers) -> Array:
        return lax.dot_general(lhs, rhs, numbers, lax.Precision.DEFAULT, jnp.float32)

    def on_cpu(lhs: Array, rhs: Array) -> Array:
        if numbers != _COLUMNS_COLUMNS:
            product = elsewhere(lhs, rhs)
        else:  # as in `_by_kernel`, but only a layout keeps XLA from the transpose, no barrier
            columns = layout.with_layout_constraint(lhs.T, layout.Layout((0, 1)))
            product = elsewhere(columns, rhs, _ROWS_COLUMNS)
        # The barrier keeps XLA from a transposed product, which it could not compute.
        return lax.optimization_barrier(product)

    return on_cpu, elsewhere


_bfloat16_product.defvjp(_bfloat16_product_fwd, _bfloat16_product_bwd)
