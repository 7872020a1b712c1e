"""Compares many methods with the plain model: intervals, Holm's correction, detectable differences.

    python -m train.study runs/digits-sweep runs/other-sweep --csv=runs/study.csv
    python -m train.study docs/study.csv
    python -m train.study docs/study.csv --arms=energy --metrics=accuracy,loss --picture=a.png

The first takes finished runs (`python -m train.sweep`, `python -m train`) into one small table, a
line per run; the second shows what came of them, as Markdown, from that table alone. Runs of other
configs, such as controls, may be among them; what the first plain run does not have names them. To
answer one question, --arms and --metrics take a part of the runs, --baseline says what with each is
compared, and Holm's correction is over what is shown.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from align_jax import AlignmentConfig
from align_jax.config import PLAIN
from train import process
from train.comparison import study
from train.comparison.table import place
from train.places import place_of
from train.registry import ConfigError
from train.report.differences import draw_differences
from train.report.runs import Run, config_keys, is_number, read_studies, short
from train.run.folder import RESULT, making_sense_of, write_text

SKIPPED = ("seed", "alignment.method", "alignment.weight")  # columns of their own
ENDINGS = (".png", ".pdf", ".svg")  # of a picture


def collect(folders: Sequence[pathlib.Path]) -> study.Runs:
    """The finished runs in folders of runs or sweeps, with the metrics that the first one reports.

    Raises:
        ConfigError: no plain run is among them, a run is not finished, is there twice, or lacks a
            metric.
        CheckpointError: a folder holds no run, or a file in it is damaged.
    """
    studies = read_studies(folders)
    notes = [note for one in studies for note in one.notes]
    if notes:
        raise ConfigError(f"{notes[0]} Give each run once.")
    found = [run for one in studies for seeds in one.runs.values() for run in seeds.values()]
    unfinished = [run.folder for run in found if run.result is None]
    if unfinished:
        raise ConfigError(
            f"{len(unfinished)} runs are not finished, such as {unfinished[0]}; start their "
            f"command again, or remove their folders."
        )
    plain = next((run for run in found if run.values["alignment"]["method"] == PLAIN), None)
    if plain is None:
        raise ConfigError("There is no plain run among these (method none) to compare with.")
    runs: study.Runs = {}
    first: dict[Any, pathlib.Path] = {}
    for run in found:
        with making_sense_of(run.folder / RESULT):
            section = run.values["alignment"]
            arm = (_differences(run, plain), section["method"], _weight(section))
            if first.setdefault((arm, run.seed), run.folder) is not run.folder:
                raise ConfigError(
                    f"{run.folder} is the run of {first[arm, run.seed]} again: both are "
                    f"{study.name_of(arm)} with seed {run.seed}. Give each run once."
                )
            runs.setdefault(arm, {})[run.seed] = _measured(run, plain)
    return runs


def _measured(run: Run, plain: Run) -> dict[str, float]:
    """The metrics that the plain run's config reports, and whether the method aligned."""
    assert run.result is not None  # all are finished
    assert plain.result is not None
    values: dict[str, Any] = {}
    report, final = plain.values["eval"]["report"], plain.values["eval"]["final"]
    if not final:
        raise ConfigError(
            f"{plain.folder}: its config's eval.final is {final!r}; expected a split to compare, "
            f"such as ('test',). Run it again with one."
        )
    for name in report:
        split, metric = place(name, final[-1])
        found = run.result["metrics"].get(split, {})
        values[name] = found.get(metric) if isinstance(found, dict) else found
    beside = [name for name in study.BESIDE if plain.result.get(name) is not None]
    values |= {name: run.result.get(name) for name in beside}
    lacking = [name for name, value in values.items() if value is None]
    if lacking:
        raise ConfigError(
            f"{run.folder} has no {', '.join(lacking)}, which {plain.folder} reports; make both "
            f"with one config."
        )
    for name, value in values.items():
        if not is_number(value):
            where = run.folder / RESULT
            raise ConfigError(f"{where}: {name} is {value!r:.40}; expected a finite number.")
    return values


def _differences(run: Run, plain: Run) -> str:
    """What a run's config has that the plain one's has not; "" for nothing."""
    ours, theirs = config_keys(run.values), config_keys(plain.values)
    method = run.values["alignment"]["method"]
    # A plain model's settings of alignment have no effect.
    keys = [
        key for key in ours
        if key not in SKIPPED and not (method == PLAIN and key.startswith("alignment."))
    ]  # fmt: skip
    return " ".join(f"{key}={ours[key]}" for key in keys if ours[key] != theirs.get(key))


def _weight(section: dict[str, Any]) -> str:
    """Of the alignment, as a number; "" for a plain model."""
    if section["method"] == PLAIN:
        return ""
    weight = section["weight"]
    return short(AlignmentConfig(section["method"]).default_weight if weight is None else weight)


def main(arguments: list[str] | None = None) -> process.Status:
    """Runs the command; returns its exit status."""
    options = _options(arguments)
    return process.status_of(lambda: _study(options))


def _study(options: argparse.Namespace) -> None:
    picture = place_of(options.picture, "--picture") if options.picture else None
    if picture and picture.suffix.lower() not in ENDINGS:
        endings = " or ".join(ENDINGS)
        raise ConfigError(f"--picture is {options.picture!r}; expected a name in {endings}.")
    sources = [place_of(source, "SOURCE") for source in options.sources]
    tables = [source for source in sources if source.suffix == ".csv"]
    if tables and (len(sources) > 1 or options.csv):
        raise ConfigError(f"Give either {tables[0]} alone or the folders of runs.")
    runs = study.read_csv(tables[0]) if tables else collect(sources)
    shown = study.with_metrics(runs, options.metrics.split(",")) if options.metrics else runs
    text = study.to_markdown(shown, options.baseline, options.arms)
    if options.csv:
        path = place_of(options.csv, "--csv")
        write_text(path, study.to_csv(runs))
        print(f"{sum(map(len, runs.values()))} runs: {path}\n")
    print(text, end="")
    if picture:
        draw_differences(shown, picture, options.baseline, options.arms)
        print(f"Picture: {picture}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = process.parser("train.study", __doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE",
                        help="folders of runs or sweeps, or one table of them (*.csv)")  # fmt: skip
    parser.add_argument("--csv", help="where to write the table of the runs")
    parser.add_argument("--metrics", default="", help="of all, those to compare, as A,B")
    parser.add_argument("--arms", default="", help="a regular expression: compare the arms in "
                        "whose names it is found; all by default")  # fmt: skip
    parser.add_argument("--baseline", default="plain", help='the arm to compare with, or "alike": '
                        "the plain model of the same settings")  # fmt: skip
    parser.add_argument("--picture", help="where to draw the differences, as .png, .pdf or .svg")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    process.run(main)
