"""Which attentions a model has: what `aligned` would align, and what it cannot."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from align_jax import tapping
from align_jax.aligned_function import AlignedFunction, aligned_function
from align_jax.config import PLAIN
from align_jax.convert import AlignedModel, traced_module
from align_jax.finder import Part, Steps


@dataclasses.dataclass(frozen=True)
class AttentionRow:
    """One attention, or what may be one."""

    name: str  # of its module, or of the parameters that its queries and keys come from
    samples: int = 0  # windows, for one, count as samples of their own
    queries: int = 0
    keys: int = 0
    heads: int = 0
    features: int = 0  # width of a query
    layers: int = 1  # of a scan that it stands for
    calls: int = 1  # that share its parameters
    kind: str = ""  # "self", "cross", or "" for what cannot be aligned
    masked: bool = False  # whether a mask blocks pairs
    problem: str = ""  # why it cannot be aligned; empty if it can

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of a table."""
        remarks = ["masked"] if self.masked else []
        counts = (("layers", self.layers), ("calls", self.calls))
        remarks += [f"{n} {what}" for what, n in counts if n > 1]
        sizes = map(str, (self.samples, self.queries, self.keys, self.heads, self.features))
        return self.name or tapping.ROOT, *sizes, self.kind, ", ".join(remarks)


@dataclasses.dataclass(frozen=True)
class AttentionReport:
    """What `attention_report` returns; `str` of it is a table.

    Attributes:
      found: the attentions that can be aligned.
      skipped: those that cannot, and why.
      opaque: kernels that cannot be looked into, and may hold attentions.

    Example:
      >>> print(AttentionReport((), (), ()))
      No attention was found.
    """

    found: tuple[AttentionRow, ...]
    skipped: tuple[AttentionRow, ...]
    opaque: tuple[AttentionRow, ...]

    def __str__(self) -> str:
        lines = [] if self.found else ["No attention was found."]
        header = ("attention", "samples", "queries", "keys", "heads", "features", "", "")
        rows = [header, *(row.cells for row in self.found)] if self.found else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *sizes, kind, remarks in rows:
            numbers = [cell.rjust(n) for cell, n in zip(sizes, widths[1:6], strict=True)]
            cells = [name.ljust(widths[0]), *numbers, kind.ljust(widths[6]), remarks]
            lines.append("  ".join(cells).rstrip())
        for title, missed in (("cannot be aligned", self.skipped), ("opaque", self.opaque)):
            lines += [f"{title}: {row.name or tapping.ROOT}: {row.problem}" for row in missed]
        return "\n".join(lines)


def attention_report(
    model: Any, *arguments: Any, parameters: int | Sequence[int] = 0, **keywords: Any
) -> AttentionReport:
    """Lists the attentions of a model or function, and what of them cannot be aligned.

    Nothing is computed: the model is traced with the shapes of its arguments.

    Args:
      model: a Linen or NNX module, aligned or not; or a function of arrays, whose arguments then
        begin with its parameters.
      *arguments: of a call; arrays, or `jax.ShapeDtypeStruct`.
      parameters: of a function, the numbers of the arguments that hold no data.
      **keywords: of a call of a module.

    Returns:
      What was found, skipped and opaque; `print` shows it as a table.

    Raises:
      TypeError: if `model` is no module and no function.

    Example:
      >>> import jax.numpy as jnp
      >>> print(attention_report(nn.SelfAttention(num_heads=2), jnp.ones((3, 5, 8))))
      attention    samples  queries  keys  heads  features
      (the model)        3        5     5      2         4  self
    """
    traced = _traced(model, arguments, parameters, keywords)
    rows: dict[Any, AttentionRow] = {}
    for site, place in zip(traced.found.sites, traced.places, strict=True):
        if place in rows:
            rows[place] = dataclasses.replace(rows[place], calls=rows[place].calls + 1)
            continue
        sizes = site.sizes
        counts = dict.fromkeys(Steps, 1)
        for length, steps in site.scans:
            counts[steps] *= length
        rows[place] = AttentionRow(
            site.name + "".join(f":{end}" for end in place[-1].split("_")[1:]),
            sizes[Part.SAMPLE] * counts[Steps.SAMPLES],
            sizes[Part.QUERY],
            sizes[Part.KEY],
            sizes[Part.HEAD],
            sizes[Part.FEATURE],
            counts[Steps.LAYERS],
            counts[Steps.CALLS],
            "self" if site.self_attention else "cross",
            bool(site.masks),
        )
    skipped, opaque = (
        tuple(
            AttentionRow(x.name, problem=x.reason) for x in traced.found.missed if x.opaque == own
        )
        for own in (False, True)
    )
    return AttentionReport(tuple(rows.values()), skipped, opaque)


def _traced(
    model: Any, arguments: Sequence[Any], parameters: int | Sequence[int], keywords: dict[str, Any]
) -> tapping.Traced:
    if isinstance(model, AlignedModel):
        model = model.original.model
    if isinstance(model, nn.Module):
        return traced_module(model, arguments, keywords)
    if isinstance(model, AlignedFunction):
        return model.traced(arguments)
    from flax import nnx

    if isinstance(model, nnx.Module):
        from align_jax.convert_nnx import AlignedNNX, traced_call

        model = model.model if isinstance(model, AlignedNNX) else model
        return traced_call(model, "__call__", arguments, keywords)[0]
    if not callable(model) or isinstance(model, type):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"attention_report() takes a module or a function, got {got}.")
    return aligned_function(model, PLAIN, parameters=parameters).traced(arguments)
