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
    scan, stacked.

    Args:
      jaxpr: of `jax.make_jaxpr`.
      arguments: its inputs.
      sites: the attentions, found in this jaxpr.
      visit: is called with a site's number, what was given for it, and the values of its refs.
      given: for each site, a tree of arrays; where a site lies in scans, with a leading axis for
        each of them.

    Returns:
      The program's results, and by the number of each site what `visit` returned.
    """
    opened, constants = program.opened(jaxpr)
    homes: dict[tuple[int, ...], list[int]] = {}
    for number, site in enumerate(sites):
        homes.setdefault(_home(opened, [ref.path for ref in site.refs]), []).append(number)
    wanted = {ref for site in sites for ref in site.refs}
    tap = _Tap(sites, wanted, homes, visit)
    results, _, visited = tap.run(opened, constants, arguments, (), dict(enumerate(given)))
    return results, visited


def _home(jaxpr: Any, paths: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The innermost scan or remat that holds all of these."""
    home: tuple[int, ...] = ()
    first = paths[0]
    for depth, number in enumerate(first):
        prefix = first[: depth + 1]
        if any(path[: depth + 1] != prefix for path in paths):
            break
        eqn = jaxpr.eqns[number]
        if _is_room(eqn):
            home = prefix
        held = program.inner(eqn)
        assert held is not None
        jaxpr = held[0]
    return home


def _is_room(eqn: Any) -> bool:
    return eqn.primitive.name == "scan" or eqn.primitive.name in program.REMAT


@dataclasses.dataclass(frozen=True)
class _Tap:
    sites: Sequence[Site]
    wanted: set[Ref]
    homes: Mapping[tuple[int, ...], list[int]]
    visit: Visit

    def run(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        arguments: Sequence[Any],
        path: tuple[int, ...],
        given: Mapping[int, Any],
        *,
        results: bool = True,
    ) -> tuple[list[Any], dict[Ref, Any], dict[int, Any]]:
        """Results (if they are wanted), tapped values, and what the visits returned."""
        values: dict[Any, Any] = {}
        values.update(zip(jaxpr.constvars, constants, strict=False))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        tapped: dict[Ref, Any] = {}
        visited: dict[int, Any] = {}
        mine = [ref for ref in self.wanted if ref.path == path]
        needed = {ref.var for ref in mine}
        if results:
            needed |= {atom for atom in jaxpr.outvars if not program.is_literal(atom)}
        stretches = self._stretches(jaxpr, path)
        # From the end: what of each stretch is read later.
        asked: list[list[Any]] = []
        for eqns, number in reversed(stretches):
            made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
            asked.append([var for var in made if var in needed])
            if number is not None or asked[-1]:
                kept = eqns if results or number is not None else _read_for(eqns, asked[-1])
                needed |= {
                    atom for eqn in kept for atom in eqn.invars if not program.is_literal(atom)
                }
        for (eqns, number), wanted in zip(stretches, reversed(asked), strict=True):
            if number is None:
                kept = eqns if results else _read_for(eqns, wanted)
                program.run(jaxpr, kept, values, wanted)
                continue
            (eqn,) = eqns
            operands = [
                atom.val if program.is_literal(atom) else values[atom] for atom in eqn.invars
            ]
            inside = {n: given[n] for n in self._within((*path, number)) if n in given}
            outputs, found, visits = self._enter(
                eqn, operands, (*path, number), inside, jaxpr, wanted
            )
            values.update(zip(eqn.outvars, outputs, strict=False))
            tapped |= found
            visited |= visits
        tapped |= {ref: values[ref.var] for ref in mine}
        for number in self.homes.get(path, ()):
            visited[number] = self.visit(number, given[number], tapped)
        outputs = []
        if results:
            outputs = [
                atom.val if program.is_literal(atom) else values[atom] for atom in jaxpr.outvars
            ]
        return outputs, tapped, visited

    def _stretches(self, jaxpr: Any, path: tuple[int, ...]) -> list[tuple[list[Any], int | None]]:
        """Equations that hold something to tap, each with its number, and all between them."""
        numbers = {
            ref.path[len(path)]
            for ref in self.wanted
            if len(ref.path) > len(path) and ref.path[: len(path)] == path
        }
        stretches: list[tuple[list[Any], int | None]] = [([], None)]
        for number, eqn in enumerate(jaxpr.eqns):
            if number in numbers:
                stretches += [([eqn], number), ([], None)]
            else:
                stretches[-1][0].append(eqn)
        return [stretch for stretch in stretches if stretch[0]]

    def _within(self, path: tuple[int, ...]) -> list[int]:
        """The numbers of the sites that are visited in here."""
        return [
            number
            for home, numbers in self.homes.items()
            if home[: len(path)] == path
            for number in numbers
        ]

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
        held = program.inner(eqn)
        assert held is not None
        jaxpr, constants = held
        if name == "scan":
            return self._scan(eqn, operands, path, given)
        if name in program.REMAT:
            # What a visit outside needs has to come out.
            leaving = self._leaving(path)

            def remat(given: Mapping[int, Any], *arguments: Any) -> Any:
                outputs, found, visits = self.run(jaxpr, constants, arguments, path, given)
                return outputs, [found[ref] for ref in leaving], visits

            outputs, left, visits = jax.checkpoint(
                remat, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
            )(dict(given), *operands)
            return outputs, dict(zip(leaving, left, strict=True)), visits
        arguments = operands[len(operands) - len(jaxpr.invars) :]
        if name in program.CUSTOM:
            # The rule is kept for the results; what is tapped is computed beside them.
            made = dict(zip(eqn.invars, operands, strict=True)) if wanted else {}
            program.run(around, [eqn], made, wanted)
            outputs = [made.get(var) for var in eqn.outvars]
            _, found, visits = self.run(jaxpr, constants, arguments, path, given, results=False)
            return outputs, found, visits
        arguments = _constrained(arguments, eqn.params.get("in_shardings"))
        outputs, found, visits = self.run(
            jaxpr, constants, arguments, path, given, results=bool(wanted)
        )
        return _constrained(outputs, eqn.params.get("out_shardings")), found, visits

    def _leaving(self, path: tuple[int, ...]) -> list[Ref]:
        """The values in the room at this path that a visit outside of it needs."""
        inside = set(self._within(path))
        return list(
            dict.fromkeys(
                ref
                for number, site in enumerate(self.sites)
                if number not in inside
                for ref in site.refs
                if ref.path[: len(path)] == path
            )
        )

    def _scan(
        self, eqn: Any, operands: list[Any], path: tuple[int, ...], given: Mapping[int, Any]
    ) -> tuple[list[Any], dict[Ref, Any], dict[int, Any]]:
        params = eqn.params
        jaxpr, constants = program.opened(params["jaxpr"])
        shared, carried = program.scan_counts(eqn)
        fixed, start = operands[:shared], operands[shared : shared + carried]

        def step(carry: list[Any], slices: Any) -> Any:
            mine, rows = slices
            outputs, _, visits = self.run(jaxpr, constants, [*fixed, *carry, *rows], path, mine)
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


def _read_for(eqns: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """The equations that these variables depend on."""
    needed = set(wanted)
    kept = []
    for eqn in reversed(eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed |= {atom for atom in eqn.invars if not program.is_literal(atom)}
    return kept[::-1]


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
