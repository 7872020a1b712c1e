"""Attention kernels that a jaxpr cannot be looked into, but that take queries and keys."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from align_jax.finder import axes as ax
from align_jax.finder import program
from align_jax.finder.axes import SHARED, Factor, Role
from align_jax.finder.program import Ref
from align_jax.finder.site import Mask, Operand, Part, Site
from align_jax.finder.value import Scan, Value, identities, is_inexact, steps_of

# JAX's own for TPU and GPU, and cuDNN's: their axes in order, batch, heads, tokens and features.
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
OPAQUE = {
    "pallas_call", "custom_call", "ffi_call", "tpu_custom_call", "triton_kernel_call",
    "mosaic_gpu_custom_call", "pure_callback", "io_callback",
}  # fmt: skip


def kernel_site(
    eqn: Any, operands: Sequence[Value], path: tuple[int, ...], scans: Sequence[Scan]
) -> Site | None:
    """The attention that an equation computes with a kernel that is known; without a name yet."""
    called = called_name(eqn) or eqn.primitive.name
    layout = KERNELS.get(called)
    if layout is None:
        return None
    arrays = [
        i
        for i, (atom, value) in enumerate(zip(eqn.invars, operands, strict=True))
        if len(value.axes) in (3, 4) and is_inexact(atom.aval)
    ]
    held = program.inner(eqn)
    if len(arrays) < 3 or (held is not None and not program.primitives(held[0]) & OPAQUE):
        return None  # a function of that name that can be looked into
    refs = [(Ref(path, eqn.invars[i]), operands[i]) for i in arrays[:2]]
    layout = layout[-len(refs[0][1].axes) :]
    # Keys without an axis of heads serve the queries' all.
    layouts = [layout, layout if len(refs[1][1].axes) == len(layout) else layout.replace("H", "")]
    numbered = {"B": 0, "H": 1 if layouts[0] == layouts[1] else 4}
    sides = []
    for tokens, (ref, value), own in zip((2, 3), refs, layouts, strict=True):
        numbers = tuple(
            (None if letter == "D" else tokens if letter == "N" else numbered[letter],)
            for letter in own
        )
        axes = tuple(
            (Factor(n, origin=ax.came_from(("kernel", i))),)
            for i, n in enumerate(ax.shape(value.axes))
        )
        sides.append(Operand(ref, axes, numbers, value.scale))
    masks: tuple[Mask, ...] = ()
    place = 3 if called.startswith("dot_product_attention") else arrays[3] if arrays[3:] else 0
    bias = operands[place] if place < len(operands) else operands[0]
    if place and len(bias.axes) == 4 and all(ax.shape(bias.axes)):
        numbers_of = {"B": 0, "H": 1, "N": 2, "D": 3}  # of logits: batch, heads, queries, keys
        roles = tuple(
            (Factor(n, role=Role(-1, SHARED, numbers_of[letter])),)
            for letter, n in zip("BHND", ax.shape(bias.axes), strict=True)
        )
        masks = (Mask(Ref(path, eqn.invars[place]), "bias", roles, (False,) * 4),)
    if layouts[0] == layouts[1]:
        place = layout.index("H")
        heads = [ax.size(value.axes[place]) for _, value in refs]
        if heads[0] != heads[1]:
            sides = [_grouped(side, layout, heads[1]) for side in sides]
    tokens_of = [value.axes[own.index("N")] for (_, value), own in zip(refs, layouts, strict=True)]
    parts = {0: Part.SAMPLE, 1: Part.HEAD, 2: Part.QUERY, 3: Part.KEY, 4: Part.GROUP}
    return Site(
        "",
        sides[0],
        sides[1],
        parts=parts,
        order={n: n for n in parts},
        masks=masks,
        self_attention=identities(tokens_of[0]) == identities(tokens_of[1]),
        calls=tuple(v.leaf for _, v in refs),
        scans=steps_of(scans, refs[0][1]),
        kernel=called,
    )


def called_name(eqn: Any) -> str:
    """The name of what an equation calls."""
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
