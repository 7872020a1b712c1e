"""Which products are those of queries and keys, and what becomes of their logits."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from align_jax.finder import axes as ax
from align_jax.finder import program
from align_jax.finder.axes import LEFT, RIGHT, SHARED, Factor, Kind, Role
from align_jax.finder.program import Ref
from align_jax.finder.rules import AxisRules
from align_jax.finder.site import BLOCKED, Mask, Operand, Site
from align_jax.finder.value import (
    EXPONENTIALS,
    LOGARITHMS,
    REDUCTIONS,
    At,
    Product,
    Scan,
    Score,
    Value,
    along_all,
    feeding_leaf,
    is_copy,
    plain,
    without_roles,
)

# For each axis of a product the numbers of the operands' axes that it comes from; None for one that
# has no part in it.
Pairs = list[tuple[int | None, int | None]]


class Products(AxisRules):
    """Follows logits from their product to the sum that they are weights of."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.hits: list[int | Site] = []
        self.scans: tuple[Scan, ...] = ()

    def dot_general(self, at: At, operands: list[Value]) -> Value:
        """The result of a product of two arrays."""
        left, right = operands
        (sums_left, sums_right), (shared_left, shared_right) = at.eqn.params["dimension_numbers"]
        pairs: Pairs = [
            *zip(shared_left, shared_right, strict=True),
            *((i, None) for i in range(len(left.axes)) if i not in (*sums_left, *shared_left)),
            *((None, i) for i in range(len(right.axes)) if i not in (*sums_right, *shared_right)),
        ]
        both = [
            [(v.axes[i],) for v, i in zip(operands, pair, strict=True) if i is not None]
            for pair in pairs
        ]
        value = Value(
            tuple(ax.merged(one)[0] for one in both),
            data=left.data or right.data,
            # A parameter times another is none any more; data times one is data.
            computed=True,
            leaf=feeding_leaf(left, right),
            mask=left.mask or right.mask,
            along=along_all(operands),
        )
        self.note_lost(operands)
        read = self.read_out(at.eqn, operands, value)
        if read is not None:
            return read
        return self.product(list(zip(at.refs, operands, strict=True)), pairs, value, at.names)

    def product(
        self, ends: Sequence[tuple[Ref, Value]], pairs: Pairs, value: Value, names: str
    ) -> Value:
        """A product that may be one of queries and keys: notes it, and marks the result's axes."""
        values = left, right = ends[0][1], ends[1][1]
        shared = [pair for pair in pairs if None not in pair]
        known = all(v.data or v.computed for v in values)
        plain = dataclasses.replace(value, axes=without_roles(value.axes))
        if not known and not (shared and any(v.data for v in values)):
            return plain  # a layer: data with its weights
        summed = len(left.axes) - sum(i is not None for i, _ in pairs)
        if not summed or any(program.is_literal(ref.var) for ref, _ in ends):
            return plain
        numbers, product = itertools.count(), len(self.products)
        factors: dict[int, tuple[str, Factor, Factor]] = {}
        axes = [list(without_roles(v.axes)) for v in values]
        numbered: list[list[Any]] = [[(None,) * len(axis) for axis in own] for own in axes]
        result: list[ax.Axis] = [()] * len(pairs)
        sides = [RIGHT if i is None else LEFT if j is None else SHARED for i, j in pairs]
        for place in sorted(range(len(pairs)), key=lambda p: (SHARED, LEFT, RIGHT).index(sides[p])):
            side, pair = sides[place], pairs[place]
            both = [own[i] for own, i in zip(axes, pair, strict=True) if i is not None]
            if side == SHARED:
                both = list(ax.common(*both) or self.torn(*both))
            made = [next(numbers) for _ in both[0]]
            for i, own, taken, axis in zip(pair, axes, numbered, (both[0], both[-1]), strict=True):
                if i is not None:
                    own[i], taken[i] = axis, tuple(made)
            marked = []
            for n, a, b in zip(made, both[0], both[-1], strict=True):
                best = a if (a.kind, a.origin is not None) >= (b.kind, b.origin is not None) else b
                factors[n] = (side, a, b)
                if side == SHARED and best.kind == Kind.CONSTANT:
                    # Copies of samples are samples, of heads heads.
                    best = dataclasses.replace(best, kind=max(map(ax.kind, both)))
                    factors[n] = (side, best, best)
                marked.append(dataclasses.replace(best, role=Role(product, side, n)))
            result[place] = tuple(marked)
        query, key = (
            Operand(ref, tuple(own), tuple(taken), v.scale)
            for (ref, v), own, taken in zip(ends, axes, numbered, strict=True)
        )
        self.products.append(Product(left, right, (query, key), factors, names, [], self.scans))
        return dataclasses.replace(value, axes=tuple(result), score=Score(product))

    def torn(self, left: ax.Axis, right: ax.Axis) -> tuple[ax.Axis, ax.Axis]:
        """An axis of both operands whose factors do not fit together, as one factor."""
        whole = ax.merged([(left,), (right,)])[0]
        whole = whole if len(whole) == 1 else self.fresh(ax.size(whole), Kind.UNKNOWN)
        return whole, whole

    def outer_product(self, value: Value, at: At, operands: list[Value]) -> Value:
        """Notes a product, entry by entry, whose sum may be one of queries and keys."""
        left, right = operands
        if value.number is not None or any(v.number is not None or v.score for v in operands):
            return value
        shape = ax.shape(value.axes)
        if not (left.data or right.data) or not (left.axes and right.axes):
            return value
        left, right = (stretched(v, shape) for v in operands)
        if all(is_copy(a) == is_copy(b) for a, b in zip(left.axes, right.axes, strict=True)):
            return value
        outer = (at.refs[0], plain(left)), (at.refs[1], plain(right))
        return dataclasses.replace(value, outer=outer)

    def summed_product(self, at: At, value: Value, result: Value) -> Value | None:
        """The sum of a product, entry by entry: as `dot_general` would have it."""
        summed = at.eqn.params["axes"]
        if value.score is not None and value.score.weighted:
            return self.hit(value, [value.axes[i] for i in summed], result)
        if value.outer is None:
            return None
        left, right = (v for _, v in value.outer)
        pairs: Pairs = []
        for i, axes in enumerate(zip(left.axes, right.axes, strict=True)):
            one, other = map(is_copy, axes)
            if i not in summed:
                alike = one == other
                pairs.append((i if other or alike else None, i if one or alike else None))
            elif one or other:
                return None
        if not all(any(pair[side] is None for pair in pairs) for side in (0, 1)):
            return None
        ends = []
        for side, (ref, v) in enumerate(value.outer):
            others = {pair[1 - side] for pair in pairs if pair[side] is None}
            kept = tuple(() if i in others else axis for i, axis in enumerate(v.axes))
            ends.append((ref, dataclasses.replace(v, axes=kept)))
        result = dataclasses.replace(result, computed=True, leaf=feeding_leaf(left, right))
        return self.product(ends, pairs, result, at.names)

    def score(self, at: At, operands: list[Value], value: Value) -> Score | None:
        """What an equation makes of logits; None where they are lost."""
        name = at.eqn.primitive.name
        scored = [(i, v.score) for i, v in enumerate(operands) if v.score is not None]
        place, score = scored[0]
        if name == "concatenate":  # with a sink beside the keys, or what was split before
            same = {(s.product, s.stage) for _, s in scored}
            return score if len(same) == 1 else None
        if len(operands) > 1 and ax.spread(operands[place].axes, ax.shape(value.axes)):
            spread = [stretched(v, ax.shape(value.axes)) for v in operands]
            return self.combined(at, spread, scored)
        if name in EXPONENTIALS:
            if score.stage != "logits":
                return score if score.stage == "largest" else None
            return dataclasses.replace(score, stage="weights", normalized=name == "logistic")
        if name in ("reduce_max", "argmax"):
            return dataclasses.replace(score, stage="largest") if score.stage == "logits" else None
        if name == "reduce_sum":
            summed = ax.factors(operands[0].axes[i] for i in at.eqn.params["axes"])
            keys = any(f.role and f.role.side != SHARED for f in summed)
            done = keys and score.stage == "weights"
            return dataclasses.replace(score, stage="sum") if done else score
        return None if name in (*REDUCTIONS, *LOGARITHMS) else score

    def combined(
        self, at: At, operands: list[Value], scored: list[tuple[int, Score]]
    ) -> Score | None:
        """Logits, or what was made of them, with another array, entry by entry."""
        eqn, name = at.eqn, at.eqn.primitive.name
        weights = [(i, s) for i, s in scored if s.stage == "weights"]
        main = weights or [(i, s) for i, s in scored if s.stage == "logits"]
        if not main:
            return scored[0][1]
        place, score = main[0]
        if name == "dynamic_update_slice" or name.startswith("scatter"):
            return None
        if len({s.product for _, s in main}) > 1:
            return self.of_several(operands, main)
        if len(main) > 1:
            return score
        own = [i for i, s in scored if s.product == score.product]
        others = [i for i in range(len(operands)) if i not in own]
        chosen = name == "select_n" and len(operands) == 3 and place > 0
        kind = "keep" if place == 2 else "block"  # of the predicate that chooses
        product = self.products[score.product]
        axes = operands[place].axes

        def mask(i: int, kind: str, other: int | None = None) -> None:
            value = operands[i]
            if program.is_literal(eqn.invars[i]) or ax.shape(value.axes) != ax.shape(axes):
                return
            sizes: dict[int, int] = collections.defaultdict(lambda: 1)
            for factor in ax.factors(axes):
                if factor.role:
                    sizes[factor.role.number] *= factor.size
            if any(n != product.factors[number][1].size for number, n in sizes.items()):
                product.problem = product.problem or "a mask covers a part of its logits alone"
            constant = tuple(is_copy(axis) for axis in value.axes)
            seen = None if other is None else at.refs[other]
            product.add(Mask(at.refs[i], kind, axes, constant, seen))

        if score.stage == "logits":
            if chosen:
                known = operands[3 - place].number
                if known is None or known <= BLOCKED:
                    literal = program.is_literal(eqn.invars[3 - place])
                    mask(0, kind, 3 - place if known is None and not literal else None)
            elif name in ("add", "sub", "add_any", "min") and others:
                bias = operands[others[0]]
                if bias.mask or bias.data:
                    mask(others[0], "bias" if name != "sub" else "subtracted")
            return score
        # After the division, what depends on no data is dropout.
        blocked = chosen and operands[3 - place].number == 0
        if blocked and (operands[0].data or not score.normalized):
            mask(0, kind)
        if name == "div":
            return dataclasses.replace(score, normalized=True)
        if name == "mul":
            if any(s.stage == "sum" for _, s in scored):
                return dataclasses.replace(score, normalized=True)
            for i in others:
                gains = any(  # values, which have features besides
                    is_copy(axes[n]) and not is_copy(axis)
                    for n, axis in enumerate(operands[i].axes)
                )
                if gains:
                    return dataclasses.replace(score, weighted=True)
                if operands[i].data or (operands[i].mask and not score.normalized):
                    mask(i, "factor")
        return score

    def of_several(self, operands: list[Value], main: list[tuple[int, Score]]) -> Score:
        """The sum of the logits, or of the weights, of several products."""
        place, score = main[0]
        if score.stage == "weights":  # such as the difference of two attentions
            also = score.also
            for i, other in main[1:]:
                pairs = tuple(_paired(operands[place].axes, operands[i].axes))
                also = (*also, (other.product, pairs), *other.also)
            return dataclasses.replace(score, also=also)
        # Scores of content and of position: those of queries and keys are products of data.
        both = [(i, s) for i, s in main if self.of_data(s.product)]
        place, score = (both or main)[0]
        if len({s.product for _, s in both}) > 1:
            # One that has been an attention of its own adds to the next.
            for number in {s.product for _, s in both if s.product not in self.hits}:
                product = self.products[number]
                product.problem = "its logits are the sum of several products of queries and keys"
        for i, other in main:
            numbers = dict(_paired(operands[i].axes, operands[place].axes))
            for mask in self.products[other.product].masks if other is not score else ():
                moved = _moved(mask, score.product, numbers)
                if moved is not None:
                    self.products[score.product].add(moved)
        return score

    def of_data(self, number: int) -> bool:
        """Whether both operands of a product depend on data."""
        product = self.products[number]
        return product.left.data and product.right.data

    def note_lost(self, values: Sequence[Value]) -> None:
        """Something was weighed with what was made of logits in a way that is not followed."""
        for value in values:
            for number, exponential in value.lost:
                if exponential and self.of_data(number):
                    self.products[number].lost = True

    def read_out(self, eqn: Any, operands: list[Value], value: Value) -> Value | None:
        """A product with weights: over the keys, it is what makes an attention of them."""
        dimensions = eqn.params["dimension_numbers"][0]
        for value_in, sums in zip(operands, dimensions, strict=True):
            score = value_in.score
            if score is None or score.stage not in ("logits", "weights"):
                continue
            summed = [value_in.axes[i] for i in sums]
            roles = [factor.role for factor in ax.factors(summed)]
            other = operands[1] if value_in is operands[0] else operands[0]
            heads = {role is None or role.side == SHARED for role in roles}
            if heads == {True} and not other.data:
                return dataclasses.replace(value, score=score)  # mixes or weighs heads
            if score.stage == "weights":
                return self.hit(value_in, summed, value)
        return None

    def hit(self, weights: Value, summed: Sequence[ax.Axis], result: Value) -> Value:
        """Weights were summed over some axes, together with values."""
        score = weights.score
        assert score is not None
        roles = [factor.role for factor in ax.factors(summed) if factor.role]
        keys = frozenset(role.number for role in roles if role.side != SHARED)
        sides = {role.side for role in roles if role.side != SHARED}
        if not roles:  # a single key has no factors
            free = {side for side, _, _ in self.products[score.product].factors.values()}
            sides = set([side for side in (RIGHT, LEFT) if side not in free][:1])
        if len(sides) == 1:
            (side,) = sides
            self.attend(score.product, side, keys)
            for number, pairs in score.also:
                theirs = frozenset(b for a, b in pairs if a in keys)
                factors = self.products[number].factors
                own = {factors[n][0] for n in theirs} or {side}
                self.attend(number, own.pop(), theirs)
        return dataclasses.replace(result, axes=without_roles(result.axes), outer=None)

    def attend(self, number: int, key_side: str, keys: frozenset[int]) -> None:
        """Notes that a product is one of queries and keys."""
        product = self.products[number]
        queries, key = (product.left, product.right)[:: -1 if key_side == LEFT else 1]
        alone = SHARED not in {side for side, _, _ in product.factors.values()}
        asked = math.prod(factor.size for factor in product.asked(key_side).values())
        if key.raw or (alone and not key.data):
            return  # a layer, whose weights may be computed
        if not queries.data:
            if asked == 1 and (queries.raw or alone):
                return  # weights of each token, as for pooling
            if queries.raw:
                product.problem = "its queries are a parameter as it is, or it is a layer"
        product.keys, product.key_side = keys, key_side
        if number not in self.hits:
            self.hits.append(number)


def stretched(value: Value, shape: Sequence[int]) -> Value:
    """The array, broadcast to a shape if it can be."""
    return dataclasses.replace(value, axes=ax.spread(value.axes, shape) or value.axes)


def _paired(one: ax.Axes, other: ax.Axes) -> Iterator[tuple[int, int]]:
    """The numbers of factors that stand in the same place."""
    for a, b in zip(one, other, strict=True):
        for first, second in zip(a, b, strict=False):
            if first.role and second.role:
                yield first.role.number, second.role.number


def _moved(mask: Mask, product: int, numbers: dict[int, int]) -> Mask | None:
    """A mask of one product as that of another; None where their factors do not fit."""
    if any(f.role and f.role.number not in numbers for f in ax.factors(mask.axes)):
        return None

    def moved(factor: Factor) -> Factor:
        role = factor.role and Role(product, factor.role.side, numbers[factor.role.number])
        return dataclasses.replace(factor, role=role)

    return dataclasses.replace(mask, axes=tuple(tuple(map(moved, axis)) for axis in mask.axes))
