"""What the axes of an array count: samples, tokens, heads or features, followed through a program.

An axis is a product of factors, major first. A factor remembers which axis of which input it came
from, so that it is known again after the axes were reshaped, transposed, sliced or joined.
"""

import dataclasses
import enum
import itertools
import math
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence

# Which operand of a product a factor belongs to.
SHARED, LEFT, RIGHT = "shared", "left", "right"


class Kind(enum.IntEnum):
    """Where an axis comes from; of two that meet, the larger is believed."""

    CONSTANT = 0  # broadcast, or made by the program itself
    UNKNOWN = 1
    PARAMETER = 2  # an axis of a parameter: features, and the heads that they are split into
    DATA = 3  # an axis of data: samples, tokens, and what they are split into


@dataclasses.dataclass(frozen=True)
class Role:
    """The place of a factor in a product."""

    product: int
    side: str
    number: int


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where a factor comes from, of `came_from`: equal ones are one object.

    So they compare at no cost, however often an axis was rolled, padded or joined before.
    """

    how: Hashable  # what was done
    # The identities of the factors, axis by axis, that it was done to.
    parts: tuple[tuple["Identity", ...], ...] = ()
    # The inputs of the program, each with the number of its axis, that it began from.
    inputs: frozenset[tuple[int, int]] = frozenset()
    first: int | None = None  # the number of the first of these axes


Identity = tuple[Origin | None, int, int]
_ORIGINS: "weakref.WeakValueDictionary[Hashable, Origin]" = weakref.WeakValueDictionary()


def came_from(how: Hashable, *axes: "Axis") -> Origin:
    """The origin of what is made of these axes."""
    parts = tuple(tuple(factor.identity for factor in axis) for axis in axes)
    known = _ORIGINS.get((how, parts))
    if known is None:
        before = [f.origin for axis in axes for f in axis if f.origin is not None]
        inputs = frozenset().union(*(origin.inputs for origin in before))
        firsts = [origin.first for origin in before if origin.first is not None]
        made = Origin(how, parts, inputs, firsts[0] if firsts else None)
        known = _ORIGINS.setdefault((how, parts), made)
    return known


def input_axis(number: int, axis: int) -> Origin:
    """The origin of an axis of an input of the program."""
    key = "input", number, axis
    made = Origin(key, inputs=frozenset([(number, axis)]), first=axis)
    return _ORIGINS.setdefault(key, made)


@dataclasses.dataclass(frozen=True)
class Factor:
    """A factor of an axis: digit `(index // stride) % size` of the index along its origin."""

    size: int
    kind: Kind = Kind.CONSTANT
    origin: Origin | None = None
    stride: int = 1
    role: Role | None = None

    @property
    def identity(self) -> Identity:
        """Equal for two factors that count the same things."""
        return self.origin, self.stride, self.size


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


def whole(size: int, kind: Kind = Kind.CONSTANT, origin: Origin | None = None) -> Axis:
    """An axis of one factor; none where it has one entry."""
    return () if size == 1 else (Factor(size, kind, origin),)


def size(axis: Axis) -> int:
    """The number of entries along an axis."""
    return math.prod(factor.size for factor in axis)


def kind(axis: Axis) -> Kind:
    """The kind of its factors that is believed most."""
    return max((factor.kind for factor in axis), default=Kind.CONSTANT)


def shape(axes: Axes) -> tuple[int, ...]:
    """The array's shape."""
    return tuple(size(axis) for axis in axes)


def spread(axes: Axes, wanted: Sequence[int]) -> Axes | None:
    """The axes after those of length 1 were stretched; None for a shape that this cannot give."""
    fits = [size(axis) in (1, n) for axis, n in zip(axes, wanted, strict=False)]
    if len(axes) != len(wanted) or not all(fits):
        return None
    pairs = zip(axes, wanted, strict=True)
    return tuple(axis if size(axis) == n else whole(n) for axis, n in pairs)


def merged(alternatives: Sequence[Axes]) -> Axes:
    """The axes of what an elementwise operation makes of arrays of one shape."""

    def belief(axis: Axis) -> tuple[bool, Kind, bool]:
        changes = any(factor.origin is not None for factor in axis)
        return any(factor.role for factor in axis), kind(axis), changes

    # Of equals the first: max keeps it.
    return tuple(max(options, key=belief) for options in zip(*alternatives, strict=True))


def resized(axis: Axis, new_size: int, how: Hashable) -> Axis:
    """An axis of which a part was taken, or which was padded; the same `how` gives the same."""
    if new_size == 1:
        return ()
    role = next((factor.role for factor in axis if factor.role), None)
    return (Factor(new_size, kind(axis), came_from(how, axis), role=role),)


def regrouped(axes: Axes, new_shape: Sequence[int]) -> Axes | None:
    """The axes after a reshape; None where a factor would have to be torn apart unevenly."""
    waiting = list(factors(axes))
    result: list[Axis] = []
    if 0 in new_shape:
        return None
    for wanted in new_shape:
        taken: Axis = ()
        while (missing := wanted // size(taken)) > 1:
            if not waiting or wanted % size(taken):
                return None
            factor = waiting.pop(0)
            if factor.size > missing and factor.size % missing == 0:
                factor, minor = split(factor, missing)
                waiting.insert(0, minor)
            taken = (*taken, factor)
        if size(taken) != wanted:
            return None
        result.append(joined(taken))
    return None if waiting else tuple(result)


def split(factor: Factor, major_size: int) -> tuple[Factor, Factor]:
    """Its leading and its trailing digit."""
    minor_size = factor.size // major_size
    return (
        dataclasses.replace(factor, size=major_size, stride=factor.stride * minor_size),
        dataclasses.replace(factor, size=minor_size),
    )


def joined(axis: Axis) -> Axis:
    """Puts digits that were split apart together again."""
    result: list[Factor] = []
    for factor in axis:
        last = result[-1] if result else None
        if (
            last is not None
            and (last.origin, last.kind, last.role) == (factor.origin, factor.kind, factor.role)
            and (last.origin is None or last.stride == factor.stride * factor.size)
        ):
            factor = dataclasses.replace(factor, size=last.size * factor.size)  # noqa: PLW2901
            result.pop()
        result.append(factor)
    return tuple(result)


def common(left: Axis, right: Axis) -> tuple[Axis, Axis] | None:
    """Two descriptions of one axis, split until their factors have the same sizes."""
    waiting = list(left), list(right)
    results: tuple[list[Factor], list[Factor]] = ([], [])
    while all(waiting):
        both = [own.pop(0) for own in waiting]
        least = min(factor.size for factor in both)
        for factor, own, result in zip(both, waiting, results, strict=True):
            if factor.size % least:
                return None
            major, minor = split(factor, least)
            result.append(major)
            if minor.size > 1:
                own.insert(0, minor)
    return None if any(waiting) else (tuple(results[0]), tuple(results[1]))


def factors(axes: Iterable[Axis]) -> Iterator[Factor]:
    """All factors, major first."""
    return itertools.chain.from_iterable(axes)
