"""Writes a report on finished runs: one page to look at, with its tables and pictures beside it.

    python -m train.report runs/digits-sweep
    python -m train.report runs/digits/none-seed0 runs/digits/ct-seed0 --examples=0,5

Takes the folders of runs (`python -m train`) and of sweeps (`python -m train.sweep`); runs of one
experiment that differ in method and seed come together. The folder that --output names gets
report.html, which holds all of it and needs no network, report.md, the tables for a README, and the
pictures as PNG. What a run cannot show, the page says in a sentence.
"""

from __future__ import annotations

import argparse
import pathlib

from train import cli, process
from train.places import place_of
from train.report.page import PAGE, TEXT, write_report


def main(arguments: list[str] | None = None) -> process.Status:
    """Runs the command; returns its exit status."""
    options = _options(arguments)
    return process.status_of(lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    options.folders = [place_of(folder, "RUN_DIR") for folder in options.folders]
    named = "-".join(folder.resolve().name for folder in options.folders)
    options.output = place_of(options.output or f"runs/report/{named[:100]}", "--output")
    cli.keep_logs_short()
    cli.use_compilation_cache()
    with process.naming(options.output):
        write_report(
            options.folders, options.output, examples=options.examples,
            say=lambda title: print(f"{title} ...", flush=True),
        )  # fmt: skip
    print(f"Report: {options.output / PAGE}\nTables: {options.output / TEXT}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = process.parser("train.report", __doc__)

    def numbers(text: str) -> list[int]:
        found = sorted({int(number) for number in text.split(",") if number})
        if any(number < 0 for number in found):
            raise ValueError
        return found

    parser.add_argument("folders", nargs="+", type=pathlib.Path, metavar="RUN_DIR")
    parser.add_argument("--output", type=pathlib.Path,
                        help="the folder to write to (default: runs/report/, and the names of the"
                        " folders that it is made of)")  # fmt: skip
    parser.add_argument("--examples", type=numbers,
                        help="whose attention is drawn, by their place in the split, such as 0,5"
                        " (default: the first that most models get right)")  # fmt: skip
    return parser.parse_args(arguments)


if __name__ == "__main__":
    process.run(main)
