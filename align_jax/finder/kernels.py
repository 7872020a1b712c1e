"""Attention kernels that a jaxpr cannot be looked into, but that take queries and keys."""

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
    query, key = (operands[i] for i in arrays[:2])
    layout = layout[-len(query.axes) :]
    # Keys without an axis of heads serve the queries' all.
    of_keys = layout if len(key.axes) == len(layout) else layout.replace("H", "")
    heads = [ax.size(v.axes[layout.index("H")]) for v in (query, key)] if of_keys == layout else []
    parts = {0: Part.SAMPLE, 1: Part.HEAD, 2: Part.QUERY, 3: Part.KEY, 4: Part.GROUP}
    sides = []
    for tokens, i, own in zip((2, 3), arrays, (layout, of_keys), strict=False):
        axes: list[ax.Axis] = []
        numbers: list[tuple[int | None, ...]] = []
        numbered = {"B": 0, "H": 1 if heads else 4, "N": tokens, "D": None}
        for place, (letter, n) in enumerate(zip(own, ax.shape(operands[i].axes), strict=True)):
            factor = Factor(n, origin=ax.came_from(("kernel", place)))
            grouped = letter == "H" and heads and n != heads[1]
            axes.append(ax.split(factor, heads[1]) if grouped else (factor,))
            numbers.append((1, 4) if grouped else (numbered[letter],))
        ref = Ref(path, eqn.invars[i])
        sides.append(Operand(ref, tuple(axes), tuple(numbers), operands[i].scale))
    masks: tuple[Mask, ...] = ()
    place = 3 if called.startswith("dot_product_attention") else arrays[3] if arrays[3:] else 0
    bias = operands[place] if place < len(operands) else operands[0]
    if place and len(bias.axes) == 4 and all(ax.shape(bias.axes)):
        # Of logits: samples, heads, queries, keys.
        roles = tuple(
            (Factor(n, role=Role(-1, SHARED, number)),)
            for number, n in enumerate(ax.shape(bias.axes))
        )
        masks = (Mask(Ref(path, eqn.invars[place]), "bias", roles, (False,) * 4),)
    return Site(
        "",
        sides[0],
        sides[1],
        parts=parts,
        order={n: n for n in parts},
        masks=masks,
        self_attention=identities(query.axes[layout.index("N")])
        == identities(key.axes[of_keys.index("N")]),
        calls=(query.leaf, key.leaf),
        scans=steps_of(scans, query),
        kernel=called,
    )


def called_name(eqn: Any) -> str:
    """The name of what an equation calls."""
    name = eqn.params.get("name") or eqn.params.get("name_and_src_info") or ""
    return str(getattr(name, "name", name)).split(" ")[0]
