"""What the axes of a result count, by those of the operands: a rule for each kind of equation."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from align_jax.finder import axes as ax
from align_jax.finder.axes import Axes, Factor, Kind
from align_jax.finder.value import (
    REDUCTIONS,
    Value,
    along_all,
    as_number,
    is_boolean,
    is_copy,
    lost_in,
    plain,
    without_roles,
)

_UNARY = {
    "neg", "tanh", "convert_element_type", "stop_gradient", "copy", "copy_p", "integer_pow", "abs",
    "sign", "sqrt", "rsqrt", "cbrt", "optimization_barrier", "sharding_constraint", "real", "imag",
    "name", "reduce_precision", "log", "log1p", "expm1", "erf", "erf_inv", "erfc", "cos", "sin",
    "tan", "is_finite", "not", "square", "floor", "ceil", "round", "mesh_cast", "reshard", "clamp",
    "exp", "exp2", "logistic", "lgamma", "digamma", "asinh", "acosh", "atanh", "sinh", "cosh",
    "reciprocal", "bitcast_convert_type", "pvary", "copy_to_host", "device_put",
}  # fmt: skip
_KEEP_AXES = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "reduce_precision"}


class AxisRules:
    """Knows how axes pass through equations that make no product."""

    def __init__(self) -> None:
        self._fresh = itertools.count()

    def fresh(self, size: int, kind: Kind = Kind.CONSTANT) -> ax.Axis:
        """An axis that nothing is known of but its kind."""
        return ax.whole(size, kind, ax.came_from(("made", next(self._fresh))))

    def constant(self, aval: Any, value: Any = None) -> Value:
        """What is known of a number or array that stands in the program."""
        shape = getattr(aval, "shape", ())
        single = value is not None and math.prod(shape) == 1 and not hasattr(value, "eqns")
        number = as_number(value) if single else None
        axes = tuple(ax.whole(n) if number is not None else self.fresh(n) for n in shape)
        return Value(axes, number=number, mask=is_boolean(aval) or (number is None and bool(shape)))

    def unknown(self, eqn: Any, operands: Sequence[Value]) -> list[Value]:
        """Results of what the search does not know: axes are those of an operand of that shape."""
        data = any(value.data for value in operands)
        result = Value(
            (),
            data,
            any(v.computed for v in operands),
            next((v.leaf for v in operands if v.leaf is not None), None),
            any(v.mask for v in operands),
            along_all(operands),
            lost=lost_in(operands),
        )
        results = []
        for var in eqn.outvars:
            shape = getattr(var.aval, "shape", ())
            alike = [v.axes for v in operands if ax.shape(v.axes) == shape]
            kind = Kind.UNKNOWN if data else Kind.CONSTANT
            axes = ax.merged(alike) if alike else tuple(self.fresh(n, kind) for n in shape)
            results.append(dataclasses.replace(result, axes=without_roles(axes)))
        return results

    def axes_of(
        self, name: str, eqn: Any, operands: list[Value], shape: tuple[int, ...]
    ) -> Axes | None:
        """The axes of the result; None where nothing is known of them."""
        first = operands[0].axes if operands else ()
        params = eqn.params
        if not shape and not any(v.axes for v in operands):
            return ()
        if name in _KEEP_AXES and ax.shape(first) == shape:
            return tuple(self.fresh(ax.size(axis)) if is_copy(axis) else axis for axis in first)
        if name == "transpose":
            return tuple(first[axis] for axis in params["permutation"])
        if name == "broadcast_in_dim":
            axes = [ax.whole(n) for n in shape]
            for axis, place in zip(first, params["broadcast_dimensions"], strict=True):
                if ax.size(axis) == shape[place]:
                    axes[place] = axis
            return tuple(axes)
        if name in ("reshape", "squeeze", "expand_dims"):
            kinds = {ax.kind(axis) for axis in first if axis}
            kind = kinds.pop() if len(kinds) == 1 else Kind.UNKNOWN
            return ax.regrouped(first, shape) or tuple(self.fresh(n, kind) for n in shape)
        if name in REDUCTIONS and "axes" in params:
            kept = tuple(axis for i, axis in enumerate(first) if i not in params["axes"])
            return kept if ax.shape(kept) == shape else None
        if name in ("slice", "dynamic_slice", "pad", "reduce_window_max", "reduce_window_sum",
                    "reduce_window", "reduce_window_min"):  # fmt: skip
            # The same cut of the same axis gives the same tokens.
            names = ("start_indices", "limit_indices", "strides", "padding_config")
            cuts = [params[key] for key in names if params.get(key) is not None]
            if name == "dynamic_slice":
                cuts = [[next(self._fresh)] * len(shape)]
            return self.resized(first, shape, lambda i: (name, *(cut[i] for cut in cuts)))
        if name == "dynamic_update_slice":
            return self.written(first, dict(enumerate(operands[1].axes)))
        if name.startswith("scatter"):
            numbers = params["dimension_numbers"]
            batching = tuple(getattr(numbers, "operand_batching_dims", ()))
            inserted = {*numbers.inserted_window_dims, *batching}
            window = [i for i in range(len(shape)) if i not in inserted]
            update = operands[2].axes
            pairs = zip(window, numbers.update_window_dims, strict=True)
            return self.written(first, {i: update[j] for i, j in pairs})
        if name == "rev":
            return tuple(
                ax.resized(axis, ax.size(axis), ("rev",)) if i in params["dimensions"] else axis
                for i, axis in enumerate(first)
            )
        if name == "concatenate":
            return self.concatenated([v.axes for v in operands], params["dimension"])
        if name == "stack":
            place = params["axis"] % len(shape)
            parts = [(*v.axes[:place], (), *v.axes[place:]) for v in operands]
            return self.concatenated(parts, place)
        if name == "tile":
            lead = ((),) * (len(shape) - len(first))
            return self.resized((*lead, *first), shape, lambda i: ("tile",))
        if name == "gather":
            return self.gathered(eqn, operands, shape)
        if name == "conv_general_dilated":
            return self.convolved(eqn, operands, shape)
        if name == "iota":
            changing = params["dimension"]
            return tuple(
                self.fresh(n) if i == changing else ax.whole(n) for i, n in enumerate(shape)
            )
        stretched = [ax.spread(v.axes, shape) for v in operands if v.axes]
        if stretched and None not in stretched and (name in _UNARY or len(operands) > 1):
            return ax.merged([axes for axes in stretched if axes])  # entry by entry
        return None

    def resized(self, axes: Axes, shape: Sequence[int], how: Callable[[int], Hashable]) -> Axes:
        """The axes after some got another size; `how` says of each by its number what was done."""
        return tuple(
            axis if ax.size(axis) == size else ax.resized(axis, size, how(i))
            for i, (axis, size) in enumerate(zip(axes, shape, strict=True))
        )

    def written(self, target: Axes, update: dict[int, ax.Axis]) -> Axes:
        """The axes of an array into which another was written: it may change along all of them."""
        axes = []
        for i, axis in enumerate(target):
            new, size = update.get(i, ()), ax.size(axis)
            if ax.kind(new) > ax.kind(axis):
                axes.append(new if ax.size(new) == size else ax.resized(new, size, ("written",)))
            else:
                axes.append(self.fresh(size) if is_copy(axis) else axis)
        return tuple(axes)

    def concatenated(self, alternatives: Sequence[Axes], dimension: int) -> Axes:
        """The axes of arrays that are joined."""
        parts = [axes[dimension] for axes in alternatives]
        believed = max(ax.kind(part) for part in parts)
        roles = list({f.role for part in parts for f in part if f.role})
        joined: ax.Axis = (
            Factor(
                sum(ax.size(part) for part in parts),
                believed,
                ax.came_from("joined", *parts),
                role=roles[0] if len(roles) == 1 else None,
            ),
        )
        merged = ax.merged([
            (*axes[:dimension], (), *axes[dimension + 1 :]) for axes in alternatives
        ])  # fmt: skip
        return (*merged[:dimension], joined, *merged[dimension + 1 :])

    def gathered(self, eqn: Any, operands: list[Value], shape: tuple[int, ...]) -> Axes:
        """The axes of what is looked up."""
        numbers = eqn.params["dimension_numbers"]
        table, indices = operands[0].axes, operands[1].axes
        batching = tuple(getattr(numbers, "operand_batching_dims", ()))
        gone = {*numbers.collapsed_slice_dims, *batching}
        cut = self.resized(
            table, eqn.params["slice_sizes"], lambda _: ("gather", next(self._fresh))
        )
        kept = iter([axis for i, axis in enumerate(cut) if i not in gone])
        # Where an axis is read by numbers, what counts the numbers counts entries of that axis.
        read = [table[i] for i in numbers.start_index_map if i in gone]
        believed = max((ax.kind(axis) for axis in read), default=Kind.CONSTANT)
        looked_up = iter([
            axis if ax.kind(axis) >= believed else self.fresh(ax.size(axis), believed)
            for axis in indices[:-1]
        ])  # fmt: skip
        offsets = set(numbers.offset_dims)
        return tuple(next(kept) if i in offsets else next(looked_up) for i in range(len(shape)))

    def convolved(self, eqn: Any, operands: list[Value], shape: tuple[int, ...]) -> Axes:
        """The axes after a convolution."""
        numbers = eqn.params["dimension_numbers"]
        image, kernel = operands[0].axes, operands[1].axes
        before = [image[numbers.lhs_spec[0]], kernel[numbers.rhs_spec[0]]]
        before += [image[source] for source in numbers.lhs_spec[2:]]
        axes = [before[numbers.out_spec.index(place)] for place in range(len(shape))]
        return self.resized(tuple(axes), shape, lambda i: ("convolution", shape[i]))

    def several(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """The results of an equation that has several."""
        name = eqn.primitive.name
        if name == "split":
            value, axis = operands[0], eqn.params["axis"]
            lead, cut, rest = value.axes[:axis], value.axes[axis], value.axes[axis + 1 :]
            starts = itertools.accumulate((0, *eqn.params["sizes"]))
            parts = zip(eqn.params["sizes"], starts, strict=False)
            pieces = [ax.resized(cut, size, ("slice", start)) for size, start in parts]
            return [
                dataclasses.replace(value, outer=None, axes=(*lead, piece, *rest))
                for piece in pieces
            ]
        if name == "unstack":
            value, place = operands[0], eqn.params["axis"]
            axes = (*value.axes[:place], *value.axes[place + 1 :])
            return [dataclasses.replace(value, outer=None, axes=axes)] * len(eqn.outvars)
        if name == "optimization_barrier":
            return operands
        if name in ("sort", "top_k"):
            data = any(v.data for v in operands)
            sources = operands if len(operands) == len(eqn.outvars) else operands[:1] * 2
            results = []
            for value, var in zip(sources, eqn.outvars, strict=True):
                axes = self.resized(value.axes, var.aval.shape, lambda _: (name,))
                results.append(dataclasses.replace(plain(value), data=data, axes=axes))
            return results
        return self.unknown(eqn, operands)
