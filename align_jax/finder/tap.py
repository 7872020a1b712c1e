"""Runs a traced program, and hands the queries and keys of its attentions to a function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from align_jax.finder import program
from align_jax.finder.program import Ref
from align_jax.finder.site import Site

# What is called at an attention: its number, whatever was given for it, and the values of its refs.
Visit = Callable[[int, Any, Mapping[Ref, jax.Array]], Any]


def run(
    jaxpr: Any,
    arguments: Sequence[jax.Array],
    sites: Sequence[Site],
    visit: Visit,
    given: Sequence[Any],
) -> tuple[list[jax.Array], dict[int, Any]]:
    """Runs a program; visits every attention in the innermost scan or remat around it.

    So queries and keys stay there, and only what `visit` returns comes out: one for each step of a
    scan, stacked. Likewise what is `given` for a site, a tree of arrays, has a leading axis for
    each scan around it. Returns the program's results, and what the visits returned by number.
    """
    held = program.opened(jaxpr)
    homes: dict[tuple[int, ...], list[int]] = {}
    for number, site in enumerate(sites):
        homes.setdefault(_home(held[0], [ref.path for ref in site.refs]), []).append(number)
    wanted = {ref for site in sites for ref in site.refs}
    tap = _Tap(sites, wanted, homes, visit)
    results, _, visited = tap.run(held, arguments, (), dict(enumerate(given)))
    return results, visited


def _home(jaxpr: Any, paths: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The innermost scan or remat that holds all of these."""
    home: tuple[int, ...] = ()
    for depth, number in enumerate(paths[0], 1):
        prefix = paths[0][:depth]
        if any(path[:depth] != prefix for path in paths):
            break
        eqn = jaxpr.eqns[number]
        if eqn.primitive.name in ("scan", *program.REMAT):
            home = prefix
        jaxpr, _ = program.held_by(eqn)
    return home


@dataclasses.dataclass(frozen=True)
class _Tap:
    sites: Sequence[Site]
    wanted: set[Ref]
    homes: Mapping[tuple[int, ...], list[int]]
    visit: Visit

    def run(
        self,
        held: program.Held,
        arguments: Sequence[Any],
        path: tuple[int, ...],
        given: Mapping[int, Any],
        *,
        results: bool = True,
    ) -> tuple[list[Any], dict[Ref, Any], dict[int, Any]]:
        """Results (if they are wanted), tapped values, and what the visits returned."""
        jaxpr, constants = held
        values = dict(zip(jaxpr.constvars, constants, strict=False))
        values |= zip(jaxpr.invars, arguments, strict=True)
        depth = len(path)
        mine = [ref for ref in self.wanted if ref.path == path]
        below = [ref.path for ref in self.wanted if ref.path[:depth] == path != ref.path]
        entered = {at[depth] for at in below}
        needed = {ref.var for ref in mine}
        if results:
            needed |= program.read_by(jaxpr.outvars)
        kept = []
        for number, eqn in reversed(list(enumerate(jaxpr.eqns))):
            effect = results and eqn.effects
            if number in entered or effect or needed.intersection(eqn.outvars):
                kept.append((number, eqn))
                needed |= program.read_by(eqn.invars)
        tapped: dict[Ref, Any] = {}
        visited: dict[int, Any] = {}
        waiting: list[Any] = []  # equations with nothing to tap, which run together
        for number, eqn in reversed(kept):
            if number not in entered:
                waiting.append(eqn)
                continue
            program.run(jaxpr, waiting, values, needed)
            waiting = []
            operands = [program.value_of(atom, values) for atom in eqn.invars]
            wanted = [var for var in eqn.outvars if var in needed]
            here = (*path, number)
            inside = {
                n: given[n]
                for home, numbers in self.homes.items()
                if home[: depth + 1] == here
                for n in numbers
            }
            outputs, found, visits = self._enter(eqn, operands, here, inside, jaxpr, wanted)
            values |= zip(eqn.outvars, outputs, strict=False)
            tapped |= found
            visited |= visits
        program.run(jaxpr, waiting, values, needed)
        tapped |= {ref: values[ref.var] for ref in mine}
        for number in self.homes.get(path, ()):
            visited[number] = self.visit(number, given[number], tapped)
        outvars = jaxpr.outvars if results else []
        return [program.value_of(atom, values) for atom in outvars], tapped, visited

    def _enter(
        self,
        eqn: Any,
        operands: list[Any],
        path: tuple[int, ...],
        given: Mapping[int, Any],
        around: Any,
        wanted: Sequence[Any],
    ) -> tuple[list[Any], dict[Ref, Any], dict[int, Any]]:
        """One equation of the program `around` that holds something to tap."""
        name = eqn.primitive.name
        held = program.held_by(eqn)
        if name == "scan":
            return self._scan(eqn, operands, path, given)
        if name in program.REMAT:
            # What a visit outside needs has to come out.
            outside = [site for n, site in enumerate(self.sites) if n not in given]
            refs = dict.fromkeys(ref for site in outside for ref in site.refs)
            leaving = [ref for ref in refs if ref.path[: len(path)] == path]

            def remat(given: Mapping[int, Any], *arguments: Any) -> Any:
                outputs, found, visits = self.run(held, arguments, path, given)
                return outputs, [found[ref] for ref in leaving], visits

            outputs, left, visits = jax.checkpoint(
                remat, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
            )(dict(given), *operands)
            return outputs, dict(zip(leaving, left, strict=True)), visits
        arguments = operands[len(operands) - len(held[0].invars) :]
        if name in program.CUSTOM:
            # The rule is kept for the results; what is tapped is computed beside them.
            made = dict(zip(eqn.invars, operands, strict=True))
            program.run(around, [eqn] if wanted else [], made, wanted)
            outputs = [made.get(var) for var in eqn.outvars]
            _, found, visits = self.run(held, arguments, path, given, results=False)
            return outputs, found, visits
        arguments = _constrained(arguments, eqn.params.get("in_shardings"))
        outputs, found, visits = self.run(held, arguments, path, given, results=bool(wanted))
        return _constrained(outputs, eqn.params.get("out_shardings")), found, visits

    def _scan(
        self, eqn: Any, operands: list[Any], path: tuple[int, ...], given: Mapping[int, Any]
    ) -> tuple[list[Any], dict[Ref, Any], dict[int, Any]]:
        params = eqn.params
        held = program.opened(params["jaxpr"])
        shared, carried = program.scan_counts(eqn)
        fixed, start = operands[:shared], operands[shared : shared + carried]

        def step(carry: list[Any], slices: Any) -> Any:
            mine, rows = slices
            outputs, _, visits = self.run(held, [*fixed, *carry, *rows], path, mine)
            return outputs[:carried], (outputs[carried:], visits)

        carry, (stacked, visits) = jax.lax.scan(
            step,
            start,
            (dict(given), operands[shared + carried :]),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *stacked], {}, visits


def _constrained(values: list[Any], shardings: Sequence[Any] | None) -> list[Any]:
    """What a jit that is no longer there had said of its values' shardings."""
    if not shardings or len(shardings) != len(values):
        return values
    return [
        jax.lax.with_sharding_constraint(x, sharding)
        if isinstance(sharding, jax.sharding.Sharding)
        else x
        for x, sharding in zip(values, shardings, strict=True)
    ]
