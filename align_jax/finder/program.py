"""Reading jaxprs, the same way for every version of JAX."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

# Where a program calls another one: the parameter of the equation that holds it.
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
REMAT = ("remat", "remat2", "checkpoint")
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call")
# Calls that run what they hold once, on the operands as they are.
CALLS = (
    "jit", "pjit", "closed_call", "core_call", "core_closed_call",
    "custom_lin", *REMAT, *CUSTOM,
)  # fmt: skip


Held = tuple[Any, Sequence[Any]]  # a jaxpr, and the values of its constants


@dataclasses.dataclass(frozen=True)
class Ref:
    """A value inside a program: the numbers of the equations that lead to it, and its variable."""

    path: tuple[int, ...]
    var: Any


def inner(eqn: Any) -> Held | None:
    """The program that an equation holds, and that program's constants; None if it holds none."""
    for name in _INNER:
        if hasattr(eqn.params.get(name), "eqns") or hasattr(eqn.params.get(name), "jaxpr"):
            return opened(eqn.params[name])
    return None


def held_by(eqn: Any) -> Held:
    """`inner` of an equation that is known to hold a program."""
    held = inner(eqn)
    assert held is not None
    return held


def opened(jaxpr: Any) -> Held:
    """A jaxpr, closed or not, as the jaxpr and the values of its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan every step sees as they are, and how many it hands on.

    The equation's own words for it differ between versions; the shapes do not: what is scanned has
    an axis more outside than inside.
    """
    inside, _ = opened(eqn.params["jaxpr"])

    def same(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)

    carried = same(eqn.outvars, inside.outvars)
    return same(eqn.invars, inside.invars) - carried, carried


def primitives(jaxpr: Any) -> set[str]:
    """The names of all that a program does, at any depth."""
    names = set()
    for eqn in opened(jaxpr)[0].eqns:
        names.add({"exp2": "exp"}.get(eqn.primitive.name, eqn.primitive.name))
        for value in eqn.params.values():
            for held in value if isinstance(value, tuple | list) else (value,):
                if hasattr(held, "eqns") or hasattr(held, "jaxpr"):
                    names |= primitives(held)
    return names


def is_literal(atom: Any) -> bool:
    """Whether an operand is a number that stands in the program."""
    return isinstance(atom, Literal)


def value_of(atom: Any, values: Mapping[Any, Any]) -> Any:
    """The value of an operand."""
    return atom.val if is_literal(atom) else values[atom]


def read_by(atoms: Sequence[Any]) -> set[Any]:
    """The variables among some operands."""
    return {atom for atom in atoms if not is_literal(atom)}


def run(jaxpr: Any, eqns: Sequence[Any], values: dict[Any, Any], wanted: Collection[Any]) -> None:
    """Runs a stretch of a jaxpr's equations, and puts those results that are wanted into `values`.

    These hold every variable that the stretch reads and does not make.
    """
    made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
    read = [var for eqn in eqns for var in read_by(eqn.invars) if var not in made]
    inputs, results = list(dict.fromkeys(read)), [var for var in made if var in wanted]
    effects = set().union(*(eqn.effects for eqn in eqns))
    stretch = jaxpr.replace(
        constvars=[], invars=inputs, outvars=results, eqns=list(eqns), effects=effects
    )
    outputs = jaxpr_as_fun(ClosedJaxpr(stretch, ()))(*(values[var] for var in inputs))
    values |= zip(results, outputs, strict=True)
