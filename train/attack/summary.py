"""Tables of attacks: the percentage that failed, by method, and its difference to the plain."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console

from align_jax.config import PLAIN
from train.attack.records import FAILED, SKIPPED, read_attack, summary
from train.comparison import table
from train.comparison.statistics import paired_difference
from train.registry import ConfigError

PERCENT = "failed_percent"
# What a file says of all its attacks, and the column that shows it.
NUMBERS = {
    PERCENT: "failed attacks, %",
    "accuracy_under_attack": "accuracy under attack, %",
    "queries_per_attack": "queries per attack",
}
BOTH_RIGHT = "failed attacks on what both had right, %"


@dataclasses.dataclass(frozen=True)
class AttackTable:
    """One recipe's attacks on the runs of one experiment: a row per method, and `differences`."""

    title: str
    rows: dict[str, table.Row]
    findings: list[str]


def summarise(folders: Sequence[pathlib.Path]) -> list[AttackTable]:
    """Puts the attacks on runs side by side, per experiment, split and recipe.

    The folders, of runs or sweeps, are searched for attack-*.json at any depth. Raises ConfigError
    if there are none, a file is none of an attack, or a seed was attacked twice; CheckpointError if
    a file was edited.
    """
    paths = sorted({path for folder in folders for path in folder.rglob("attack-*.json")})
    if not paths:
        listed = ", ".join(map(str, folders))
        raise ConfigError(f"There is no attack-*.json under {listed}; make one with --checkpoint.")
    groups: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for path in paths:
        content = read_attack(path)
        group = f"{content['experiment']}, {content['split']}: {content['recipe']}"
        runs = groups.setdefault(group, {}).setdefault(_method(content), {})
        if content["run_seed"] in runs:
            raise ConfigError(
                f"{path} and {runs[content['run_seed']]['path']} attack the same method and seed; "
                f"give folders that hold one of them."
            )
        runs[content["run_seed"]] = content | {"path": str(path)}
    return [_table(title, methods) for title, methods in groups.items()]


def _method(content: dict[str, Any]) -> str:
    method, weight = content["method"], content["weight"]
    return method if method == PLAIN or weight is None else f"{method}:{weight}"


def _table(title: str, methods: dict[str, dict[int, dict[str, Any]]]) -> AttackTable:
    rows = {}
    found = dict(sorted(methods.items(), key=lambda item: (item[0] != PLAIN, item[0])))
    for method, runs in found.items():
        counts = runs.values()
        rows[method] = {
            "seeds": table.Cell(len(counts), digits=0),
            "attacks": table.Cell(sum(x["attacks"] for x in counts), digits=0),
            **{
                column: table.over_seeds([x[name] for x in counts], digits=1)
                for name, column in NUMBERS.items()
            },
        }
    return AttackTable(title, rows, differences(found))


def print_tables(tables: Sequence[AttackTable], console: rich.console.Console) -> None:
    """Prints each table with its findings."""
    for one in tables:
        console.print(table.to_rich(one.rows, one.title))
        for sentence in one.findings:
            console.print(f"- {sentence}", markup=False, highlight=False)


def sentence(header: dict[str, Any], examples: Sequence[dict[str, Any]]) -> str:
    """What became of an attack, in words."""
    counted = summary(examples)
    if not counted["attacks"]:
        return f"{header['recipe']}: no attacks; {counted['skipped']} examples were wrong already."
    return (
        f"{header['recipe']}: {counted['failed_percent']:.1f} % of {counted['attacks']} attacks "
        f"failed, after {counted['queries_per_attack']:.0f} queries each; {counted['skipped']} "
        f"examples were wrong already."
    )


def differences(
    found: Mapping[str, Mapping[int, dict[str, Any]]], name: Callable[[str], str] = str
) -> list[str]:
    """Two sentences per method, against the plain model: paired by seed, and by example.

    Args:
        found: method -> seed of the run -> what its file holds: "failed_percent", None without
            attacks, and "examples", with "row" and "outcome".
        name: what to call a method.
    """
    said, plain = [], found.get(PLAIN, {})
    for method, runs in found.items():
        common = [
            seed
            for seed in runs
            if seed in plain and None not in (runs[seed][PERCENT], plain[seed][PERCENT])
        ]
        if method == PLAIN or not common:
            continue
        own, base = ([of[seed][PERCENT] for seed in common] for of in (runs, plain))
        said.append(paired_difference(own, base).sentence(name(method), NUMBERS[PERCENT]))
        own, base = _by_example([(runs[seed], plain[seed]) for seed in common])
        if own:
            difference = paired_difference(own, base, unit="example")
            said.append(difference.sentence(name(method), BOTH_RIGHT))
    return said


def _by_example(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
) -> tuple[list[float], list[float]]:
    """The percentages that failed, of each example that both of a pair had right.

    An example that several pairs share counts once, as the mean: its attacks are not independent.
    """
    rows: dict[int, list[tuple[float, float]]] = {}
    for pair in pairs:
        own, base = (
            {x["row"]: x["outcome"] == FAILED for x in of["examples"] if x["outcome"] != SKIPPED}
            for of in pair
        )
        for row in own.keys() & base.keys():
            rows.setdefault(row, []).append((100.0 * own[row], 100.0 * base[row]))
    means = [np.mean(rows[row], axis=0) for row in sorted(rows)]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]
