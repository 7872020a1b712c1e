"""Finds the attentions of a traced program: a jaxpr in, a list of sites out.

An attention is a product of queries and keys whose exponential (or sigmoid) is summed over the keys
with something else as weights. The search follows, through every equation, what each axis counts
(`align_jax.finder.axes`) and which arrays are the logits of which product.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.finder import axes as ax
from align_jax.finder import program
from align_jax.finder.axes import LEFT, SHARED, Kind
from align_jax.finder.kernels import called_name, kernel_site
from align_jax.finder.products import Products
from align_jax.finder.site import Part, Site
from align_jax.finder.value import (
    Product,
    Scan,
    Score,
    Value,
    alike,
    along_all,
    dtype_of,
    either,
    last_leaf,
    number_of,
    plain,
    scale_of,
    steps_of,
    without_roles,
)

# What no search can look into.
OPAQUE = (
    "pallas_call", "custom_call", "ffi_call", "tpu_custom_call", "triton_kernel_call",
    "mosaic_gpu_custom_call", "pure_callback", "io_callback",
)  # fmt: skip


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


class _Search(Products):
    """Walks through a program."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.inputs = inputs
        self.missed: list[Missed] = []

    def input_value(self, aval: Any, number: int) -> Value:
        data = self.inputs[number].data
        axes = []
        for axis, size in enumerate(getattr(aval, "shape", ())):
            kind = Kind.DATA if data else Kind.PARAMETER
            floating = data and np.issubdtype(np.dtype(aval.dtype), np.inexact) if data else False
            if floating and aval.ndim > 1 and axis == aval.ndim - 1:
                kind = Kind.FEATURE
            axes.append(ax.whole(size, kind, ("input", number, axis)))
        boolean = getattr(aval, "dtype", None) == np.dtype(bool)
        return Value(tuple(axes), data, leaf=None if data else number, mask=boolean)

    def walk(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        values: Sequence[Value],
        path: tuple[int, ...],
        names: str,
    ) -> list[Value]:
        """Follows a program; returns what is known of its results."""
        known: dict[Any, Value] = {}

        def read(atom: Any) -> Value:
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
        self, eqn: Any, operands: list[Value], path: tuple[int, ...], number: int, names: str
    ) -> list[Value]:
        name = eqn.primitive.name
        kernel = kernel_site(eqn, operands, path, self.scans)
        if kernel is not None:
            refs = (kernel.query.ref.var, kernel.key.ref.var)
            sides = [v for a, v in zip(eqn.invars, operands, strict=True) if a in refs]
            self.hits.append(dataclasses.replace(kernel, name=self.name(sides, names)))
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
        if name not in program.CALLS and (name in OPAQUE or held is not None):
            self.opaque(eqn, operands, names)
            return self.unknown(eqn, operands)
        if name == "dot_general":
            return [self.dot_general(eqn, operands, path, names)]
        if len(eqn.outvars) == 1:
            return [self.simple(eqn, operands, path, names)]
        return self.several(eqn, operands)

    def opaque(self, eqn: Any, operands: Sequence[Value], names: str) -> None:
        """Notes what may hold an attention and cannot be looked into."""
        held = program.inner(eqn)
        attends = held is None or {"dot_general", "exp"} <= program.primitives(held[0])
        if attends and any(value.data and len(value.axes) > 2 for value in operands):
            reason = f"{called_name(eqn) or eqn.primitive.name} cannot be looked into"
            self.missed.append(Missed(self.name(operands, names), reason, True))

    def unknown_inputs(self, jaxpr: Any, operands: Sequence[Value]) -> list[Value]:
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

    def simple(self, eqn: Any, operands: list[Value], path: tuple[int, ...], names: str) -> Value:
        """The result of an equation that has one."""
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        shape = getattr(out, "shape", ())
        number = number_of(name, eqn, operands)
        if number is not None and math.prod(shape) <= 1:
            return dataclasses.replace(
                self.constant(out), number=number, axes=tuple(ax.whole(n) for n in shape)
            )
        axes = self.axes_of(name, eqn, operands, shape)
        if axes is None:
            return self.unknown(eqn, operands)[0]
        value = Value(
            axes,
            data=any(v.data for v in operands),
            computed=any(v.computed for v in operands),
            leaf=last_leaf(operands),
            mask=any(v.mask for v in operands) or getattr(out, "dtype", None) == np.dtype(bool),
            along=along_all(operands),
            number=number,
        )
        value = dataclasses.replace(value, scale=scale_of(name, operands))
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
                value = dataclasses.replace(value, axes=without_roles(value.axes))
        return value

    def scan(
        self, eqn: Any, operands: list[Value], path: tuple[int, ...], names: str
    ) -> list[Value]:
        jaxpr, constants = program.opened(eqn.params["jaxpr"])
        shared, carried = program.scan_counts(eqn)
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
                own_parameters |= np.issubdtype(dtype_of(var.aval), np.inexact)
            steps.append(dataclasses.replace(plain(value), axes=value.axes[1:], along=along))
        start = [plain(value) for value in operands[: shared + carried]]
        before = self.state()
        outer = self.scans
        shown = frozenset(factor.identity for factor in scanned)
        self.scans = (*outer, Scan(length, own_parameters, shown))
        for _ in range(8):  # until what is carried is known: each pass can only add
            self.restore(before)
            results = self.walk(jaxpr, constants, [*start, *steps], path, names)
            carry = [
                either(old, new) for old, new in zip(start[shared:], results[:carried], strict=True)
            ]
            if all(map(alike, carry, start[shared:])):
                break
            start = [*start[:shared], *carry]
        self.scans = outer
        for value in results[:carried]:
            if value.score is not None and value.score.product >= before[0]:
                self.chunked(value.score, names)
        lead = scanned or self.fresh(length, Kind.PARAMETER)
        stepped = frozenset(factor.identity for factor in lead)
        outputs = [
            dataclasses.replace(
                plain(value),
                axes=(ax.resized(lead, length, "scan") if ax.size(lead) != length else lead,
                      *value.axes),
                along=value.along - stepped,
            )
            for value in results[carried:]
        ]  # fmt: skip
        return [*carry, *outputs]

    def chunked(self, score: Score, names: str) -> None:
        """What was made of logits is carried from step to step: a softmax over chunks of keys."""
        reason = "its keys come in chunks, one step of a scan at a time"
        product = self.products[score.product]
        made = product.left[1].data and product.right[1].data and score.stage != "logits"
        missed = Missed(self.name([product.left[1], product.right[1]], names), reason)
        if made and score.product not in self.hits and missed not in self.missed:
            self.missed.append(missed)
        product.problem = product.problem or reason

    def branches(
        self, eqn: Any, operands: list[Value], path: tuple[int, ...], names: str
    ) -> list[Value]:
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
                entering = [plain(value) for value in arguments]
                ends.append(self.walk(opened, constants, entering, (*path, number), names))
        results = []
        for alternatives in zip(*ends, strict=True):
            first = plain(alternatives[0])
            for other in alternatives[1:]:
                first = either(first, other)
            data = first.data or any(value.data for value in operands)
            results.append(dataclasses.replace(first, data=data))
        return results

    def state(self) -> tuple[int, int, int]:
        return len(self.products), len(self.missed), len(self.hits)

    def restore(self, state: tuple[int, int, int]) -> None:
        del self.products[state[0] :], self.missed[state[1] :], self.hits[state[2] :]

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

    def site(self, product: Product, name: str) -> Site | str:
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
            scans=steps_of(product.scans, queries[1]),
        )

    def name(self, values: Sequence[Value], names: str) -> str:
        """The common path of the parameters that made these, or else the program's own names."""
        paths = [self.inputs[v.leaf].path for v in values if v.leaf is not None]
        paths = [path for path in paths if path]
        if not paths:
            return _clean(names)
        common = list(paths[0])
        for path in paths[1:]:
            same = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(common, path, strict=False)
            )
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


def _first_axis(origin: Any) -> int | None:
    """The number of the axis of an input that something came from."""
    if not isinstance(origin, tuple) or not origin:
        return None
    if origin[0] == "input":
        return int(origin[2])
    for part in origin:
        found = _first_axis(part)
        if found is not None:
            return found
    return None


def _clean(names: str) -> str:
    """A path out of the names that a program carries."""
    parts = names.replace("(", "/").replace(")", "/").split("/")
    words = {"jit", "jvp", "vmap", "remat", "checkpoint", "transpose", "scan", "while", "body", ""}
    return "/".join(part for part in parts if part not in words)
