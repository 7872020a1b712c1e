"""Imports within `train/` go one way: down the list of rooms, and between files in no circle."""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import train

ROOT = pathlib.Path(train.__file__).parent
# From the bottom up: a room imports only from itself and from those before it.
ROOMS = (
    "process", "registry", "places", "tasks", "data", "step", "devices", "experiment", "configs",
    "run", "cli", "benchmarks", "comparison", "predictor", "attack", "report", "study", "sweep",
    "predict", "reproduce", "__main__",
)  # fmt: skip


def modules() -> dict[str, pathlib.Path]:
    """Every module of `train/`, without the package's own start."""
    files = [file for file in ROOT.rglob("*.py") if file != ROOT / "__init__.py"]
    return {
        ".".join(("train", *file.relative_to(ROOT).with_suffix("").parts)): file for file in files
    }


def imported(file: pathlib.Path) -> Iterator[str]:
    """The modules of `train/` that a file names in its imports, also inside functions."""
    known = modules()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{name.name}" for name in node.names]
            found = [name for name in inside if name in known]
            package = f"{node.module}.__init__"
            if len(found) < len(inside):
                found += [name for name in (node.module, package) if name in known]
            yield from found


def test_no_room_imports_from_one_above_it() -> None:
    upwards = [
        f"{name} imports {other}"
        for name, file in modules().items()
        for other in imported(file)
        if ROOMS.index(other.split(".")[1]) > ROOMS.index(name.split(".")[1])
    ]
    assert not upwards


def test_the_list_of_rooms_is_the_tree() -> None:
    assert {name.split(".")[1] for name in modules()} == set(ROOMS)


def test_files_do_not_import_each_other_in_a_circle() -> None:
    graph = {name: set(imported(file)) for name, file in modules().items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)
