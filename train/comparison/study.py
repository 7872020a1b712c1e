"""A study: many methods against the plain model, corrected for being many.

It is made of one row per run: what differs from the plain model's config, method, weight, seed, and
a number for each metric. What shares the first three is an arm; arms are paired by seed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.config import PLAIN
from train.comparison import markdown
from train.comparison.markdown import cell, literal
from train.comparison.statistics import CONFIDENCE, detectable_difference, holm, paired_t_test
from train.comparison.table import over_seeds
from train.registry import ConfigError

ARM = ("config", "method", "weight")  # what names one, of the columns before the metrics
COLUMNS = (*ARM, "seed")
# Whether a method aligned, and how long queries and keys are; no hypothesis is about them.
BESIDE = ("scale_free_mmd", "query_norm", "key_norm")
PERCENT = ("accuracy", "ece", "ece_scaled", "adaptive_ece")  # of any split; shown in points
ALIKE = "alike"  # a baseline: the plain model of the same config
_ALIGNMENT = re.compile(r"(^| )alignment\.[\w.]+=.*?(?= [\w.]+=|$)")  # settings in a config's text

Arm = tuple[str, str, str]
# Of each arm: seed -> metric -> value.
Runs = dict[Arm, dict[int, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm against its baseline, by one metric.

    Attributes:
        arm: what differs in the config, the method and its weight.
        metric: what is compared.
        pairs: seeds that both have.
        mean: of the differences.
        low, high: the interval of that mean, not adjusted for being one of many.
        spread: standard deviation of the differences; without any, the test says nothing.
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
        ConfigError: it cannot be read, lacks a column, holds one or a run twice, or what should be
            a finite number is none.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""), strict=True)
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
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path} has the column {twice!r} twice; expected it once. Remove one.")
    runs: Runs = {}
    for number, row in lines:
        if None in row:
            raise ConfigError(
                f"{path}, line {number}: there are more fields than columns; correct or remove it."
            )
        config, method, weight = (_field(path, number, row, name, str, "text") for name in ARM)
        seed = _field(path, number, row, "seed", int, "a whole number")
        values = {x: _field(path, number, row, x, float, "a finite number") for x in metrics}
        of_arm = runs.setdefault((config, method, weight), {})
        if seed in of_arm:
            raise ConfigError(f"{path}, line {number}: this run is there twice; remove one.")
        of_arm[seed] = values
    return runs


def _field(
    path: pathlib.Path, line: int, row: Mapping[str, str | None], column: str,
    kind: Callable[[str], Any], expected: str,
) -> Any:  # fmt: skip
    text = row[column]
    with contextlib.suppress(ValueError):
        # Python would read 0_6 as 6.
        if text is not None and (kind is str or ("_" not in text and np.isfinite(float(text)))):
            return kind(text)
    given = "is not there" if text is None else f"is {text!r:.40}"
    raise ConfigError(
        f"{path}, line {line}: {column!r} {given}; expected {expected}. Correct or remove the line."
    )


def with_metrics(runs: Runs, metrics: Sequence[str]) -> Runs:
    """The same runs with some of their metrics, and `BESIDE`.

    Raises:
        ConfigError: they have no such metric.
    """
    known = _metrics(runs)
    for name in metrics:
        if name not in known:
            raise ConfigError(f"The study has no metric {name!r}; it has {', '.join(known)}.")
    kept = [name for name in known if name in (*metrics, *BESIDE)]
    return {
        arm: {seed: {name: values[name] for name in kept} for seed, values in of_seeds.items()}
        for arm, of_seeds in runs.items()
    }


def baselines(runs: Runs, baseline: str = "plain", arms: str = "") -> dict[Arm, Arm]:
    """What each arm is compared with.

    Args:
        runs: of the study.
        baseline: the name of an arm, such as "plain"; or `ALIKE`: each aligned arm is compared with
            the plain model of the same config, whose settings of alignment have no effect.
        arms: a regular expression; an arm whose name it is not found in is not compared.

    Raises:
        ConfigError: there is no such baseline, nothing is left to compare, or the expression is
            none.

    Example:
        >>> runs = {arm: {} for arm in [("", "none", ""), ("", "ct", "1"), ("lr=0.3", "none", "")]}
        >>> [name_of(arm) for arm in baselines(runs, ALIKE)]
        ['ct (weight 1)']
    """
    names = "; ".join(map(name_of, runs))
    if baseline == ALIKE:
        plain = {_ALIGNMENT.sub("", arm[0]).strip(): arm for arm in runs if arm[1] == PLAIN}
        alike = {arm: plain.get(_ALIGNMENT.sub("", arm[0]).strip()) for arm in runs}
        pairs = {arm: base for arm, base in alike.items() if arm[1] != PLAIN and base}
    else:
        base = [arm for arm in runs if name_of(arm) == baseline]
        if not base:
            raise ConfigError(
                f"There is no run of {baseline!r} to compare with; the study has {names}. Run it "
                f"with the same seeds."
            )
        pairs = {arm: base[0] for arm in runs if arm != base[0]}
    try:
        pairs = {arm: base for arm, base in pairs.items() if re.search(arms, name_of(arm))}
    except re.error as error:
        raise ConfigError(f"{arms!r} is no regular expression: {error}.") from error
    if not pairs:
        raise ConfigError(
            f"With the baseline {baseline!r} no arm that {arms!r} is found in is left to compare; "
            f"the study has {names}."
        )
    return pairs


def compare(runs: Runs, baseline: str = "plain", arms: str = "") -> list[Comparison]:
    """Every arm against its baseline, by every metric; arguments as of `baselines`.

    Raises:
        ConfigError: as of `baselines`, an arm has fewer than two seeds that its baseline has, or
            all metrics are of `BESIDE`.
    """
    if set(_metrics(runs)) <= set(BESIDE):
        raise ConfigError(
            f"There is nothing to compare: {', '.join(_metrics(runs))} can only stand beside other "
            f"metrics; expected another one, such as accuracy. Name one with --metrics."
        )
    found, p_values = [], []
    for arm, base in baselines(runs, baseline, arms).items():
        seeds = sorted(set(runs[arm]) & set(runs[base]))
        if len(seeds) < 2:
            raise ConfigError(
                f"{name_of(arm)} and {name_of(base)} have too few seeds in common, "
                f"{len(seeds)}; expected 2 or more. Run both with the same seeds."
            )
        for metric in _metrics(runs):
            if metric in BESIDE:
                continue
            values, others = ([runs[of][x][metric] for x in seeds] for of in (arm, base))
            difference = paired_t_test(values, others)
            low, high = difference.low, difference.high
            if low is None or high is None:  # there are two seeds or more
                raise ConfigError(
                    f"{name_of(arm)} and {name_of(base)} differ in {metric} by more than a number "
                    f"can hold. Correct the values, or leave it out by --metrics."
                )
            spread = float(np.std(np.subtract(values, others), ddof=1))
            spread = 0.0 if difference.p_value is None else spread  # without what rounding leaves
            p_values.append(1.0 if difference.p_value is None else difference.p_value)
            found.append(Comparison(arm, metric, len(seeds), difference.mean, low, high, spread, 1))
    return [
        dataclasses.replace(comparison, adjusted=p_value)
        for comparison, p_value in zip(found, holm(p_values), strict=True)
    ]


def to_markdown(runs: Runs, baseline: str = "plain", arms: str = "") -> str:
    """The tables of a study: its differences, and which of them it could have found.

    Arguments as of `baselines`, errors as of `compare`.
    """
    found, pairs = compare(runs, baseline, arms), baselines(runs, baseline, arms)
    metrics = [metric for metric in _metrics(runs) if metric not in BESIDE]
    beside = [metric for metric in _metrics(runs) if metric in BESIDE]
    of = {(one.arm, one.metric): one for one in found}

    def means(arm: Arm, names: Sequence[str]) -> list[str]:
        columns = {name: [x[name] * factor(name) for x in runs[arm].values()] for name in names}
        return [str(over_seeds(column, _digits(name))) for name, column in columns.items()]

    titles = [cell(title(name)) for name in metrics]
    rows = []
    for base in dict.fromkeys(pairs.values()):
        rows.append([name_of(base), f"{len(runs[base])}", *means(base, [*metrics, *beside])])
        for arm in (arm for arm in pairs if pairs[arm] == base):
            ones = [of[arm, metric] for metric in metrics]
            rows.append([name_of(arm), f"{ones[0].pairs}", *map(_shown, ones), *means(arm, beside)])
    differences = _table(["", "seeds", *titles, *map(cell, beside)], rows)

    least = [
        [name_of(arm), *(_detectable(of[arm, metric], len(found)) for metric in metrics)]
        for arm in pairs
    ]
    against = "the plain model of the same settings" if baseline == ALIKE else baseline
    said = (
        f"Difference to {literal(against)}, {CONFIDENCE:.0%} interval of the paired t-test (not "
        f"adjusted), p after Holm's correction over the {len(found)} comparisons shown; without "
        f"sign, mean and standard deviation over seeds.",
        f"The difference that so many seeds, with the spread found, detect with 80 % power at 5 %; "
        f"after the stroke, at 5 % divided by {len(found)}.",
    )
    above, below = (textwrap.fill(sentence, 98) for sentence in said)
    alone = [
        literal(name_of(arm)) for arm in runs
        if baseline == ALIKE and arm[1] != PLAIN and arm not in pairs
        and re.search(arms, name_of(arm))
    ]  # fmt: skip
    left_out = f"\nLeft out, for no plain model has their settings: {'; '.join(alone)}.\n"
    text = f"{above}\n\n{differences}\n{below}\n\n{_table(['', *titles], least)}"
    return text + left_out if alone else text


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


def _metrics(runs: Runs) -> list[str]:
    """In the order of the first run; each of them is an error to lack."""
    first = next(iter(next(iter(runs.values())).values()))
    return list(first)


def factor(metric: str) -> float:
    """What a metric is shown multiplied by: shares of examples are shown in points of a hundred.

    Example:
        >>> factor("test_noisy/accuracy"), factor("loss")
        (100.0, 1.0)
    """
    return 100.0 if metric.rpartition("/")[2] in PERCENT else 1.0


def title(metric: str) -> str:
    """A metric's name, with the unit that it is shown in.

    Example:
        >>> title("accuracy"), title("loss")
        ('accuracy, points', 'loss')
    """
    return f"{metric}, points" if factor(metric) > 1 else metric


def _shown(one: Comparison) -> str:
    scale, digits = factor(one.metric), _digits(one.metric)
    mean, low, high = (f"{x * scale:+.{digits}f}" for x in (one.mean, one.low, one.high))
    return f"{mean} [{low}, {high}], p = {f'{one.adjusted:.2g}' if one.spread else '-'}"


def _detectable(one: Comparison, comparisons: int) -> str:
    if not one.spread:
        return "-"
    scale, digits = factor(one.metric), _digits(one.metric)
    alone, of_many = (
        detectable_difference(one.spread, one.pairs, significance=(1 - CONFIDENCE) / count)
        for count in (1, comparisons)
    )
    return f"{alone * scale:.{digits}f} / {of_many * scale:.{digits}f}"


def _digits(metric: str) -> int:
    return 2 if factor(metric) > 1 else 3


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    named = [[cell(name), *numbers] for name, *numbers in rows]
    return "\n".join(markdown.table(head, named)) + "\n"
