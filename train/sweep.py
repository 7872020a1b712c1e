"""Runs methods x seeds of a config and compares them in a table and a picture.

    python -m train.sweep --config=train/configs/digits.py
    python -m train.sweep --config=train/configs/digits.py --methods=none,ct:1,ct:0.1 --seeds=0,1,2

Started again with the same folder, it skips the runs that are finished and resumes the one that is
not. The folder ends up with table.md and table.json, which also say which differences to the plain
model are more than noise between seeds, and with pictures of what was measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import rich.console
from absl import flags
from ml_collections import ConfigDict

from align_jax.config import PLAIN
from train import cli, process
from train.benchmarks.step_time import StepTime, measure_step_times, read_step_times
from train.comparison import table
from train.comparison.markdown import literal
from train.comparison.statistics import differences_to_plain, noise
from train.experiment.experiment import build_alignment, settled_config
from train.places import place_of
from train.registry import ConfigError
from train.report.gallery import write_pictures
from train.report.runs import read_run
from train.run import loop
from train.run.folder import (
    COMMAND,
    RESULT,
    STEP_TIMES,
    TABLE,
    claimed,
    read_json,
    to_json,
    write_json,
    write_text,
)
from train.run.interruption import OutOfTime

CONFIG = cli.define_config_flag()
METHODS = flags.DEFINE_list(
    "methods",
    ["none", "energy", "gan", "ct"],
    "Alignment methods to compare; ct:0.1 is one with another weight than the config's.",
)
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds; each method runs with each of them.")
BUDGET = flags.DEFINE_float("budget", math.inf, "Minutes; the same command goes on from there.")
COLUMNS = (
    "Scale-free MMD: the distance of keys and queries, 0 for one distribution.",
    "Classifier: accuracy of one trained to tell them apart, 0.5 by chance.",
    "Over plain: the time of a step, as a multiple of plain's; the median.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder; by default runs/<name>-sweep.")


def sweep(
    config: ConfigDict,
    methods: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    console: rich.console.Console,
    *,
    command: str = "",
    deadline: float | None = None,
) -> dict[str, table.Row]:
    """Runs what is missing, times the steps, writes and prints the comparison.

    Args:
        config: the experiment; its method and seed are replaced.
        methods: alignment methods, "none" for the plain model.
        seeds: the seeds of each method.
        workdir: holds a folder per run, and the comparison.
        console: where to print.
        command: that does the same, kept for the report.
        deadline: when to stop, by `time.monotonic`; the same call goes on from there.

    Returns:
        The rows of the table.

    Raises:
        ConfigError: there are no methods or seeds, one is named twice, there is no such method, or
            no split is evaluated at the end.
        CheckpointError: the folder is not ours or holds another experiment's sweep.
        InUse: another process works on it.
        OutOfTime: the deadline has passed before all was done.
    """
    for flag, given in (("methods", methods), ("seeds", seeds)):
        if not given or len(set(given)) < len(given):
            shown = ",".join(map(str, given))
            raise ConfigError(f"--{flag} is {shown!r}; expected one or more, each of them once.")
    for method in methods:
        build_alignment(variant(config, method, 0))  # refuses what there is not, before any run
    if any(not 0 <= seed < 2**32 for seed in seeds):
        raise ConfigError(f"--seeds are {list(seeds)}; expected numbers from 0 to 2**32 - 1.")
    config = settled_config(config)
    if not config.eval.final:
        raise ConfigError("config.eval.final is empty; name the split whose metrics to compare.")
    with claimed(workdir, variant(config, PLAIN, 0)):
        path = workdir / COMMAND
        known = path.read_text("utf-8").splitlines() if path.exists() else []
        if command and not known:
            write_text(path, command + "\n")
        rows = _sweep(config, methods, seeds, workdir, console, deadline)
        if command:  # beside those of other methods and seeds; one that was refused leaves none
            write_text(path, "\n".join(dict.fromkeys([*known, command])) + "\n")
        return rows


def _sweep(
    config: ConfigDict, methods: Sequence[str], seeds: Sequence[int], workdir: pathlib.Path,
    console: rich.console.Console, deadline: float | None,
) -> dict[str, table.Row]:  # fmt: skip
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for seed, method in itertools.product(seeds, methods):
        results[method].append(_finished(config, method, seed, workdir, console, deadline))
    _check_time(deadline)
    times = _step_times(config, methods, workdir, console)
    split, finished = config.eval.final[-1], [x for runs in results.values() for x in runs]
    metrics, left_out = table.measured(finished, split, config.eval.report)
    rows = table.comparison(results, times, split, metrics)
    hardware = dict.fromkeys(run["hardware"] for run in finished if "hardware" in run)
    title = f"{config.name}: seeds {', '.join(map(str, seeds))}; {' and '.join(hardware)}"
    differences = differences_to_plain(table.by_seed(results, split, metrics))
    found = {(table.method_name(name), metric): x for (name, metric), x in differences.items()}
    said = left_out + [one.sentence(*name) for name, one in found.items()]
    shown = "".join(f"- {literal(sentence)}\n" for sentence in [*said, *COLUMNS])
    write_text(workdir / "table.md", f"{literal(title)}\n\n{table.to_markdown(rows)}\n{shown}")
    content = {"title": title, "rows": table.to_json(rows), "findings": said}
    write_json(workdir / TABLE, content)
    console.print(table.to_rich(table.brief(rows), title))
    for sentence in [*left_out, *noise(found), *COLUMNS]:
        console.print(sentence, markup=False, highlight=False)
    console.print(f"Table with all columns and differences: {workdir / 'table.md'}")
    of_this = {run_folder(workdir, method, seed) for method in methods for seed in seeds}
    others = sorted({x.parent for x in workdir.glob(f"*-seed*/{RESULT}") if x.is_file()} - of_this)
    if others:
        console.print(
            f"Finished here before, and not asked for, so not in the table: "
            f"{', '.join(folder.name for folder in others)}.",
            markup=False, highlight=False,
        )  # fmt: skip
    drawn = {method: read_run(run_folder(workdir, method, seeds[0])) for method in methods}
    for line in write_pictures(drawn, workdir):
        console.print(line, markup=False, highlight=False)
    return rows


def variant(config: ConfigDict, method: str, seed: int) -> ConfigDict:
    """A copy of a config with another method ("ct:0.1" sets the weight as well) and seed."""
    config = config.copy_and_resolve_references()
    config.alignment.method, _, weight = method.partition(":")
    try:
        if weight:
            config.alignment.weight = float(weight)
    except ValueError as error:
        raise ConfigError(
            f"--methods: {method!r}; expected METHOD or METHOD:WEIGHT, such as ct:0.1."
        ) from error
    config.seed = seed
    return config


def run_folder(workdir: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    """Where a sweep keeps one run."""
    return workdir / f"{method.replace(':', '-')}-seed{seed}"


def finished_result(
    config: ConfigDict, method: str, seed: int, workdir: pathlib.Path
) -> dict[str, Any] | None:
    """What one of a sweep's runs came to; None if it is not finished, or was another config's."""
    path = run_folder(workdir, method, seed) / RESULT
    if not path.exists():
        return None
    result = read_json(path)
    return result if result.get("config") == to_json(variant(config, method, seed)) else None


def _finished(
    config: ConfigDict, method: str, seed: int, workdir: pathlib.Path,
    console: rich.console.Console, deadline: float | None,
) -> dict[str, Any]:  # fmt: skip
    """The result of one run, from its folder if it is finished."""
    folder = run_folder(workdir, method, seed)
    result = finished_result(config, method, seed, workdir)
    if result is not None:
        console.print(f"{folder}: finished before")
        return result
    config = variant(config, method, seed)
    _check_time(deadline)  # before the compilation
    result = loop.run(config, folder, console=console, summary=False, deadline=deadline)
    console.print(f"{folder}: {result['steps']} steps in {result['seconds']:.1f} s")
    return result


def _check_time(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise OutOfTime("The time is over. The same command goes on with what is missing.")


def _step_times(
    config: ConfigDict, methods: Sequence[str], workdir: pathlib.Path, console: rich.console.Console
) -> dict[str, StepTime]:
    """The times of an earlier start if they cover these methods, else new ones."""
    times = read_step_times(workdir)
    base = {method: method.partition(":")[0] for method in methods}  # a weight costs no time
    if not set(base.values()) <= set(times):
        console.print("All runs are finished. Now a step of each method is timed, in turns.")
        times = measure_step_times(config, list(dict.fromkeys(base.values())))
        write_json(workdir / STEP_TIMES, {x: dataclasses.asdict(y) for x, y in times.items()})
    return {method: times[base[method]] for method in methods}


def main() -> None:
    """Runs the command."""
    config = cli.require_config(CONFIG)
    workdir = place_of(WORKDIR.value or f"runs/{config.name}-sweep", "--workdir")
    try:
        seeds = [int(seed) for seed in SEEDS.value]
    except ValueError as error:
        raise ConfigError(f"--seeds: {error}; expected whole numbers, such as 0,1,2.") from error
    command = shlex.join(["python", "-m", "train.sweep", *sys.argv[1:]])
    if not BUDGET.value >= 0:
        raise ConfigError(f"--budget is {BUDGET.value:g}; expected minutes, 0 or more.")
    console, deadline = cli.console(), time.monotonic() + 60 * BUDGET.value
    sweep(config, METHODS.value, seeds, workdir, console, command=command, deadline=deadline)


if __name__ == "__main__":
    cli.run_command(main, process.RESUMABLE)
