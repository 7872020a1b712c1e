"""Runs what a machine can of the paper's tables, and writes a report on it.

    python -m train.reproduce
    python -m train.reproduce --budget=60 --only=cora,cola

Says first what it is going to run, how long that takes and what is missing, such as data that are
not prepared. Started again, it skips what is finished and goes on with what is not; after --budget
minutes of training it saves the run that it is in. At the end the folder's report/ holds a page and
a Markdown file, where each number has its command, its seeds and its hardware.

The experiments are those of `train/reproduce/experiments.py`, cheap and telling ones first.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from collections.abc import Sequence

import jax
import rich.console
import rich.table

from train import cli, process
from train.places import place_of
from train.registry import check_known
from train.report.contents import Section, Table
from train.report.page import PAGE, TEXT, write_report
from train.reproduce.entries import Entry, Progress
from train.reproduce.experiments import ENTRIES
from train.run.folder import CONFIG, CheckpointError, NotWritten
from train.run.hardware import hardware
from train.run.interruption import OutOfTime
from train.run.lock import locked
from train.run.trainer import TrainingDiverged


def reproduce(
    entries: Sequence[Entry],
    workdir: pathlib.Path,
    console: rich.console.Console,
    budget: float | None = None,
) -> None:
    """Runs the entries one after the other, each in a folder of its own, and writes the report.

    The budget is the minutes of training after which to stop, None for as many as it takes; the
    report comes on top.
    """
    deadline = None if budget is None else time.monotonic() + 60 * budget
    with console.status("looking at what there is"):
        lacking = {entry.name: entry.lacks() for entry in entries}
        progress = {
            entry.name: entry.progress(workdir) for entry in entries if not lacking[entry.name]
        }
    _print_plan(entries, lacking, progress, console)
    notes = [f"{name} was not run: {' '.join(why.split())}" for name, why in lacking.items() if why]
    for entry in entries:
        if entry.name not in progress or progress[entry.name].done:
            continue
        console.rule(entry.name)
        try:
            entry.run(workdir, console, deadline)
        except OutOfTime as stop:
            waiting = [x.name for x in entries if x.name in progress and not progress[x.name].done]
            waiting = waiting[waiting.index(entry.name) :]
            notes.append(
                f"The budget of {budget:g} minutes was used up at {entry.name}: {stop} Not "
                f"finished: {', '.join(waiting)}. The same command goes on with them."
            )
            break
        except (TrainingDiverged, CheckpointError, ValueError, OSError) as error:
            if isinstance(error, NotWritten) or process.hinders_all(error):
                raise  # the next one could not be written either
            notes.append(f"{entry.name} failed: {error}")
        jax.clear_caches()  # the programs of one experiment are of no use to the next
    for note in notes:
        console.print(note, markup=False, highlight=False)
    available = [entry for entry in entries if entry.name in progress]
    _report(available, workdir, notes, console)


def _print_plan(
    entries: Sequence[Entry], lacking: dict[str, str], progress: dict[str, Progress],
    console: rich.console.Console,
) -> None:  # fmt: skip
    table = rich.table.Table(title=f"On {hardware()}", title_justify="left")
    for column in ("experiment", "paper", "methods", "seeds", "finished", "minutes left"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        found = progress.get(entry.name)
        finished = found.finished if found else "cannot run"
        minutes = f"about {math.ceil(found.minutes)}" if found else "-"
        seeds = ",".join(map(str, entry.of.seeds))
        methods = ",".join(entry.of.methods)
        table.add_row(entry.name, entry.table, methods, seeds, finished, minutes)
    console.print(table)
    for name, why in lacking.items():
        if why:
            console.print(f"{name} lacks: {why}", markup=False, highlight=False)


def _report(
    entries: Sequence[Entry], workdir: pathlib.Path, notes: Sequence[str],
    console: rich.console.Console,
) -> None:  # fmt: skip
    folders = dict.fromkeys(workdir / entry.of.name for entry in entries)
    begun = [folder for folder in folders if any(folder.glob(f"*/{CONFIG}"))]
    if not begun:
        console.print("Nothing has been run, so there is no report.")
        return
    rows = [
        [entry.name, entry.table, entry.progress(workdir).finished, entry.command]
        for entry in entries
    ]
    caption = "What was to be run, and how much of it is finished."
    table = Table(caption, ["experiment", "paper", "runs", "command"], rows)
    overview = Section("Overview", tables=[table], missing=list(notes))
    output = workdir / "report"
    with console.status("writing the report") as status:

        def say(title: str) -> None:
            status.update(f"writing the report: {title}")

        write_report(begun, output, overview=overview, say=say)
    console.print(f"Report: {output / PAGE}\nTables: {output / TEXT}")


def main(arguments: list[str] | None = None) -> process.Status:
    """Runs the command; returns its exit status."""
    options = _options(arguments)
    return process.status_of(lambda: _reproduce(options), process.RESUMABLE)


def _reproduce(options: argparse.Namespace) -> None:
    options.workdir = place_of(options.workdir, "--workdir")
    cli.keep_logs_short()
    cli.use_compilation_cache()
    known = {entry.name: entry for entry in ENTRIES}
    names = [name for name in options.only.split(",") if name] or list(known)
    for name in names:
        check_known("--only names", name, known)
    options.workdir.mkdir(parents=True, exist_ok=True)
    with locked(options.workdir):
        entries = [entry for entry in ENTRIES if entry.name in names]
        reproduce(entries, options.workdir, rich.console.Console(), options.budget)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = process.parser("train.reproduce", __doc__)

    def minutes(text: str) -> float:
        value = float(text)
        if not value >= 0:
            raise ValueError
        return value

    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--budget", type=minutes, help="minutes of training; 0 trains nothing")
    parser.add_argument("--only", default="", help=f"of {','.join(names)}")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/reproduce"),
                        help="the folder (default: %(default)s)")  # fmt: skip
    return parser.parse_args(arguments)


if __name__ == "__main__":
    process.run(main, process.RESUMABLE)
