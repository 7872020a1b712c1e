"""What a mutation is, and whether it can still be made."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A small fault that somebody might make, and that a test should notice.

    Attributes:
        name: says the fault, in lower case with hyphens.
        file: the one that it is in, relative to the root.
        old: what stands there; it occurs exactly once.
        new: the fault in its place.
        tests: files or folders of tests that should notice, as few and quick as possible.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, root: pathlib.Path) -> None:
        """Makes the fault in a tree.

        Raises:
            ValueError: it cannot be made; says why.
        """
        problem = self.problem(root)
        if problem:
            raise ValueError(problem)
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")

    def problem(self, root: pathlib.Path = ROOT) -> str:
        """Why it cannot be made in a tree, "" if it can."""
        missing = [path for path in (self.file, *self.tests) if not (root / path).exists()]
        if missing or not self.tests:
            return f"{self.name}: there is no {missing[0] if missing else 'test named'}."
        text = (root / self.file).read_text(encoding="utf-8")
        if (times := text.count(self.old)) != 1:
            return f"{self.name}: {self.file} has {self.old!r} {times} times; expected once."
        if self.old == self.new:
            return f"{self.name}: it changes nothing."
        try:
            ast.parse(text.replace(self.old, self.new))
        except SyntaxError as error:
            return f"{self.name}: it is no Python: {error}."
        return ""


def faults(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    """Mutations of one file, that the same tests should notice.

    Args:
        file: as of `Mutation`.
        tests: likewise, separated by spaces.
        *changes: of each mutation the name, what stands there and the fault.
    """
    return [Mutation(name, file, old, new, tuple(tests.split())) for name, old, new in changes]


def problems(mutations: Iterable[Mutation]) -> list[str]:
    """What is wrong with a list of mutations, a sentence each."""
    mutations = list(mutations)
    counts = Counter(mutation.name for mutation in mutations)
    twice = [f"{name}: the name occurs {n} times." for name, n in counts.items() if n > 1]
    return twice + [found for mutation in mutations if (found := mutation.problem())]
