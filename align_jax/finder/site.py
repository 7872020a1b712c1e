"""An attention that was found: where its queries and keys are, and how to lay them out."""

import dataclasses
import enum
import functools
import itertools
import math
import operator
from collections.abc import Hashable, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax.finder.axes import Axes, Factor, factors
from align_jax.finder.program import Ref
from align_jax.masks import token_masks

# What is added to a logit below this blocks the pair. A pair that is merely unlikely is not.
BLOCKED = -1e3


class Part(enum.IntEnum):
    """What a factor of the axes of queries, keys or logits counts."""

    SAMPLE = 0
    HEAD = 1
    GROUP = 2  # heads that the queries have beyond those of the keys, or the keys beyond theirs
    QUERY = 3
    KEY = 4
    FEATURE = 5


class Steps(enum.Enum):
    """What the steps of a scan around an attention are."""

    LAYERS = "layers"  # each has parameters of its own
    CALLS = "calls"  # of one attention
    SAMPLES = "samples"


@dataclasses.dataclass(frozen=True)
class Operand:
    """Queries or keys, as they enter their product."""

    ref: Ref
    axes: Axes  # of the array; one along which it does not change has no factors
    # Of each factor in the product; None if summed over.
    numbers: tuple[tuple[int | None, ...], ...]
    scale: float = 1.0  # the number that the program has multiplied it by

    @property
    def numbered(self) -> list[tuple[Factor, int | None]]:
        """Its factors, each with its number."""
        return list(zip(factors(self.axes), itertools.chain(*self.numbers), strict=True))


@dataclasses.dataclass(frozen=True)
class Mask:
    """What blocks pairs of tokens: a value of the logits' shape.

    Of the kinds "keep" and "block" it is a predicate, of "bias" it is added to the logits, of
    "subtracted" taken off them, and of "factor" their exponentials are multiplied by it.
    """

    ref: Ref
    kind: str
    axes: Axes  # of the logits
    constant: tuple[bool, ...]  # for every axis, whether the mask does not change along it
    # What stands in the place of a blocked logit; None if that is known to be far below 0.
    other: Ref | None = None


@dataclasses.dataclass
class Site:
    """An attention in a program."""

    name: str  # the path of the module, or of the parameters, that queries and keys come from
    query: Operand
    key: Operand
    parts: Mapping[int, Part]  # what each factor of the product counts, by the factor's number
    order: Mapping[int, int]  # where it stands among those of its part, by its number
    masks: tuple[Mask, ...]
    self_attention: bool  # whether queries and keys are the same tokens
    calls: Hashable  # equal for two calls of one attention, which share their networks
    scans: tuple[tuple[int, Steps], ...] = ()  # around it, outermost first: lengths and steps
    kernel: str = ""  # that computes it, if one does

    @property
    def refs(self) -> set[Ref]:
        """The values that `arranged` needs."""
        others = {mask.other for mask in self.masks if mask.other}
        return {self.query.ref, self.key.ref, *others, *(mask.ref for mask in self.masks)}

    @property
    def sizes(self) -> dict[Part, int]:
        """How many samples, heads, queries, keys and features there are."""
        query, key = self._part_sizes(self.query), self._part_sizes(self.key)
        heads = query[Part.HEAD] * query[Part.GROUP] * key[Part.GROUP]
        samples = max(query[Part.SAMPLE], key[Part.SAMPLE])
        return query | {Part.HEAD: heads, Part.KEY: key[Part.KEY], Part.SAMPLE: samples}

    def arranged(
        self, values: Mapping[Ref, Array]
    ) -> tuple[
        Float[Array, "B N H D"],
        Float[Array, "B M H D"],
        Bool[Array, "B N"] | None,
        Bool[Array, "B M"] | None,
    ]:
        """Queries, keys, and which of their tokens take part; None for all.

        Args:
          values: those of all `refs`.
        """
        query = self._laid_out(self.query, Part.QUERY, values)
        key = self._laid_out(self.key, Part.KEY, values)
        samples = max(query.shape[0], key.shape[0])
        # Heads that share keys each have queries of their own, and the same keys.
        query, key = query[:, :, :, :, None], key[:, :, :, None]
        split = *query.shape[2:4], *key.shape[4:]
        query, key = (
            jnp.broadcast_to(x, (samples, x.shape[1], *split)).reshape(
                samples, x.shape[1], -1, split[-1]
            )
            for x in (query, key)
        )
        if not self.masks:
            return query, key, None, None
        allowed = functools.reduce(
            operator.and_, (self._pairs(mask, values) for mask in self.masks)
        )
        sizes = query.shape[1], key.shape[1]
        masks = token_masks(allowed, *sizes, self_attention=self.self_attention)
        query_mask, key_mask = (
            jnp.broadcast_to(mask, (samples, n)) for mask, n in zip(masks, sizes, strict=True)
        )
        return query, key, query_mask, key_mask

    def _part_sizes(self, operand: Operand) -> dict[Part, int]:
        sizes = dict.fromkeys(Part, 1)
        for factor, part, _ in self._factors(operand):
            sizes[part] *= factor.size
        return sizes

    def _factors(self, operand: Operand) -> list[tuple[Factor, Part, int]]:
        """Its factors, what each of them counts, and where it stands among those that do."""
        return [
            (factor, *((Part.FEATURE, 0) if n is None else (self.parts[n], self.order[n])))
            for factor, n in operand.numbered
        ]

    def _laid_out(self, operand: Operand, tokens: Part, values: Mapping[Ref, Array]) -> Array:
        """The array as `[samples, tokens, heads, groups, features]`."""
        x = _without_copies(values[operand.ref], [not axis for axis in operand.axes])
        own = self._factors(operand)
        x = x.reshape([factor.size for factor, _, _ in own])
        axes: list[int] = []
        sizes: list[int] = []
        for part in (Part.SAMPLE, tokens, Part.HEAD, Part.GROUP, Part.FEATURE):
            mine = [i for i, (_, counted, _) in enumerate(own) if counted == part]
            if part != Part.FEATURE:
                mine.sort(key=lambda i: (own[i][2], -own[i][0].stride))
            axes += mine
            sizes.append(math.prod(own[i][0].size for i in mine))
        x = x.transpose(axes).reshape(sizes)
        return x if operand.scale == 1.0 else x / jnp.asarray(operand.scale, x.dtype)

    def _pairs(self, mask: Mask, values: Mapping[Ref, Array]) -> Bool[Array, "B H N M"]:
        """The pairs that a mask allows; an axis along which it does not change has length 1."""
        allowed = _without_copies(values[mask.ref], mask.constant)
        if mask.kind == "bias":
            allowed = allowed > BLOCKED
        elif mask.kind == "subtracted":
            allowed = allowed < -BLOCKED
        elif mask.kind == "factor":
            allowed = allowed != 0
        elif mask.kind == "block":
            allowed = ~allowed
        if mask.other is not None:
            allowed |= _without_copies(values[mask.other], mask.constant) > BLOCKED
        every = list(factors(mask.axes))
        constant = [same for axis, same in zip(mask.axes, mask.constant, strict=True) for _ in axis]
        present = [1 if one else f.size for f, one in zip(every, constant, strict=True)]
        places = [self._place(factor) for factor in every]
        axes: list[int] = []
        full: list[int] = []
        sizes: list[int] = []
        for group in ((Part.SAMPLE,), (Part.HEAD, Part.GROUP), (Part.QUERY,), (Part.KEY,)):
            mine = [i for i, (part, *_) in enumerate(places) if part in group]
            mine.sort(key=places.__getitem__)
            changes = any(present[i] > 1 for i in mine)
            whole = [every[i].size if changes else 1 for i in mine]
            axes += mine
            full += whole
            sizes.append(math.prod(whole))
        allowed = allowed.reshape(present).transpose(axes)
        return jnp.broadcast_to(allowed, full).reshape(sizes)

    def _place(self, factor: Factor) -> tuple[Part, int, int]:
        """What it counts, and where it stands among those that do, major first."""
        if factor.role is None:  # what mixes heads puts an axis of its own in their place
            return Part.HEAD, 0, -factor.stride
        number = factor.role.number
        return self.parts[number], self.order[number], -factor.stride


def _without_copies(x: Array, constant: Sequence[bool]) -> Array:
    """One entry of every axis along which nothing changes: whoever broadcast it, reads it once."""
    return x[tuple(slice(0, 1) if same else slice(None) for same in constant)]
