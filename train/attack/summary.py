"""The table of attacks: the percentage that failed, by method, as a mean over seeds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import rich.console

from align_jax.config import PLAIN
from train.attack.differences import NUMBERS, differences
from train.attack.records import read_attack, summary
from train.comparison import table
from train.registry import ConfigError

WEIGHT = 0.01  # the paper's; another one is named beside the method


@dataclasses.dataclass(frozen=True)
class AttackTable:
    """One recipe's attacks on the runs of one experiment.

    Attributes:
        title: both, and the split.
        rows: per method: seeds, attacks, the percentage that failed, accuracy under attack in
            percent, queries per attack.
        findings: sentences per method, against the plain model: by seed and by example.
        files: where the numbers come from.
    """

    title: str
    rows: dict[str, table.Row]
    findings: list[str]
    files: list[str]


def summarise(folders: Sequence[pathlib.Path]) -> list[AttackTable]:
    """Puts the attacks on runs side by side, per experiment, split and recipe.

    Args:
        folders: of runs or sweeps, searched for attack-*.json at any depth.

    Returns:
        One table each.

    Raises:
        ConfigError: there are none, a file is damaged, or a seed was attacked twice.

    Example:
        >>> summarise([pathlib.Path("runs/mrpc-sweep")])[0].title  # doctest: +SKIP
        'glue-mrpc-minilm, validation: pwws'
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
        runs[content["run_seed"]] = content | summary(content["examples"]) | {"path": str(path)}
    return [_table(title, methods) for title, methods in groups.items()]


def _method(content: dict[str, Any]) -> str:
    method, weight = content["method"], content["weight"]
    return method if method == PLAIN or weight == WEIGHT else f"{method}:{weight:g}"


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
    files = [content["path"] for runs in found.values() for content in runs.values()]
    return AttackTable(title, rows, differences(found), files)


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
