"""A study: many methods against the plain model, corrected for being many.

It is made of one row per run: what differs from the plain model's config, method, weight, seed, and
a number for each metric. Methods are paired with the plain model by seed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from align_jax.config import PLAIN
from train.comparison import markdown
from train.comparison.markdown import literal
from train.comparison.statistics import (
    CONFIDENCE,
    detectable_difference,
    holm,
    paired_t_test,
)
from train.comparison.table import Cell
from train.registry import ConfigError

ARM = ("config", "method", "weight")  # what names one, of the columns before the metrics
COLUMNS = (*ARM, "seed")
BESIDE = ("scale_free_mmd",)  # whether a method aligned; no hypothesis is about it
PERCENT = ("accuracy", "ece")  # shown in points

Arm = tuple[str, str, str]
# Of each arm: seed -> metric -> value.
Runs = dict[Arm, dict[int, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One method against the plain model, by one metric.

    Attributes:
        arm: what differs in the config, the method and its weight.
        metric: what is compared.
        pairs: seeds that both have.
        mean: of the differences.
        low, high: the interval of that mean, not adjusted for being one of many.
        spread: standard deviation of the differences.
        adjusted: p-value of the paired t-test after Holm's correction over all of the study.
    """

    arm: Arm
    metric: str
    pairs: int
    mean: float
    low: float
    high: float
    spread: float
    adjusted: float


def to_csv(runs: Runs) -> str:
    """One line per run, as `read_csv` reads it."""
    metrics = _metrics(runs)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *metrics])
    for arm, seeds in runs.items():
        for seed, values in sorted(seeds.items()):
            writer.writerow([*arm, seed, *(f"{values[metric]:.8g}" for metric in metrics)])
    return file.getvalue()


def read_csv(path: pathlib.Path) -> Runs:
    """The runs of a study's file.

    Args:
        path: to a table with the columns "config", "method", "weight", "seed", and one for each
            metric.

    Raises:
        ConfigError: it cannot be read, lacks a column, holds a run twice, or what should be a
            finite number is none.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""), strict=True)
        lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as a table: {error}.") from error
    names = reader.fieldnames or []
    missing = [name for name in COLUMNS if name not in names]
    metrics = [name for name in names if name not in COLUMNS]
    if missing or not metrics or not lines:
        raise ConfigError(
            f"{path} is no study: expected the columns {', '.join(COLUMNS)} and one for each "
            f"metric, and a line per run; it has {', '.join(names)} and {len(lines)} runs."
        )
    runs: Runs = {}
    for number, row in lines:
        try:
            config, method, weight = (row[name] for name in ARM)
            seed, values = int(row["seed"]), {name: float(row[name]) for name in metrics}
            if None in row or not np.isfinite(list(values.values())).all():
                raise ValueError("a number is not finite, or there are more fields than columns")
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {number}: {error}; mend or remove it.") from error
        of_arm = runs.setdefault((config, method, weight), {})
        if seed in of_arm:
            raise ConfigError(f"{path}, line {number}: this run is there twice; remove one.")
        of_arm[seed] = values
    return runs


def compare(runs: Runs) -> list[Comparison]:
    """Every method against the plain model, by every metric.

    Raises:
        ConfigError: there is no plain model, or a method has fewer than two seeds that it has too.
    """
    plain = _plain(runs)
    found, p_values = [], []
    for arm, of_seeds in runs.items():
        if arm == plain:
            continue
        seeds = sorted(set(of_seeds) & set(runs[plain]))
        if len(seeds) < 2:
            raise ConfigError(
                f"{name_of(arm)} shares {len(seeds)} seeds with the plain model; expected 2 or "
                f"more, or nothing can be said. Run it with the same seeds."
            )
        for metric in _metrics(runs):
            if metric in BESIDE:
                continue
            values, base = ([of[x][metric] for x in seeds] for of in (of_seeds, runs[plain]))
            difference = paired_t_test(values, base)
            spread = float(np.std(np.subtract(values, base), ddof=1))
            low, high, p_value = difference.low, difference.high, difference.p_value
            assert low is not None  # there are two seeds or more
            assert high is not None
            assert p_value is not None
            p_values.append(p_value)
            found.append(Comparison(arm, metric, len(seeds), difference.mean, low, high, spread, 1))
    return [
        dataclasses.replace(comparison, adjusted=p_value)
        for comparison, p_value in zip(found, holm(p_values), strict=True)
    ]


def to_markdown(runs: Runs) -> str:
    """The tables of a study: its differences, and which of them it could have found.

    Raises:
        ConfigError: as of `compare`.
    """
    found, plain = compare(runs), _plain(runs)
    metrics = [metric for metric in _metrics(runs) if metric not in BESIDE]
    beside = [metric for metric in _metrics(runs) if metric in BESIDE]
    of = {(one.arm, one.metric): one for one in found}
    arms = [arm for arm in runs if arm != plain]

    def means(arm: Arm, names: Sequence[str]) -> list[str]:
        return [str(_cell([x[name] for x in runs[arm].values()], name)) for name in names]

    titles = [f"{name}, points" if name in PERCENT else name for name in metrics]
    rows = [[name_of(plain), f"{len(runs[plain])}", *means(plain, metrics), *means(plain, beside)]]
    for arm in arms:
        ones = [of[arm, metric] for metric in metrics]
        rows.append([name_of(arm), f"{ones[0].pairs}", *map(_shown, ones), *means(arm, beside)])
    differences = _table(["", "seeds", *titles, *beside], rows)

    least = [
        [name_of(arm), *(_detectable(of[arm, metric], len(found)) for metric in metrics)]
        for arm in arms
    ]
    return (
        f"Difference to plain, {CONFIDENCE:.0%} interval of the paired t-test (not adjusted), p "
        f"after Holm's correction\nover all {len(found)} comparisons; in the first row mean and "
        f"standard deviation over seeds.\n\n{differences}\nThe difference that so many seeds, with "
        f"the spread found, detect with 80 % power at 5 %;\nafter the stroke, at 5 % divided by "
        f"{len(found)}.\n\n{_table(['', *titles], least)}"
    )


def name_of(arm: Arm) -> str:
    """An arm in words.

    Example:
        >>> name_of(("model.dropout=0.3", "energy", "1"))
        'energy (weight 1), model.dropout=0.3'
    """
    config, method, weight = arm
    name = "plain" if method == PLAIN else method
    name += f" (weight {weight})" if weight else ""
    return f"{name}, {config}" if config else name


def _plain(runs: Runs) -> Arm:
    plain = [arm for arm in runs if arm[0] == "" and arm[1] == PLAIN]
    if not plain:
        raise ConfigError(
            f'There is no run of the plain model, with method "{PLAIN}" and an empty config, to '
            f"compare with. Run it with the same seeds."
        )
    return plain[0]


def _metrics(runs: Runs) -> list[str]:
    """In the order of the first run; each of them is an error to lack."""
    first = next(iter(next(iter(runs.values())).values()))
    return list(first)


def _cell(values: Sequence[float], metric: str) -> Cell:
    scale = _scale(metric)
    std = float(np.std(values, ddof=1)) * scale if len(values) > 1 else None
    return Cell(float(np.mean(values)) * scale, std, _digits(metric))


def _shown(one: Comparison) -> str:
    scale, digits = _scale(one.metric), _digits(one.metric)
    mean, low, high = (f"{x * scale:+.{digits}f}" for x in (one.mean, one.low, one.high))
    return f"{mean} [{low}, {high}], p = {one.adjusted:.2g}"


def _detectable(one: Comparison, comparisons: int) -> str:
    scale, digits = _scale(one.metric), _digits(one.metric)
    alone, of_many = (
        detectable_difference(one.spread, one.pairs, significance=(1 - CONFIDENCE) / count)
        for count in (1, comparisons)
    )
    return f"{alone * scale:.{digits}f} / {of_many * scale:.{digits}f}"


def _scale(metric: str) -> float:
    return 100.0 if metric in PERCENT else 1.0


def _digits(metric: str) -> int:
    return 2 if metric in PERCENT else 3


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    named = [[literal(name), *numbers] for name, *numbers in rows]
    return "\n".join(markdown.table(head, named)) + "\n"
