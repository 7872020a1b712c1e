"""The file of an attack: who was attacked and how, and what became of each example."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from train.data.labelled import Examples
from train.registry import ConfigError
from train.run.folder import CheckpointError, making_sense_of, read_json, write_json

FAILED, SUCCESSFUL, SKIPPED = "failed", "successful", "skipped"
OUTCOMES = (FAILED, SUCCESSFUL, SKIPPED)
# What every file says of its attack.
HEADER = ("recipe", "experiment", "method", "weight", "run_seed", "split", "seed")


@dataclasses.dataclass(frozen=True)
class Target:
    """An example to attack: its place in the split, its id, its texts by field, and its class."""

    row: int
    identity: int
    texts: tuple[str, ...]
    label: int


class AttackFile:
    """A JSON file that is whole after every example, so that an attack goes on where it stopped.

    The records of an earlier start are read. The header says what determines the outcomes; raises
    ConfigError if the file is damaged, or holds another attack.
    """

    def __init__(self, path: pathlib.Path, header: dict[str, Any]) -> None:
        self.path, self.header = path, header
        self.examples: list[dict[str, Any]] = []
        if not path.exists():
            return
        content = read_attack(path)
        for name, value in header.items():
            if content.get(name) != value:
                raise ConfigError(
                    f"{path} holds another attack: {name} was {content.get(name)!r}, now "
                    f"{value!r}. Name another file with --output, or remove it."
                )
        self.examples = content["examples"]

    @property
    def attacks(self) -> int:
        """The number of examples that were attacked, skipped ones not counted."""
        return sum(record["outcome"] != SKIPPED for record in self.examples)

    def add(self, record: dict[str, Any]) -> None:
        """Adds an example and writes the file."""
        self.examples.append(record)
        content = self.header | summary(self.examples) | {"examples": self.examples}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)


def read_attack(path: pathlib.Path) -> dict[str, Any]:
    """The content of an attack's file, with its `summary` made anew.

    Raises:
        ConfigError: it is none.
        CheckpointError: it was edited, and its examples are not what an attack writes.
    """
    try:
        content = read_json(path)
    except (OSError, CheckpointError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Remove it to start anew.") from error
    if not isinstance(content.get("examples"), list) or not content.keys() >= set(HEADER):
        raise ConfigError(f"{path} is no file of train.attack. Name another one with --output.")
    return content | checked_summary(path, content["examples"])


def checked_summary(path: pathlib.Path, examples: Any) -> dict[str, Any]:
    """The `summary` of a file's examples; raises CheckpointError if they are no such records."""
    with making_sense_of(path):
        {example["row"] for example in examples}  # by which attacks on two models are paired
        return summary(examples)


def summary(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of records, and the percentage of failed attacks.

    Returns:
        "attacks" (examples that the model had right), "failed", "successful", "skipped";
        "failed_percent" of the attacks, "accuracy_under_attack" in percent of all examples and
        "queries_per_attack", each None where there is nothing to divide by.

    Example:
        >>> summary([{"outcome": "failed", "queries": 9}])["failed_percent"]
        100.0
    """
    counts = {name: sum(x["outcome"] == name for x in examples) for name in OUTCOMES}
    attacks = counts[FAILED] + counts[SUCCESSFUL]
    queries = sum(x["queries"] for x in examples if x["outcome"] != SKIPPED)
    failed = counts[FAILED]
    return {
        "attacks": attacks,
        **counts,
        "failed_percent": 100.0 * failed / attacks if attacks else None,
        "accuracy_under_attack": 100.0 * failed / len(examples) if examples else None,
        "queries_per_attack": queries / attacks if attacks else None,
    }


def run_attacks(
    targets: Sequence[Target],
    attack: Callable[[Target], dict[str, Any]],
    file: AttackFile,
    count: int,
) -> Iterator[dict[str, Any]]:
    """Attacks one example after the other, those that the file holds left out.

    Yields what `attack` makes of each target ("outcome", "queries", ...) once it is in the file,
    until there are `count` attacks there; skipped examples are none. 0 is for all targets.
    """
    for target in targets[len(file.examples) :]:
        if count and file.attacks >= count:
            return
        file.add({"row": target.row, "id": target.identity, "label": target.label} | attack(target))
        yield file.examples[-1]


def targets_of(examples: Examples, order: Sequence[int]) -> list[Target]:
    """The examples of a split, in an order."""
    return [
        Target(row, int(examples.ids[row]), examples.texts(row), int(examples.labels[row]))
        for row in order
    ]
