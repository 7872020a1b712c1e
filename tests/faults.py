"""The table of faults that were tried, from the tests that try them.

A test says with `@pytest.mark.fault("what happens", "what comes of it")` that it is a row.
`python -m pytest -m fault --faults=docs/faults.md` runs them and writes the table where the file
has it.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

BEGIN, END = "<!-- faults: written by tests -->\n", "<!-- end of faults -->\n"
HEAD = "| Fault | Outcome | Tests passed |\n| --- | --- | ---: |\n"


class FaultTable:
    """A pytest plugin that collects the rows while the tests run, and writes them at the end."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._rows: dict[tuple[str, str], list[bool]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Counts a test that has run."""
        for name, row in report.user_properties:
            if name == "fault" and report.when == "call":
                self._rows.setdefault(tuple(row), []).append(report.passed)

    def pytest_sessionfinish(self) -> None:
        """Writes the table."""
        lines = [
            f"| {fault} | {outcome} | {sum(passed)} of {len(passed)} |\n"
            for (fault, outcome), passed in self._rows.items()
        ]
        before, _, rest = self._path.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        self._path.write_text(before + BEGIN + HEAD + "".join(lines) + END + after)


def mark(items: list[pytest.Item]) -> None:
    """Lets the marked tests' reports carry their row, also from another process."""
    for item in items:
        for marker in item.iter_markers("fault"):
            item.user_properties.append(("fault", marker.args))
