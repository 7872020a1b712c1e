"""Finds the attentions of a traced program: a jaxpr in, a list of sites out.

An attention is a product of queries and keys whose exponential (or sigmoid) is summed over the keys
with something else as weights. The search follows, through every equation, what each axis counts
(`align_jax.finder.axes`) and which arrays are the logits of which product.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from align_jax.finder import axes as ax
from align_jax.finder import program
from align_jax.finder.axes import LEFT, RIGHT, SHARED, Factor, Kind
from align_jax.finder.kernels import OPAQUE, called_name, kernel_site
from align_jax.finder.products import Products
from align_jax.finder.site import Part, Site
from align_jax.finder.value import (
    EXPONENTIALS,
    LOGARITHMS,
    At,
    Product,
    Scan,
    Score,
    Value,
    alike,
    along_all,
    either,
    is_boolean,
    is_inexact,
    last_leaf,
    lost_in,
    number_of,
    plain,
    scale_of,
    steps_of,
    without_roles,
)

# What layers call their parameters. Any other name is that of a parameter of the attention itself.
_OF_LAYERS = ("kernel", "w", "weight", "weights", "embedding")


class Input(NamedTuple):
    """What is known of an input of the program."""

    data: bool  # False for parameters, keys of random numbers and other state
    path: tuple[str, ...] = ()  # of a parameter, its names from the root down


class Missed(NamedTuple):
    """An attention, or what may be one, that cannot be aligned, and why."""

    name: str
    reason: str
    opaque: bool = False


class Found(NamedTuple):
    """What a search found."""

    sites: list[Site]  # to align
    missed: list[Missed]


def find(jaxpr: Any, inputs: Sequence[Input]) -> Found:
    """Finds the attentions of a program of `jax.make_jaxpr`, with what is known of its inputs."""
    finder = _Search(inputs)
    held = program.opened(jaxpr)
    values = [finder.input_value(var.aval, number) for number, var in enumerate(held[0].invars)]
    finder.walk(held, values, (), "")
    return finder.found()


class _Search(Products):
    """Walks through a program."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.inputs = inputs
        self.missed: list[Missed] = []

    def input_value(self, aval: Any, number: int) -> Value:
        data = self.inputs[number].data
        kind = Kind.DATA if data else Kind.PARAMETER
        axes = tuple(
            ax.whole(size, kind, ax.input_axis(number, axis))
            for axis, size in enumerate(getattr(aval, "shape", ()))
        )
        return Value(axes, data, leaf=None if data else number, mask=is_boolean(aval))

    def walk(
        self, held: program.Held, values: Sequence[Value], path: tuple[int, ...], names: str
    ) -> list[Value]:
        """Follows a program; returns what is known of its results."""
        jaxpr, constants = held
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
            results = self.equation(At(eqn, path, inside), operands, (*path, number))
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, at: At, operands: list[Value], deeper: tuple[int, ...]) -> list[Value]:
        eqn, names, name = at.eqn, at.names, at.eqn.primitive.name
        kernel = kernel_site(eqn, operands, at.path, self.scans)
        if kernel is not None:
            refs = (kernel.query.ref.var, kernel.key.ref.var)
            sides = [v for a, v in zip(eqn.invars, operands, strict=True) if a in refs]
            named = self.name(sides, names)
            lengths = [math.prod(ax.shape(v.axes)) for v in operands[4:6]]
            if kernel.kernel.startswith("dot_product") and any(lengths):
                self.missed.append(Missed(named, "cuDNN's sequence lengths are not read"))
            else:
                self.hits.append(dataclasses.replace(kernel, name=named))
            return self.unknown(eqn, operands)
        held = program.inner(eqn)
        if name in program.CALLS and held is not None:
            # A custom rule may have more operands than the program has inputs.
            operands = operands[len(operands) - len(held[0].invars) :]
            return self.walk(held, operands, deeper, names)
        if name == "scan":
            return self.scan(eqn, operands, deeper, names)
        if name in ("while", "cond"):
            return self.branches(eqn, operands, deeper, names)
        if name == "shard_map" and held is not None:
            inputs = []  # each device has a part of the operands
            for var, v in zip(held[0].invars, operands, strict=True):
                axes = self.resized(v.axes, var.aval.shape, lambda i: ("shard", i))
                inputs.append(dataclasses.replace(v, axes=axes))
            with self.refused("inside shard_map, where each device sees its own tokens"):
                self.walk(held, inputs, deeper, names)
            return self.unknown(eqn, operands)
        if name not in program.CALLS and (name in OPAQUE or held is not None):
            attends = held is None or {"dot_general", "exp"} <= program.primitives(held[0])
            if attends and any(value.data and len(value.axes) > 2 for value in operands):
                reason = f"{called_name(eqn) or name} cannot be looked into"
                self.missed.append(Missed(self.name(operands, names), reason, True))
            return self.unknown(eqn, operands)
        if name == "dot_general":
            return [self.dot_general(at, operands)]
        return [self.simple(at, operands)] if len(eqn.outvars) == 1 else self.several(eqn, operands)

    def simple(self, at: At, operands: list[Value]) -> Value:
        """The result of an equation that has one."""
        eqn, name, out = at.eqn, at.eqn.primitive.name, at.eqn.outvars[0].aval
        shape = getattr(out, "shape", ())
        number = number_of(name, eqn, operands)
        if number is not None and math.prod(shape) <= 1:
            ones = tuple(ax.whole(n) for n in shape)
            return dataclasses.replace(self.constant(out), number=number, axes=ones)
        axes = self.axes_of(name, eqn, operands, shape)
        if axes is None:
            return self.unknown(eqn, operands)[0]
        value = Value(
            axes,
            data=any(v.data for v in operands),
            computed=any(v.computed for v in operands),
            leaf=last_leaf(operands),
            mask=any(v.mask for v in operands) or is_boolean(out),
            along=along_all(operands) | self.picked(name, eqn, operands),
            scale=scale_of(name, operands),
            number=number,
            lost=self.lost_by(name, operands),
            counter=any(v.counter for v in operands)
            and all(v.counter or v.number is not None for v in operands),
        )
        kept = [v.outer for v in operands if v.outer is not None]
        if name in ("mul", "div", "convert_element_type") and len(kept) == 1:
            value = dataclasses.replace(value, outer=kept[0])  # weighed before it is summed
        elif name == "mul":
            value = self.outer_product(value, at, operands)
            if all(v.data for v in operands) and len({v.lost for v in operands}) > 1:
                self.note_lost([v for v in operands if not lost_in(operands) <= v.lost])
        if name == "reduce_sum":
            summed = self.summed_product(at, operands[0], value)
            if summed is not None:
                return summed
        if any(v.score for v in operands):
            score = self.score(at, operands, value)
            value = dataclasses.replace(value, score=score)
            if score is None:
                lost = frozenset() if name in LOGARITHMS else lost_in(operands)
                lost |= value.lost
                value = dataclasses.replace(value, axes=without_roles(value.axes), lost=lost)
        return value

    def lost_by(self, name: str, operands: Sequence[Value]) -> frozenset[tuple[int, bool]]:
        """What is lost already, after one more equation."""
        lost = frozenset().union(*(value.lost for value in operands))
        if name not in EXPONENTIALS | LOGARITHMS:
            return lost
        return frozenset((number, name in EXPONENTIALS) for number, _ in lost)

    def picked(self, name: str, eqn: Any, operands: Sequence[Value]) -> frozenset[Hashable]:
        """The axes of which a loop's counter picks a part in each step."""
        if name not in ("dynamic_slice", "gather"):
            return frozenset()
        sizes = eqn.params["slice_sizes"]
        indices = operands[1:]
        if name == "gather" and indices[0].counter:
            picks = eqn.params["dimension_numbers"].start_index_map
        else:
            picks = [i for i, value in enumerate(indices) if value.counter]
        kind = Kind.DATA if operands[0].data or operands[0].leaf is None else Kind.PARAMETER
        axes = operands[0].axes
        picked = ax.factors(axes[i] for i in picks if ax.size(axes[i]) != sizes[i])
        return frozenset((kind, *f.identity) for f in picked if f.origin is not None)

    def scan(
        self, eqn: Any, operands: list[Value], path: tuple[int, ...], names: str
    ) -> list[Value]:
        held = program.opened(eqn.params["jaxpr"])
        shared, carried = program.scan_counts(eqn)
        length = eqn.params["length"]
        steps = []
        scanned: ax.Axis = ()
        own_parameters = False
        start = [plain(value) for value in operands[: shared + carried]]
        for i, var in enumerate(eqn.invars[shared : shared + carried], shared):
            scalar = not start[i].axes and not start[i].data and not is_inexact(var.aval)
            start[i] = dataclasses.replace(start[i], counter=scalar, number=None)
        rest = slice(shared + carried, None)
        for value, var in zip(operands[rest], eqn.invars[rest], strict=True):
            along, whole = value.along, not is_inexact(var.aval)
            if value.data:
                scanned = scanned or value.axes[0]
                along |= {factor.identity for factor in value.axes[0] if factor.origin is not None}
            own_parameters |= not value.data and not whole
            counts = not value.data and whole and len(value.axes) == 1
            step = dataclasses.replace(plain(value), along=along, counter=counts)
            steps.append(dataclasses.replace(step, axes=value.axes[1:]))
        before = self.state()
        outer = self.scans
        shown = frozenset(factor.identity for factor in scanned)
        self.scans = (*outer, Scan(length, own_parameters, shown))
        for _ in range(8):  # until what is carried is known: each pass can only add
            self.restore(before)
            results = self.walk(held, [*start, *steps], path, names)
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
        carry = [dataclasses.replace(value, counter=False) for value in carry]
        lead = scanned or self.fresh(length, Kind.PARAMETER)
        stepped = frozenset(factor.identity for factor in lead)
        lead = ax.resized(lead, length, "scan") if ax.size(lead) != length else lead
        outputs = [plain(value) for value in results[carried:]]
        return [
            *carry,
            *(
                dataclasses.replace(v, axes=(lead, *v.axes), along=v.along - stepped)
                for v in outputs
            ),
        ]

    def chunked(self, score: Score, names: str) -> None:
        """What was made of logits is carried from step to step: a softmax over chunks of keys."""
        reason = "its keys come in chunks, one step of a scan at a time"
        product = self.products[score.product]
        made = self.of_data(score.product) and score.stage != "logits"
        missed = Missed(self.name_of(product, names), reason)
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
        with self.refused(reason):
            for number, jaxpr in enumerate(programs):
                held, entering = program.opened(jaxpr), list(map(plain, arguments))
                ends.append(self.walk(held, entering, (*path, number), names))
        data = any(value.data for value in operands)
        results = [
            functools.reduce(either, alternatives[1:], plain(alternatives[0]))
            for alternatives in zip(*ends, strict=True)
        ]
        return [dataclasses.replace(value, data=data or value.data) for value in results]

    def state(self) -> tuple[int, int, int]:
        return len(self.products), len(self.missed), len(self.hits)

    def restore(self, state: tuple[int, int, int]) -> None:
        del self.products[state[0] :], self.missed[state[1] :], self.hits[state[2] :]

    @contextlib.contextmanager
    def refused(self, reason: str) -> Iterator[None]:
        """What is found inside cannot be aligned, for a reason."""
        products, _, hits = self.state()
        yield
        for product in self.products[products:]:
            product.problem = product.problem or reason
        inside = self.hits[hits:]
        self.missed += [Missed(hit.name, reason) for hit in inside if isinstance(hit, Site)]
        self.hits[hits:] = [hit for hit in inside if not isinstance(hit, Site)]

    def found(self) -> Found:
        found: list[Site | Missed] = list(self.missed)
        for hit in self.hits:
            if isinstance(hit, Site):
                found.append(hit)
                continue
            product = self.products[hit]
            name = self.name_of(product, product.names)
            made = product.problem or self.in_pieces(hit) or self.site(product, name)
            found.append(Missed(name, made) if isinstance(made, str) else made)
        for number, product in enumerate(self.products):
            if product.lost and not product.problem and number not in self.hits:
                name = self.name_of(product, product.names)
                found.append(Missed(name, "what becomes of its logits cannot be followed"))
        missed = dict.fromkeys(one for one in found if isinstance(one, Missed))
        return Found([one for one in found if isinstance(one, Site)], list(missed))

    def in_pieces(self, number: int) -> str:
        """Whether the same queries meet several parts of the keys, or the other way about."""
        product = self.products[number]
        for other in self.hits:
            if isinstance(other, Site) or other == number:
                continue
            pair = self.products[other]
            leaves = ((product.left, pair.left), (product.right, pair.right))
            if any(a.leaf is None or a.leaf != b.leaf for a, b in leaves):
                continue
            for one, two in ((LEFT, RIGHT), (RIGHT, LEFT)):
                mine, theirs = (
                    [f.identity for side, f, _ in p.factors.values() if side == two]
                    for p in (product, pair)
                )
                if mine == theirs and self.cut(product, pair, one):
                    return "its queries or keys come in chunks, so that no product has all of them"
        return ""

    def cut(self, product: Product, other: Product, side: str) -> bool:
        """Whether the operands of two products on this side are different parts of one array."""
        mine, theirs = (
            {
                (f.origin.parts, f.origin.how)
                for own, f, _ in one.factors.values()
                if own == side
                and f.origin
                and isinstance(f.origin.how, tuple)
                and f.origin.how[0] in ("slice", "dynamic_slice", "gather")
            }
            for one in (product, other)
        )
        return mine != theirs and bool({of for of, _ in mine} & {of for of, _ in theirs})

    def site(self, product: Product, name: str) -> Site | str:
        """The attention of a product; or why it cannot be aligned."""
        key_side = product.key_side
        step = -1 if key_side == LEFT else 1
        query, key = product.operands[::step]
        queries, keys = (product.left, product.right)[::step]
        along = queries.along | keys.along
        if any(isinstance(part, tuple) and part[0] == Kind.PARAMETER for part in along):
            return "its parameters are picked by the number of a loop's step; scan over them"
        if queries.along != keys.along:
            return "its queries or keys come in chunks, so that no step of a scan sees all of them"
        parts: dict[int, Part] = {}
        order: dict[int, int] = {}
        asked = product.asked(key_side)
        features = frozenset().union(
            *(
                self.began_from(factor)
                for side in product.operands
                for factor, n in side.numbered
                if n is None
            )
        )
        # Heads are split from the axis that features are, or from another of the same parameter.
        heads = {n for n, factor in asked.items() if self.began_from(factor) & features}
        tokens = {n for n, factor in asked.items() if factor.kind == Kind.DATA and n not in heads}
        if not tokens:
            tokens = set(asked) - heads
        # What shares an axis of the array with tokens was put between them, as by a stack.
        for numbers in query.numbers:
            if tokens & set(numbers):
                tokens |= set(asked).intersection(numbers) - heads
        if len(asked) > 1 and not any(asked[n].kind == Kind.DATA for n in tokens):
            unclear = {factor.kind for factor in asked.values()} & {Kind.UNKNOWN, Kind.CONSTANT}
            if unclear and len(tokens) > 1:
                sizes = [factor.size for factor in asked.values()]
                return f"it is not clear which of the queries' axes {sizes} counts tokens"
        met = {f.identity for side, f, _ in product.factors.values() if side == key_side}
        for n in sorted(tokens):  # keys that all samples share have no axis for them
            first = asked[n].kind == Kind.DATA and _is_first(asked[n])
            if first and len(tokens) > 1 and asked[n].identity not in met:
                tokens.discard(n)
                parts[n] = Part.SAMPLE
        # The first axis of the data comes first among what counts as samples, whole.
        first_of = {n for n, (_, *both) in product.factors.items() if any(map(_is_first, both))}
        groups = map(set, (*query.numbers, *key.numbers))
        leading = set().union(*(numbers for numbers in groups if numbers & first_of))
        for n, (side, one, other) in product.factors.items():
            order[n] = n
            best = one if one.kind >= other.kind else other
            if side == SHARED:
                if best.kind == Kind.UNKNOWN:
                    return f"it is not clear if an axis of {best.size} counts samples or heads"
                split = bool(self.began_from(best) & features)
                copies = one.origin is None and other.origin is None
                counts = best.kind == Kind.DATA and not split
                parts[n] = Part.SAMPLE if counts or copies else Part.HEAD
            elif side == key_side:
                shared = one.kind == Kind.DATA
                parts[n] = Part.KEY if n in product.keys else Part.SAMPLE if shared else Part.GROUP
            elif n not in parts:
                parts[n] = Part.QUERY if n in tokens else Part.GROUP
            if parts[n] == Part.SAMPLE and n in leading:
                order[n] = n - len(product.factors)
        own = [asked[n].identity for n in sorted(tokens)]
        others = [product.factors[n][1].identity for n in sorted(product.keys)]
        known = all(origin is not None for origin, *_ in own + others)
        return Site(
            name,
            query,
            key,
            parts,
            order,
            tuple(product.masks),
            self_attention=known and bool(own) and own == others,
            calls=(queries.leaf, keys.leaf),
            scans=steps_of(product.scans, queries),
        )

    def began_from(self, factor: Factor) -> frozenset[tuple[int, int]]:
        """The inputs and their axes that a factor came from; of a parameter, all axes are one.

        Heads and features are axes of one parameter, or split from one axis of data.
        """
        inputs = factor.origin.inputs if factor.origin else frozenset()
        return frozenset(
            (number, axis if self.inputs[number].data else -1) for number, axis in inputs
        )

    def name_of(self, product: Product, names: str) -> str:
        """The name of what the operands of a product come from."""
        return self.name([product.left, product.right], names)

    def name(self, values: Sequence[Value], names: str) -> str:
        """The common path of the parameters that made these, or else the program's own names."""
        paths = [self.inputs[v.leaf].path for v in values if v.leaf is not None]
        paths = list(filter(None, paths))
        if not paths:
            return _clean(names)
        same = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
        common = [level[0] for level in same]
        if len(set(paths)) == 1:  # one parameter for both: its module, or the one around its layer
            common = common[:-2] if common[-1] in _OF_LAYERS else common[:-1]
        return "/".join(common)


def _is_first(factor: Factor) -> bool:
    """Whether it came from the first axis of an input."""
    return factor.origin is not None and factor.origin.first == 0


def _clean(names: str) -> str:
    """A path out of the names that a program carries."""
    parts = names.replace("(", "/").replace(")", "/").split("/")
    words = {"jit", "jvp", "vmap", "remat", "checkpoint", "transpose", "scan", "while", "body", ""}
    return "/".join(part for part in parts if part not in words)
