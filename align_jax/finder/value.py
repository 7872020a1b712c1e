"""What a search knows of an array in a program, and how that passes from one to the next."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from align_jax.finder import axes as ax
from align_jax.finder.axes import SHARED, Axes, Factor
from align_jax.finder.program import Ref
from align_jax.finder.site import Mask, Operand, Steps

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
_SAME_SCALE = _SAME_NUMBER - {"device_put"} | {
    "slice", "sharding_constraint", "name", "rev", "optimization_barrier", "neg",
}  # fmt: skip

EXPONENTIALS = {"exp", "exp2", "logistic"}
LOGARITHMS = {"log", "log1p"}
REDUCTIONS = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
    "reduce_xor", "argmax", "argmin", "reduce",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Score:
    """An array made of the logits of a product."""

    product: int  # its number
    # Or "largest" (over keys), "weights" (their exponentials), "sum" of those.
    stage: str = "logits"
    normalized: bool = False  # of weights, whether they were divided by something
    weighted: bool = False  # whether they were multiplied with values: a sum over keys reads out
    # Other products of whose weights these are the sum or difference, each with its numbers for the
    # factors of this one's.
    also: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of an array in the program."""

    axes: Axes
    data: bool = False  # whether it depends on data
    computed: bool = False  # whether it is the product of something, not a parameter as it is
    leaf: int | None = None  # the input, a parameter, that it was last multiplied with, or is
    # Whether it may block pairs: it depends on truth values, or an array that is in the program.
    mask: bool = False
    along: frozenset[Hashable] = frozenset()  # data axes of which a scan shows a step at a time
    scale: float = 1.0  # what it was multiplied by, since it was last anything else
    number: float | None = None  # its value, where that is known
    score: Score | None = None  # if it is made of logits, of which
    outer: tuple[tuple[Ref, "Value"], tuple[Ref, "Value"]] | None = None  # factors, by entry
    # Products of which it is made in a way that is not followed; by an exponential or not.
    lost: frozenset[tuple[int, bool]] = frozenset()
    counter: bool = False  # whether it is a whole number that an enclosing scan counts with

    @property
    def raw(self) -> bool:
        """Whether it is a parameter, at most cast, reshaped or copied."""
        return not self.data and not self.computed


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan around an equation."""

    length: int
    own_parameters: bool
    data: frozenset[Hashable]  # the factors of data axes of which each step sees one entry


class At(NamedTuple):
    """An equation, and where it stands in the program."""

    eqn: Any
    path: tuple[int, ...]  # the numbers of the equations around it
    names: str  # of what is around it, as JAX knows them

    @property
    def refs(self) -> list[Ref]:
        """Its operands."""
        return [Ref(self.path, atom) for atom in self.eqn.invars]


@dataclasses.dataclass
class Product:
    """A product that may be one of queries and keys."""

    left: Value
    right: Value
    operands: tuple[Operand, Operand]
    factors: dict[int, tuple[str, Factor, Factor]]  # by number: side, on the left, on the right
    names: str
    masks: list[Mask]
    scans: tuple["Scan", ...]
    keys: frozenset[int] = frozenset()
    key_side: str = ""
    lost: bool = False
    problem: str = ""

    def asked(self, key_side: str) -> dict[int, Factor]:
        """By number, the factors that the queries alone have."""
        factors = self.factors.items()
        return {n: f for n, (side, f, _) in factors if side not in (SHARED, key_side)}

    def add(self, mask: Mask) -> None:
        """Notes a mask, once."""
        if mask not in self.masks:
            self.masks.append(mask)


def plain(value: Value) -> Value:
    """Without what holds in the place alone where it was made."""
    return dataclasses.replace(
        value, axes=without_roles(value.axes), score=None, outer=None, lost=lost_in([value])
    )


def lost_in(values: Sequence[Value]) -> frozenset[tuple[int, bool]]:
    """The products whose logits or weights are among these, or are lost already."""
    scored = {
        (value.score.product, value.score.stage == "weights")
        for value in values
        if value.score is not None and value.score.stage in ("logits", "weights")
    }
    return frozenset(scored).union(*(value.lost for value in values))


def without_roles(axes: Axes) -> Axes:
    """The axes as they are in any other place."""
    return tuple(
        tuple(dataclasses.replace(f, role=None) for f in axis)
        if any(f.role for f in axis)
        else axis
        for axis in axes
    )


def is_copy(axis: ax.Axis) -> bool:
    """Whether nothing changes along the axis."""
    return all(factor.origin is None and factor.role is None for factor in axis)


def identities(axis: ax.Axis) -> Hashable:
    """What two axes share that count the same things."""
    return tuple(factor.identity for factor in axis)


def along_all(values: Sequence[Value]) -> frozenset[Hashable]:
    """All data axes of which any of the values shows one step."""
    return frozenset().union(*(value.along for value in values))


def last_leaf(values: Sequence[Value]) -> int | None:
    """The parameter that the result was last multiplied with: what depends on data has the say."""
    ordered = sorted(values, key=lambda v: (not v.data, not v.computed))
    return next((v.leaf for v in ordered if v.leaf is not None), None)


def feeding_leaf(left: Value, right: Value) -> int | None:
    """The parameter of a product: that of the operand that is none of the data's."""
    both = (
        (left, right) if left.data and right.data else sorted((right, left), key=lambda v: v.data)
    )
    return next((v.leaf for v in both if v.leaf is not None), None)


def either(old: Value, new: Value) -> Value:
    """What is known of a value that may be either."""
    axes = []
    for a, b in zip(old.axes, without_roles(new.axes), strict=True):
        first = a if ax.size(a) == ax.size(b) else b
        axes.append(first if ax.kind(first) >= ax.kind(b) else b)
    return dataclasses.replace(
        old,
        axes=tuple(axes),
        data=old.data or new.data,
        computed=old.computed or new.computed,
        leaf=old.leaf if old.leaf is not None else new.leaf,
        mask=old.mask or new.mask,
        lost=old.lost | new.lost,
        counter=old.counter and new.counter,
        along=old.along | new.along,
        scale=old.scale if old.scale == new.scale else 1.0,
        number=old.number if old.number == new.number else None,
    )


def alike(a: Value, b: Value) -> bool:
    """Whether a pass over a loop has taught nothing new."""
    return (
        [ax.kind(axis) for axis in a.axes] == [ax.kind(axis) for axis in b.axes]
        and (a.data, a.computed, a.mask, a.along) == (b.data, b.computed, b.mask, b.along)
        and (a.number, a.scale) == (b.number, b.scale)
    )


def number_of(name: str, eqn: Any, operands: Sequence[Value]) -> float | None:
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


def scale_of(name: str, operands: Sequence[Value]) -> float:
    """What the result was multiplied by, in all."""
    if name in ("mul", "div") and len(operands) == 2:
        left, right = operands
        if right.number:
            return left.scale * (right.number if name == "mul" else 1 / right.number)
        if left.number and name == "mul":
            return right.scale * left.number
        # A table, such as that of rotary positions, is no scale.
        if not right.data and right.scale == 1.0:
            return left.scale
        return right.scale if name == "mul" and not left.data and left.scale == 1.0 else 1.0
    scales = {value.scale for value in operands}
    if name in ("add", "sub", "concatenate") and len(scales) == 1:
        return scales.pop()
    return operands[0].scale if name in _SAME_SCALE and operands else 1.0


def as_number(value: Any) -> float | None:
    """A number, if it is one that is known."""
    try:
        return float(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        return None


def is_inexact(aval: Any) -> bool:
    """Whether an array is of floating-point numbers, those of eight and sixteen bits among them."""
    return bool(jnp.issubdtype(getattr(aval, "dtype", np.dtype(bool)), jnp.inexact))


def is_boolean(aval: Any) -> bool:
    """Whether an array is of truth values."""
    return getattr(aval, "dtype", None) == np.dtype(bool)


def steps_of(scans: Sequence[Scan], queries: Value) -> tuple[tuple[int, Steps], ...]:
    """The scans around an attention: what each of their steps is."""
    result = []
    for scan in scans:
        steps = Steps.LAYERS if scan.own_parameters else Steps.CALLS
        result.append((scan.length, Steps.SAMPLES if scan.data & queries.along else steps))
    return tuple(result)
