"""Finds the attentions of a traced program: a jaxpr in, a list of sites out.

An attention is a product of queries and keys whose exponential (or sigmoid) is summed over the keys
with something else as weights. The search follows, through every equation, what each axis counts
(`align_jax.finder.axes`) and which arrays are the logits of which product.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from align_jax.finder import axes as ax
from align_jax.finder import program
from align_jax.finder.axes import LEFT, RIGHT, SHARED, Axes, Factor, Kind, Role
from align_jax.finder.program import Ref
from align_jax.finder.site import BLOCKED, Mask, Operand, Part, Site, Steps

# Kernels that a jaxpr cannot be looked into, but that take queries, keys and values as operands:
# JAX's own for TPU and GPU, and cuDNN's. Batch, heads, tokens and features in their order.
KERNELS = {
    "flash_attention": "BHND",
    "_flash_attention": "BHND",
    "_splash_attention": "BHND",
    "mha": "BNHD",
    "dot_product_attention_fwd": "BNHD",
    "dot_product_attention_fwd_wrapper": "BNHD",
    "dot_product_attention_fp8_fwd_wrapper": "BNHD",
}
# What no search can look into.
OPAQUE = (
    "pallas_call", "custom_call", "ffi_call", "tpu_custom_call", "triton_kernel_call",
    "mosaic_gpu_custom_call", "pure_callback", "io_callback",
)  # fmt: skip

_EXPONENTIALS = ("exp", "exp2", "logistic")
_UNARY = {
    "neg", "tanh", "convert_element_type", "stop_gradient", "copy", "copy_p", "integer_pow", "abs",
    "sign", "sqrt", "rsqrt", "cbrt", "optimization_barrier", "sharding_constraint", "real", "imag",
    "name", "reduce_precision", "log", "log1p", "expm1", "erf", "erf_inv", "erfc", "cos", "sin",
    "tan", "is_finite", "not", "square", "floor", "ceil", "round", "mesh_cast", "reshard", "clamp",
    "exp", "exp2", "logistic", "lgamma", "digamma", "asinh", "acosh", "atanh", "sinh", "cosh",
    "reciprocal", "bitcast_convert_type", "rev", "pvary", "copy_to_host", "device_put",
}  # fmt: skip
_KEEP_AXES = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "reduce_precision"}
_REDUCTIONS = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
    "reduce_xor", "argmax", "argmin", "reduce",
}  # fmt: skip
# What a number can be computed with, to follow the scale of queries.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "neg": np.negative, "mul": np.multiply,
    "div": np.divide, "add": np.add, "sub": np.subtract, "pow": np.power, "max": np.maximum,
    "min": np.minimum, "square": np.square, "log": np.log, "exp": np.exp,
}  # fmt: skip
_SAME_NUMBER = {
    "convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy",
    "copy_p", "stop_gradient", "device_put", "transpose", "reduce_precision",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Input:
    """What is known of an input of the program.

    Attributes:
      data: True for data, False for parameters, keys of random numbers and other state.
      path: of a parameter, its names from the root down.
    """

    data: bool
    path: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Missed:
    """An attention, or what may be one, that cannot be aligned, and why."""

    name: str
    reason: str
    opaque: bool = False


@dataclasses.dataclass
class Found:
    """What a search found: `sites` to align, and what it `missed`."""

    sites: list[Site]
    missed: list[Missed]


@dataclasses.dataclass(frozen=True)
class _Score:
    """An array made of the logits of a product.

    Attributes:
      product: its number.
      stage: "logits", "largest" (over keys), "weights" (their exponentials), or "sum" (of those).
      normalized: of weights, whether they were divided by something.
      weighted: whether the weights were multiplied with values, so that a sum over keys reads out.
    """

    product: int
    stage: str = "logits"
    normalized: bool = False
    weighted: bool = False


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of an array in the program.

    Attributes:
      axes: what they count.
      data: whether it depends on data.
      computed: whether it is the product of something, not a parameter as it is.
      leaf: number of the input of the parameter that it was last multiplied with, or is.
      mask: whether it depends on something that is true or false.
      along: the data axes of which an enclosing scan shows a step at a time.
      scale: what it was multiplied by, since it was last anything else.
      number: its value, where that is known.
      score: if it is made of logits, of which.
      outer: if it is the product of two arrays, entry by entry, those.
    """

    axes: Axes
    data: bool = False
    computed: bool = False
    leaf: int | None = None
    mask: bool = False
    along: frozenset[Hashable] = frozenset()
    scale: float = 1.0
    number: float | None = None
    score: _Score | None = None
    outer: tuple[tuple[Ref, "_Value"], tuple[Ref, "_Value"]] | None = None

    @property
    def raw(self) -> bool:
        """Whether it is a parameter, at most cast, reshaped or copied."""
        return not self.data and not self.computed


@dataclasses.dataclass
class _Product:
    """A product that may be one of queries and keys."""

    left: tuple[Ref, _Value]
    right: tuple[Ref, _Value]
    operands: tuple[Operand, Operand]
    factors: dict[int, tuple[str, Factor, Factor]]  # by number: side, on the left, on the right
    names: str
    masks: list[Mask]
    scans: tuple["_Scan", ...]
    keys: frozenset[int] | None = None
    problem: str = ""

    def add(self, mask: Mask) -> None:
        """Notes a mask, once."""
        if mask not in self.masks:
            self.masks.append(mask)


@dataclasses.dataclass(frozen=True)
class _Scan:
    length: int
    own_parameters: bool
    data: frozenset[Hashable]  # the factors of data axes of which each step sees one entry


def find(jaxpr: Any, inputs: Sequence[Input]) -> Found:
    """Finds the attentions of a program.

    Args:
      jaxpr: of `jax.make_jaxpr`.
      inputs: one for each of its input variables.
    """
    finder = _Search(inputs)
    opened, constants = program.opened(jaxpr)
    values = [finder.input_value(var.aval, number) for number, var in enumerate(opened.invars)]
    finder.walk(opened, constants, values, (), "")
    return finder.found()


class _Search:
    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = inputs
        self.products: list[_Product] = []
        self.kernels: list[tuple[int, Site]] = []
        self.missed: list[Missed] = []
        self.hits: list[int | Site] = []
        self.scans: tuple[_Scan, ...] = ()
        self._fresh = itertools.count()

    # ------------------------------------------------------------------ values

    def input_value(self, aval: Any, number: int) -> _Value:
        data = self.inputs[number].data
        axes = []
        for axis, size in enumerate(getattr(aval, "shape", ())):
            kind = Kind.DATA if data else Kind.PARAMETER
            floating = data and np.issubdtype(np.dtype(aval.dtype), np.inexact) if data else False
            if floating and aval.ndim > 1 and axis == aval.ndim - 1:
                kind = Kind.FEATURE
            axes.append(ax.whole(size, kind, ("input", number, axis)))
        boolean = getattr(aval, "dtype", None) == np.dtype(bool)
        return _Value(tuple(axes), data, leaf=None if data else number, mask=boolean)

    def constant(self, aval: Any, value: Any = None) -> _Value:
        shape = getattr(aval, "shape", ())
        number = None
        if value is not None and math.prod(shape) == 1 and not hasattr(value, "eqns"):
            number = _as_number(value)
        axes = tuple(ax.whole(n) if number is not None else self.fresh(n) for n in shape)
        boolean = getattr(aval, "dtype", None) == np.dtype(bool)
        return _Value(axes, number=number, mask=boolean)

    def fresh(self, size: int, kind: Kind = Kind.CONSTANT) -> ax.Axis:
        return ax.whole(size, kind, ("made", next(self._fresh)))

    # -------------------------------------------------------------------- walk

    def walk(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        values: Sequence[_Value],
        path: tuple[int, ...],
        names: str,
    ) -> list[_Value]:
        """Follows a program; returns what is known of its results."""
        known: dict[Any, _Value] = {}

        def read(atom: Any) -> _Value:
            if program.is_literal(atom):
                return self.constant(atom.aval, atom.val)
            return known[atom]

        for var, value in zip(jaxpr.constvars, constants, strict=False):
            known[var] = self.constant(var.aval, value)
        for var, value in zip(jaxpr.invars, values, strict=True):
            known[var] = value
        for number, eqn in enumerate(jaxpr.eqns):
            here = str(eqn.source_info.name_stack)
            inside = "/".join(part for part in (names, here) if part)
            operands = [read(atom) for atom in eqn.invars]
            results = self.equation(eqn, operands, path, number, inside)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(
        self, eqn: Any, operands: list[_Value], path: tuple[int, ...], number: int, names: str
    ) -> list[_Value]:
        name = eqn.primitive.name
        if self.kernel(eqn, operands, path, names):
            return self.unknown(eqn, operands)
        held = program.inner(eqn)
        deeper = (*path, number)
        if name in program.CALLS and held is not None:
            inner, constants = held
            # A custom rule may have more operands than the program has inputs.
            operands = operands[len(operands) - len(inner.invars) :]
            return self.walk(inner, constants, operands, deeper, names)
        if name == "scan":
            return self.scan(eqn, operands, deeper, names)
        if name in ("while", "cond"):
            return self.branches(eqn, operands, deeper, names)
        if name == "shard_map" and held is not None:
            with _Refused(self, "inside shard_map, where each device sees its own tokens"):
                self.walk(*held, self.unknown_inputs(held[0], operands), deeper, names)
            return self.unknown(eqn, operands)
        if name in OPAQUE or (held is not None and name not in program.CALLS):
            if any(value.data and len(value.axes) > 2 for value in operands):
                called = _kernel_name(eqn) or name
                self.missed.append(
                    Missed(self.name(operands, names), f"{called} cannot be looked into", True)
                )
            return self.unknown(eqn, operands)
        if name == "dot_general":
            return [self.dot_general(eqn, operands, path, names)]
        if len(eqn.outvars) == 1:
            return [self.simple(eqn, operands, path, names)]
        return self.several(eqn, operands)

    def unknown_inputs(self, jaxpr: Any, operands: Sequence[_Value]) -> list[_Value]:
        """Operands of which a program sees a part: shapes of its own, the rest as known."""
        return [
            value
            if ax.shape(value.axes) == var.aval.shape
            else dataclasses.replace(
                value,
                axes=tuple(
                    ax.resized(axis, size, ("shard", i))
                    for i, (axis, size) in enumerate(zip(value.axes, var.aval.shape, strict=True))
                ),
            )
            for var, value in zip(jaxpr.invars, operands, strict=True)
        ]

    def unknown(self, eqn: Any, operands: Sequence[_Value]) -> list[_Value]:
        """Results of what the search does not know: axes are those of an operand of that shape."""
        data = any(value.data for value in operands)
        leaf = next((v.leaf for v in operands if v.leaf is not None), None)
        results = []
        for var in eqn.outvars:
            shape = getattr(var.aval, "shape", ())
            alike = [v.axes for v in operands if ax.shape(v.axes) == shape]
            kind = Kind.UNKNOWN if data else Kind.CONSTANT
            axes = ax.merged(alike) if alike else tuple(self.fresh(n, kind) for n in shape)
            results.append(
                _Value(
                    _without_roles(axes),
                    data,
                    True,
                    leaf,
                    any(v.mask for v in operands),
                    _along(operands),
                )  # fmt: skip
            )
        return results

    # ----------------------------------------------------------- control flow

    def scan(
        self, eqn: Any, operands: list[_Value], path: tuple[int, ...], names: str
    ) -> list[_Value]:
        jaxpr, constants = program.opened(eqn.params["jaxpr"])
        shared, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        length = eqn.params["length"]
        steps = []
        scanned: ax.Axis = ()
        own_parameters = False
        for value, var in zip(
            operands[shared + carried :], eqn.invars[shared + carried :], strict=True
        ):
            along = value.along
            if value.data:
                scanned = scanned or value.axes[0]
                along |= {factor.identity for factor in value.axes[0] if factor.origin is not None}
            else:
                own_parameters |= np.issubdtype(_dtype(var.aval), np.inexact)
            steps.append(dataclasses.replace(_plain(value), axes=value.axes[1:], along=along))
        start = [_plain(value) for value in operands[: shared + carried]]
        before = self.state()
        outer = self.scans
        shown = frozenset(factor.identity for factor in scanned)
        self.scans = (*outer, _Scan(length, own_parameters, shown))
        for _ in range(8):  # until what is carried is known: each pass can only add
            self.restore(before)
            results = self.walk(jaxpr, constants, [*start, *steps], path, names)
            carry = [
                _carried(old, new)
                for old, new in zip(start[shared:], results[:carried], strict=True)
            ]
            if all(map(_alike, carry, start[shared:])):
                break
            start = [*start[:shared], *carry]
        self.scans = outer
        for value in results[:carried]:
            if value.score is not None and value.score.product >= before[0]:
                self.chunked(value.score, names)
        lead = scanned or self.fresh(length, Kind.PARAMETER)
        along = {factor.identity for factor in lead}
        outputs = [
            dataclasses.replace(
                _plain(value),
                axes=(ax.resized(lead, length, "scan") if ax.size(lead) != length else lead,
                      *value.axes),
                along=value.along - along,
            )
            for value in results[carried:]
        ]  # fmt: skip
        return [*carry, *outputs]

    def chunked(self, score: _Score, names: str) -> None:
        """What was made of logits is carried from step to step: a softmax over chunks of keys."""
        reason = "its keys come in chunks, one step of a scan at a time"
        product = self.products[score.product]
        made = product.left[1].data and product.right[1].data and score.stage != "logits"
        if not product.problem and made and score.product not in self.hits:
            values = [product.left[1], product.right[1]]
            self.missed.append(Missed(self.name(values, names), reason))
        product.problem = product.problem or reason

    def branches(
        self, eqn: Any, operands: list[_Value], path: tuple[int, ...], names: str
    ) -> list[_Value]:
        """A loop of unknown length, or a choice between programs."""
        if eqn.primitive.name == "cond":
            programs, arguments = eqn.params["branches"], operands[1:]
            reason = "inside lax.cond, where only one branch runs"
        else:
            programs = [eqn.params["body_jaxpr"]]
            arguments = operands[eqn.params["cond_nconsts"] :]
            reason = "inside lax.while_loop, whose number of steps is not known"
        ends = []
        with _Refused(self, reason):
            for number, jaxpr in enumerate(programs):
                opened, constants = program.opened(jaxpr)
                plain = [_plain(value) for value in arguments]
                ends.append(self.walk(opened, constants, plain, (*path, number), names))
        results = []
        for alternatives in zip(*ends, strict=True):
            first = _plain(alternatives[0])
            for other in alternatives[1:]:
                first = _carried(first, other)
            data = first.data or any(value.data for value in operands)
            results.append(dataclasses.replace(first, data=data))
        return results

    def state(self) -> tuple[int, int, int]:
        return len(self.products), len(self.missed), len(self.hits)

    def restore(self, state: tuple[int, int, int]) -> None:
        del self.products[state[0] :], self.missed[state[1] :], self.hits[state[2] :]

    # ------------------------------------------------------------- primitives

    def simple(self, eqn: Any, operands: list[_Value], path: tuple[int, ...], names: str) -> _Value:
        """The result of an equation that has one."""
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        shape = getattr(out, "shape", ())
        number = _number(name, eqn, operands)
        if number is not None and math.prod(shape) <= 1:
            return dataclasses.replace(
                self.constant(out), number=number, axes=tuple(ax.whole(n) for n in shape)
            )
        axes = self.axes_of(name, eqn, operands, shape)
        if axes is None:
            return self.unknown(eqn, operands)[0]
        value = _Value(
            axes,
            data=any(v.data for v in operands),
            computed=any(v.computed for v in operands),
            leaf=_leaf(operands),
            mask=any(v.mask for v in operands) or getattr(out, "dtype", None) == np.dtype(bool),
            along=_along(operands),
            number=number,
        )
        value = dataclasses.replace(value, scale=_scale(name, operands))
        if name == "mul":
            value = self.outer_product(value, eqn, operands, path)
        if name == "reduce_sum":
            summed = self.summed_product(eqn, operands[0], value, names)
            if summed is not None:
                return summed
        if any(v.score for v in operands):
            score = self.score(name, eqn, operands, value, path)
            value = dataclasses.replace(value, score=score)
            if score is None:
                value = dataclasses.replace(value, axes=_without_roles(value.axes))
        return value

    def axes_of(
        self, name: str, eqn: Any, operands: list[_Value], shape: tuple[int, ...]
    ) -> Axes | None:
        """The axes of the result; None where nothing is known of them."""
        first = operands[0].axes if operands else ()
        params = eqn.params
        if name in _KEEP_AXES and ax.shape(first) == shape:
            return first
        if name == "transpose":
            return tuple(first[axis] for axis in params["permutation"])
        if name == "broadcast_in_dim":
            axes = [ax.whole(n) for n in shape]
            for axis, place in zip(first, params["broadcast_dimensions"], strict=True):
                if ax.size(axis) == shape[place]:
                    axes[place] = axis
            return tuple(axes)
        if name in ("reshape", "squeeze", "expand_dims"):
            regrouped = ax.regrouped(first, shape)
            if regrouped is None:
                believed = max((ax.kind(axis) for axis in first), default=Kind.CONSTANT)
                alike = {ax.kind(axis) for axis in first if ax.size(axis) > 1} == {believed}
                return tuple(self.fresh(n, believed if alike else Kind.UNKNOWN) for n in shape)
            return regrouped
        if name in _REDUCTIONS and "axes" in params:
            gone = set(params["axes"])
            kept = tuple(axis for i, axis in enumerate(first) if i not in gone)
            return kept if ax.shape(kept) == shape else None
        if name in ("slice", "dynamic_slice", "pad", "reduce_window_max", "reduce_window_sum",
                    "reduce_window", "reduce_window_min"):  # fmt: skip
            how = tuple(
                tuple(params[key]) if params.get(key) is not None else None
                for key in ("start_indices", "limit_indices", "strides", "padding_config")
                if key in params
            )
            if name == "dynamic_slice":
                how = (next(self._fresh),)
            return tuple(
                axis
                if ax.size(axis) == size
                else ax.resized(axis, size, (name, *(h[i] for h in how if isinstance(h, tuple))))
                for i, (axis, size) in enumerate(zip(first, shape, strict=True))
            )
        if name in ("dynamic_update_slice", "scatter", "scatter-add", "scatter_add"):
            if name == "dynamic_update_slice":
                update = operands[1].axes
                same = tuple(
                    new if ax.size(new) == ax.size(old) else old
                    for old, new in zip(first, update, strict=True)
                )
                return ax.merged([first, same])
            return first
        if name == "concatenate":
            return self.concatenated([v.axes for v in operands], params["dimension"])
        if name == "gather":
            return self.gathered(eqn, operands, shape)
        if name == "conv_general_dilated":
            return self.convolved(eqn, operands, shape)
        if name == "iota":
            changing = params["dimension"]
            return tuple(
                self.fresh(n) if i == changing else ax.whole(n) for i, n in enumerate(shape)
            )
        alike = [ax.spread(v.axes, shape) for v in operands if v.axes]
        if alike and None not in alike and (name in _UNARY or len(operands) > 1):
            return ax.merged(alike)  # entry by entry
        return None

    def concatenated(self, alternatives: Sequence[Axes], dimension: int) -> Axes:
        parts = [axes[dimension] for axes in alternatives]
        believed = max(ax.kind(part) for part in parts)
        origin = ("joined", tuple(tuple(f.identity for f in p) or p for p in parts))
        joined = ax.whole(sum(ax.size(part) for part in parts), believed, origin)
        merged = ax.merged([
            (*axes[:dimension], (), *axes[dimension + 1 :]) for axes in alternatives
        ])  # fmt: skip
        return (*merged[:dimension], joined, *merged[dimension + 1 :])

    def gathered(self, eqn: Any, operands: list[_Value], shape: tuple[int, ...]) -> Axes:
        numbers = eqn.params["dimension_numbers"]
        table, indices = operands[0].axes, operands[1].axes
        batching = tuple(getattr(numbers, "operand_batching_dims", ()))
        gone = {*numbers.collapsed_slice_dims, *batching}
        kept = iter([
            axis if ax.size(axis) == size else ax.resized(axis, size, ("gather",))
            for i, (axis, size) in enumerate(zip(table, eqn.params["slice_sizes"], strict=True))
            if i not in gone
        ])  # fmt: skip
        looked_up = iter(indices[:-1])
        offsets = set(numbers.offset_dims)
        return tuple(next(kept) if i in offsets else next(looked_up) for i in range(len(shape)))

    def convolved(self, eqn: Any, operands: list[_Value], shape: tuple[int, ...]) -> Axes:
        numbers = eqn.params["dimension_numbers"]
        image, kernel = operands[0].axes, operands[1].axes
        axes: list[ax.Axis] = [()] * len(shape)
        axes[numbers.out_spec[0]] = image[numbers.lhs_spec[0]]
        axes[numbers.out_spec[1]] = kernel[numbers.rhs_spec[0]]
        for source, target in zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True):
            axis, size = image[source], shape[target]
            same = ax.size(axis) == size
            axes[target] = axis if same else ax.resized(axis, size, ("convolution", size))
        return tuple(axes)

    def several(self, eqn: Any, operands: list[_Value]) -> list[_Value]:
        """The results of an equation that has several."""
        name = eqn.primitive.name
        if name == "split":
            value, axis = operands[0], eqn.params["axis"]
            starts = itertools.accumulate((0, *eqn.params["sizes"]))
            return [
                dataclasses.replace(
                    _plain(value),
                    axes=(
                        *value.axes[:axis],
                        ax.resized(value.axes[axis], size, ("slice", start)),
                        *value.axes[axis + 1 :],
                    ),
                    scale=value.scale,
                )
                for start, size in zip(starts, eqn.params["sizes"], strict=False)
            ]
        if name in ("sort", "top_k", "optimization_barrier"):
            return [
                dataclasses.replace(
                    _plain(value),
                    axes=tuple(
                        axis if ax.size(axis) == n else ax.resized(axis, n, (name,))
                        for axis, n in zip(value.axes, var.aval.shape, strict=True)
                    ),
                )
                for value, var in zip(
                    operands if len(operands) == len(eqn.outvars) else operands[:1] * 2,
                    eqn.outvars,
                    strict=True,
                )
            ]
        return self.unknown(eqn, operands)

    # ---------------------------------------------------------------- products

    def dot_general(
        self, eqn: Any, operands: list[_Value], path: tuple[int, ...], names: str
    ) -> _Value:
        left, right = operands
        (sums_left, sums_right), (shared_left, shared_right) = eqn.params["dimension_numbers"]
        free_left = [i for i in range(len(left.axes)) if i not in (*sums_left, *shared_left)]
        free_right = [i for i in range(len(right.axes)) if i not in (*sums_right, *shared_right)]
        shared = [
            ax.merged([(left.axes[i],), (right.axes[j],)])[0]
            for i, j in zip(shared_left, shared_right, strict=True)
        ]
        axes = (
            *shared,
            *(left.axes[i] for i in free_left),
            *(right.axes[i] for i in free_right),
        )
        value = _Value(
            tuple(axes),
            data=left.data or right.data,
            computed=True,
            leaf=_feeding(left, right),
            mask=left.mask or right.mask,
            along=_along(operands),
        )
        read = self.read_out(eqn, operands, value)
        if read is not None:
            return read
        return self.product(
            (Ref(path, eqn.invars[0]), left),
            (Ref(path, eqn.invars[1]), right),
            list(zip(shared_left, shared_right, strict=True)),
            free_left,
            free_right,
            value,
            names,
        )

    def product(
        self,
        left: tuple[Ref, _Value],
        right: tuple[Ref, _Value],
        shared: list[tuple[int, int]],
        free_left: list[int],
        free_right: list[int],
        value: _Value,
        names: str,
        order: Sequence[tuple[str, int]] | None = None,
    ) -> _Value:
        """A product that may be one of queries and keys: notes it, and marks the result's axes."""
        l, r = left[1], right[1]
        plain = dataclasses.replace(value, axes=_without_roles(value.axes))
        if not (l.data or r.data) or (not shared and (l.raw or r.raw)):
            return plain  # the last is a layer: data with its weights
        if any(program.is_literal(ref.var) for ref, _ in (left, right)):
            return plain
        numbers = itertools.count()
        factors: dict[int, tuple[str, Factor, Factor]] = {}
        left_axes: list[ax.Axis] = [_bare(axis) for axis in l.axes]
        right_axes: list[ax.Axis] = [_bare(axis) for axis in r.axes]
        left_numbers: list[tuple[int | None, ...]] = [(None,) * len(axis) for axis in left_axes]
        right_numbers: list[tuple[int | None, ...]] = [(None,) * len(axis) for axis in right_axes]
        number_of = len(self.products)
        marked: dict[tuple[str, int], ax.Axis] = {}
        for position, (i, j) in enumerate(shared):
            pair = ax.common(left_axes[i], right_axes[j])
            if pair is None:
                whole = (ax.merged([(left_axes[i],), (right_axes[j],)])[0],) * 2
                if len(whole[0]) != 1:
                    size = ax.size(whole[0])
                    whole = (self.fresh(size, Kind.UNKNOWN),) * 2
                pair = whole
            left_axes[i], right_axes[j] = pair
            taken = tuple(next(numbers) for _ in pair[0])
            left_numbers[i] = right_numbers[j] = taken
            result = []
            for n, a, b in zip(taken, *pair, strict=True):
                factors[n] = (SHARED, a, b)
                best = a if (a.kind, a.origin is not None) >= (b.kind, b.origin is not None) else b
                result.append(dataclasses.replace(best, role=Role(number_of, SHARED, n)))
            marked[SHARED, position] = tuple(result)
        for side, free, all_axes, all_numbers in (
            (LEFT, free_left, left_axes, left_numbers),
            (RIGHT, free_right, right_axes, right_numbers),
        ):
            for position, i in enumerate(free):
                taken = tuple(next(numbers) for _ in all_axes[i])
                all_numbers[i] = taken
                for n, factor in zip(taken, all_axes[i], strict=True):
                    factors[n] = (side, factor, factor)
                marked[side, position] = tuple(
                    dataclasses.replace(factor, role=Role(number_of, side, n))
                    for n, factor in zip(taken, all_axes[i], strict=True)
                )
        self.products.append(
            _Product(
                left,
                right,
                (
                    Operand(left[0], tuple(left_axes), tuple(left_numbers), l.scale),
                    Operand(right[0], tuple(right_axes), tuple(right_numbers), r.scale),
                ),
                factors,
                names,
                [],
                self.scans,
            )
        )
        if order is None:
            order = [
                *((SHARED, i) for i in range(len(shared))),
                *((LEFT, i) for i in range(len(free_left))),
                *((RIGHT, i) for i in range(len(free_right))),
            ]
        return dataclasses.replace(
            value, axes=tuple(marked[place] for place in order), score=_Score(number_of)
        )

    def outer_product(
        self, value: _Value, eqn: Any, operands: list[_Value], path: tuple[int, ...]
    ) -> _Value:
        """Notes a product, entry by entry, whose sum may be one of queries and keys."""
        left, right = operands
        if value.number is not None or any(v.number is not None or v.score for v in operands):
            return value
        shape = ax.shape(value.axes)
        if not (left.data or right.data) or not (left.axes and right.axes):
            return value
        left, right = (
            dataclasses.replace(v, axes=ax.spread(v.axes, shape) or v.axes) for v in operands
        )
        copies = [tuple(_is_copy(axis) for axis in v.axes) for v in (left, right)]
        if not any(a and not b for a, b in zip(*copies, strict=True)) and not any(
            b and not a for a, b in zip(*copies, strict=True)
        ):
            return value
        refs = [Ref(path, atom) for atom in eqn.invars]
        return dataclasses.replace(value, outer=((refs[0], _plain(left)), (refs[1], _plain(right))))

    def summed_product(self, eqn: Any, value: _Value, result: _Value, names: str) -> _Value | None:
        """The sum of a product, entry by entry: as `dot_general` would have it."""
        if value.score is not None and value.score.weighted:
            return self.hit(value, [value.axes[i] for i in eqn.params["axes"]], result)
        if value.outer is None:
            return None
        left, right = value.outer
        shared, free_left, free_right, order = [], [], [], []
        for i, (a, b) in enumerate(zip(left[1].axes, right[1].axes, strict=True)):
            if i in eqn.params["axes"]:
                if _is_copy(a) or _is_copy(b):
                    return None
            elif _is_copy(a) and not _is_copy(b):
                order.append((RIGHT, len(free_right)))
                free_right.append(i)
            elif _is_copy(b) and not _is_copy(a):
                order.append((LEFT, len(free_left)))
                free_left.append(i)
            else:
                order.append((SHARED, len(shared)))
                shared.append((i, i))
        if not (free_left and free_right):
            return None
        left, right = (
            (ref, dataclasses.replace(v, axes=tuple(
                () if i in others else axis for i, axis in enumerate(v.axes)
            )))
            for (ref, v), others in ((left, free_right), (right, free_left))
        )  # fmt: skip
        result = dataclasses.replace(result, computed=True, leaf=_feeding(left[1], right[1]))
        return self.product(left, right, shared, free_left, free_right, result, names, order)

    # ------------------------------------------------------------------ scores

    def score(
        self, name: str, eqn: Any, operands: list[_Value], value: _Value, path: tuple[int, ...]
    ) -> _Score | None:
        """What an equation makes of logits; None where they are lost."""
        scored = [(i, v.score) for i, v in enumerate(operands) if v.score is not None]
        place, score = scored[0]
        if len(operands) > 1 and ax.spread(operands[place].axes, ax.shape(value.axes)):
            spread = [
                dataclasses.replace(v, axes=ax.spread(v.axes, ax.shape(value.axes)) or v.axes)
                for v in operands
            ]
            return self.combined(name, eqn, spread, scored, path)
        if name in _EXPONENTIALS:
            if score.stage != "logits":
                return score if score.stage == "largest" else None
            return dataclasses.replace(score, stage="weights", normalized=name == "logistic")
        if name in ("reduce_max", "argmax"):
            return dataclasses.replace(score, stage="largest") if score.stage == "logits" else None
        if name == "reduce_sum":
            summed = [operands[0].axes[i] for i in eqn.params["axes"]]
            if score.stage == "weights" and any(f.role and f.role.side != SHARED
                                                for axis in summed for f in axis):  # fmt: skip
                return dataclasses.replace(score, stage="sum")
            return score
        if name in _REDUCTIONS:
            return None
        return score

    def combined(
        self,
        name: str,
        eqn: Any,
        operands: list[_Value],
        scored: list[tuple[int, _Score]],
        path: tuple[int, ...],
    ) -> _Score | None:
        """Logits, or what was made of them, with another array, entry by entry."""
        weights = [(i, s) for i, s in scored if s.stage == "weights"]
        main = weights or [(i, s) for i, s in scored if s.stage == "logits"]
        if not main:
            return scored[0][1]
        place, score = main[0]
        if len({s.product for _, s in main}) > 1:
            # Scores of content and of position: those of queries and keys are products of data.
            both = [
                (i, s)
                for i, s in main
                if self.products[s.product].left[1].data and self.products[s.product].right[1].data
            ]
            place, score = (both or main)[0]
            return score
        if len(main) > 1:
            return score
        others = [
            i
            for i in range(len(operands))
            if i not in {i for i, s in scored if s.product == score.product}
        ]
        product = self.products[score.product]
        axes = operands[place].axes

        def mask(i: int, kind: str, other: int | None = None) -> None:
            value = operands[i]
            if program.is_literal(eqn.invars[i]) or ax.shape(value.axes) != ax.shape(axes):
                return
            constant = tuple(_is_copy(axis) for axis in value.axes)
            seen = None if other is None else Ref(path, eqn.invars[other])
            product.add(Mask(Ref(path, eqn.invars[i]), kind, axes, constant, seen))

        if score.stage == "logits":
            if name == "select_n" and len(operands) == 3 and place > 0:
                other = 3 - place
                known = operands[other].number
                if known is None or known <= BLOCKED:
                    literal = program.is_literal(eqn.invars[other])
                    unsure = other if known is None and not literal else None
                    mask(0, "keep" if place == 2 else "block", unsure)
            elif name in ("add", "sub", "add_any") and others:
                bias = operands[others[0]]
                if bias.mask or bias.data:
                    mask(others[0], "bias")
            return score
        if not score.normalized:
            if name == "select_n" and len(operands) == 3 and place > 0:
                if operands[3 - place].number == 0:
                    mask(0, "keep" if place == 2 else "block")
            elif name == "mul" and others and operands[others[0]].mask:
                mask(others[0], "factor")
        if name == "div":
            return dataclasses.replace(score, normalized=True)
        if name == "mul":
            if any(s.stage == "sum" for _, s in scored):
                return dataclasses.replace(score, normalized=True)
            for i in others:
                gains = any(
                    _is_copy(axes[n]) and not _is_copy(axis)
                    for n, axis in enumerate(operands[i].axes)
                )
                if gains:
                    return dataclasses.replace(score, weighted=True)
        return score

    def read_out(self, eqn: Any, operands: list[_Value], value: _Value) -> _Value | None:
        """A product with weights: over the keys, it is what makes an attention of them."""
        dimensions = eqn.params["dimension_numbers"][0]
        for value_in, sums in zip(operands, dimensions, strict=True):
            score = value_in.score
            if score is None or score.stage not in ("logits", "weights"):
                continue
            summed = [value_in.axes[i] for i in sums]
            roles = [factor.role for axis in summed for factor in axis]
            other = operands[1] if value_in is operands[0] else operands[0]
            heads = {role is None or role.side == SHARED for role in roles}
            if heads == {True} and any(roles) and not other.data:
                return dataclasses.replace(value, score=score)  # mixes or weighs heads
            if score.stage == "weights":
                return self.hit(value_in, summed, value)
        return None

    def hit(self, weights: _Value, summed: Sequence[ax.Axis], result: _Value) -> _Value:
        """Weights were summed over some axes, together with values."""
        result = dataclasses.replace(result, axes=_without_roles(result.axes), outer=None)
        score = weights.score
        assert score is not None
        product = self.products[score.product]
        roles = [factor.role for axis in summed for factor in axis if factor.role]
        sides = {role.side for role in roles if role.side != SHARED}
        if len(sides) != 1:
            return result
        (side,) = sides
        queries, keys = (
            (product.left, product.right) if side == RIGHT else (product.right, product.left)
        )
        if not keys[1].data or not self.asks(queries[1], product, side):
            return result
        product.keys = frozenset(role.number for role in roles if role.side == side)
        if score.product not in self.hits:
            self.hits.append(score.product)
        return result

    def asks(self, queries: _Value, product: _Product, key_side: str) -> bool:
        """Whether what the keys are multiplied with is queries, and not the weights of a layer.

        A parameter asks if it is several queries for every head; one vector for each head is what
        layers and graph attention have.
        """
        if queries.data or queries.computed:
            return True
        asked = [
            factor.size
            for side, factor, _ in product.factors.values()
            if side not in (SHARED, key_side)
        ]
        shared = any(side == SHARED for side, _, _ in product.factors.values())
        return shared and math.prod(asked) > 1

    # ----------------------------------------------------------------- kernels

    def kernel(self, eqn: Any, operands: list[_Value], path: tuple[int, ...], names: str) -> bool:
        """Whether the equation calls an attention kernel that is known; notes it as a site."""
        called = _kernel_name(eqn) or eqn.primitive.name
        layout = KERNELS.get(called)
        if layout is None:
            return False
        arrays = [
            i
            for i, (atom, value) in enumerate(zip(eqn.invars, operands, strict=True))
            if len(value.axes) in (3, 4) and np.issubdtype(_dtype(atom.aval), np.inexact)
        ]
        if len(arrays) < 3:
            return False
        refs = [(Ref(path, eqn.invars[i]), operands[i]) for i in arrays[:2]]
        layout = layout[-len(refs[0][1].axes) :]
        parts = {"B": 0, "H": 1, "N": 2}
        sites = []
        for tokens, (ref, value) in zip((2, 3), refs, strict=True):
            numbers = tuple(
                (None if letter == "D" else tokens if letter == "N" else parts[letter],)
                for letter in layout
            )
            axes = tuple(
                (Factor(n, origin=("kernel", i)),) for i, n in enumerate(ax.shape(value.axes))
            )
            sites.append(Operand(ref, axes, numbers, value.scale))
        heads = [value.axes[layout.index("H")] for _, value in refs]
        masks: tuple[Mask, ...] = ()
        if called.startswith("dot_product_attention") and len(operands) > 3:
            bias = operands[3]
            if len(bias.axes) == 4 and all(ax.shape(bias.axes)):
                roles = [
                    (Factor(n, role=Role(-1, SHARED, i)),)
                    for i, n in enumerate(ax.shape(bias.axes))
                ]
                masks = (Mask(Ref(path, eqn.invars[3]), "bias", tuple(roles), (False,) * 4),)
        if ax.size(heads[0]) != ax.size(heads[1]):
            sites = [_grouped(site, layout, ax.size(heads[1])) for site in sites]
        tokens_of = [value.axes[layout.index("N")] for _, value in refs]
        kinds = {0: Part.SAMPLE, 1: Part.HEAD, 2: Part.QUERY, 3: Part.KEY, 4: Part.GROUP}
        self.hits.append(
            Site(
                self.name([v for _, v in refs], names),
                *sites,
                parts=kinds,
                order={n: n for n in kinds},
                masks=masks,
                self_attention=_identities(tokens_of[0]) == _identities(tokens_of[1]),
                calls=tuple(v.leaf for _, v in refs),
                scans=_scans(self.scans, refs[0][1]),
                kernel=called,
            )
        )
        return True

    # ------------------------------------------------------------------ results

    def found(self) -> Found:
        sites: list[Site] = []
        missed = list(self.missed)
        for hit in self.hits:
            if isinstance(hit, Site):
                sites.append(hit)
                continue
            product = self.products[hit]
            name = self.name([product.left[1], product.right[1]], product.names)
            made = product.problem or self.site(product, name)
            if isinstance(made, str):
                missed.append(Missed(name, made))
            else:
                sites.append(made)
        return Found(sites, missed)

    def site(self, product: _Product, name: str) -> Site | str:
        """The attention of a product; or why it cannot be aligned."""
        assert product.keys is not None
        key_side = next(product.factors[n][0] for n in product.keys)
        left_is_key = key_side == LEFT
        query, key = reversed(product.operands) if left_is_key else product.operands
        queries, keys = (
            (product.right, product.left) if left_is_key else (product.left, product.right)
        )
        if queries[1].along != keys[1].along:
            return (
                "its queries or keys come in chunks, one step of a scan at a time, so that no step "
                "sees all of them"
            )
        parts: dict[int, Part] = {}
        order: dict[int, int] = {}
        asked = {
            n: factor
            for n, (side, factor, _) in product.factors.items()
            if side not in (SHARED, key_side)
        }
        tokens = {n for n, factor in asked.items() if factor.kind == Kind.DATA}
        if not tokens and len(asked) > 1:
            unclear = [factor.size for factor in asked.values()]
            if {factor.kind for factor in asked.values()} & {Kind.UNKNOWN}:
                return f"it is not clear which of the queries' axes {unclear} counts tokens"
            tokens = {min(asked)}
        tokens = tokens or set(asked)
        for n, (side, first, second) in product.factors.items():
            order[n] = n
            kind = max(first.kind, second.kind)
            if side == SHARED:
                if kind == Kind.UNKNOWN:
                    return (
                        f"it is not clear whether an axis of {first.size} counts samples or heads"
                    )
                parts[n] = Part.SAMPLE if kind == Kind.DATA else Part.HEAD
                best = first if first.kind >= second.kind else second
                if parts[n] == Part.SAMPLE and _first_axis(best.origin) == 0:
                    order[n] = n - len(product.factors)
            elif side == key_side:
                parts[n] = Part.KEY if n in product.keys else Part.GROUP
            else:
                parts[n] = Part.QUERY if n in tokens else Part.GROUP
        own = tuple(asked[n].identity for n in sorted(tokens))
        others = tuple(product.factors[n][1].identity for n in sorted(product.keys))
        known = all(identity[0] is not None for identity in (*own, *others))
        return Site(
            name,
            query,
            key,
            parts,
            order,
            tuple(product.masks),
            self_attention=known and bool(own) and own == others,
            calls=(queries[1].leaf, keys[1].leaf),
            scans=_scans(product.scans, queries[1]),
        )

    def name(self, values: Sequence[_Value], names: str) -> str:
        """The common path of the parameters that made these, or else the program's own names."""
        paths = [self.inputs[v.leaf].path for v in values if v.leaf is not None]
        paths = [path for path in paths if path]
        if not paths:
            return _clean(names)
        common = list(paths[0])
        for path in paths[1:]:
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(common, path))
            common = [name for name, _ in same]
        if len(set(paths)) == 1:  # one parameter for both: leave out its own name and its layer's
            common = common[:-2]
        return "/".join(common)


class _Refused:
    """What is found inside cannot be aligned, for a reason."""

    def __init__(self, search: _Search, reason: str) -> None:
        self.search, self.reason = search, reason

    def __enter__(self) -> None:
        self.before = self.search.state()

    def __exit__(self, *_: object) -> None:
        search = self.search
        for product in search.products[self.before[0] :]:
            product.problem = product.problem or self.reason
        for i, hit in enumerate(search.hits[self.before[2] :], self.before[2]):
            if isinstance(hit, Site):
                search.missed.append(Missed(hit.name, self.reason))
                search.hits[i] = -1
        search.hits = [hit for hit in search.hits if hit != -1]


def _scans(scans: Sequence[_Scan], queries: _Value) -> tuple[tuple[int, Steps], ...]:
    """The scans around an attention: what each of their steps is."""
    result = []
    for scan in scans:
        steps = Steps.LAYERS if scan.own_parameters else Steps.CALLS
        result.append((scan.length, Steps.SAMPLES if scan.data & queries.along else steps))
    return tuple(result)


def _plain(value: _Value) -> _Value:
    """Without what holds in the place alone where it was made."""
    return dataclasses.replace(
        value, axes=_without_roles(value.axes), score=None, outer=None, number=value.number
    )


def _without_roles(axes: Axes) -> Axes:
    return tuple(_bare(axis) for axis in axes)


def _bare(axis: ax.Axis) -> ax.Axis:
    if not any(factor.role for factor in axis):
        return axis
    return tuple(dataclasses.replace(factor, role=None) for factor in axis)


def _is_copy(axis: ax.Axis) -> bool:
    """Whether nothing changes along the axis."""
    return all(factor.origin is None and factor.role is None for factor in axis)


def _identities(axis: ax.Axis) -> Hashable:
    return tuple(factor.identity for factor in axis)


def _along(values: Sequence[_Value]) -> frozenset[Hashable]:
    return frozenset().union(*(value.along for value in values))


def _leaf(values: Sequence[_Value]) -> int | None:
    """The parameter that the result was last multiplied with: what depends on data has the say."""
    ordered = sorted(values, key=lambda v: (not v.data, not v.computed))
    return next((v.leaf for v in ordered if v.leaf is not None), None)


def _feeding(left: _Value, right: _Value) -> int | None:
    """The parameter of a product: that of the operand that is none of the data's."""
    for value in (right, left):
        if not value.data and value.leaf is not None:
            return value.leaf
    return left.leaf if left.leaf is not None else right.leaf


def _carried(old: _Value, new: _Value) -> _Value:
    """What is known of a value that may be either."""
    axes = []
    for a, b in zip(old.axes, _without_roles(new.axes), strict=True):
        if ax.size(a) != ax.size(b):
            a = b
        axes.append(a if ax.kind(a) >= ax.kind(b) else b)
    return dataclasses.replace(
        old,
        axes=tuple(axes),
        data=old.data or new.data,
        computed=old.computed or new.computed,
        leaf=old.leaf if old.leaf is not None else new.leaf,
        mask=old.mask or new.mask,
        along=old.along | new.along,
        scale=old.scale if old.scale == new.scale else 1.0,
        number=old.number if old.number == new.number else None,
    )


def _alike(a: _Value, b: _Value) -> bool:
    """Whether a pass over a loop has taught nothing new."""
    return (
        [ax.kind(axis) for axis in a.axes] == [ax.kind(axis) for axis in b.axes]
        and (a.data, a.computed, a.mask, a.along) == (b.data, b.computed, b.mask, b.along)
        and (a.number, a.scale) == (b.number, b.scale)
    )


def _number(name: str, eqn: Any, operands: Sequence[_Value]) -> float | None:
    """The value of the result, if it is one number that the program fixes."""
    numbers = [value.number for value in operands]
    if not numbers or any(number is None for number in numbers):
        return None
    if name in _SAME_NUMBER:
        return numbers[0]
    if name == "integer_pow":
        return float(np.power(np.float64(numbers[0]), eqn.params["y"]))
    if name in _ARITHMETIC:
        with np.errstate(all="ignore"):
            return float(_ARITHMETIC[name](*map(np.float64, numbers)))
    return None


def _scale(name: str, operands: Sequence[_Value]) -> float:
    """What the result was multiplied by, in all."""
    if name in ("mul", "div") and len(operands) == 2:
        left, right = operands
        if right.number:
            return left.scale * (right.number if name == "mul" else 1 / right.number)
        if left.number and name == "mul":
            return right.scale * left.number
        return 1.0
    structural = (
        "convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "copy", "slice",
        "broadcast_in_dim", "stop_gradient", "sharding_constraint", "name", "rev", "copy_p",
        "optimization_barrier", "reduce_precision",
    )  # fmt: skip
    return operands[0].scale if name in structural and operands else 1.0


def _as_number(value: Any) -> float | None:
    try:
        return float(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        return None


def _dtype(aval: Any) -> Any:
    """An array's type, as NumPy knows it; that of a random key is none of numbers."""
    try:
        return np.dtype(aval.dtype)
    except TypeError:
        return np.dtype(bool)


def _kernel_name(eqn: Any) -> str:
    name = eqn.params.get("name") or eqn.params.get("name_and_src_info") or ""
    return str(getattr(name, "name", name)).split(" ")[0]


def _grouped(operand: Operand, layout: str, key_heads: int) -> Operand:
    """Splits heads into those of the keys and those beyond."""
    place = layout.index("H")
    size = ax.size(operand.axes[place])
    if size == key_heads:
        return operand
    split = ax.split(operand.axes[place][0], key_heads)
    axes = (*operand.axes[:place], split, *operand.axes[place + 1 :])
    numbers = (*operand.numbers[:place], (1, 4), *operand.numbers[place + 1 :])
    return dataclasses.replace(operand, axes=axes, numbers=numbers)


def _first_axis(origin: Hashable) -> int | None:
    """The number of the axis of an input that something came from."""
    while isinstance(origin, tuple) and origin:
        if origin[0] == "input":
            return origin[2]
        nested = [part for part in origin if isinstance(part, tuple)]
        origin = nested[-1] if nested else None
        while isinstance(origin, tuple) and origin and isinstance(origin[0], tuple):
            origin = origin[0]
    return None


def _clean(names: str) -> str:
    """A path out of the names that a program carries."""
    parts = names.replace("(", "/").replace(")", "/").split("/")
    words = {"jit", "jvp", "vmap", "remat", "checkpoint", "transpose", "scan", "while", "body", ""}
    return "/".join(part for part in parts if part not in words)
