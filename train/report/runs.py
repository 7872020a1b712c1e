"""Reading the folders of runs, and putting together those that belong to one study.

A study is one experiment with several methods and seeds: runs whose configs differ in the section
`alignment` and the seed alone. `train.sweep` writes a study into one folder; the runs of several
folders make one study where their configs allow it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from align_jax.config import PLAIN
from train.benchmarks.step_time import StepTime, read_step_times
from train.comparison.table import NAMES
from train.run.folder import COMMAND, CONFIG, RESULT, CheckpointError, read_config, read_json
from train.run.log import read_records

RESULTS = ("metrics", "mmd", "alignment", "steps", "seconds")
SECTIONS = ("alignment", "data", "eval", "model", "name", "optimizer", "seed", "task", "train")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: pathlib.Path
    values: dict[str, Any]  # its config
    result: dict[str, Any] | None  # what it wrote at its end; None if it is not finished

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.values["seed"]

    @property
    def config(self) -> ConfigDict:
        """Its config, as `restore_run` takes it."""
        return ConfigDict(self.values)

    @functools.cached_property
    def records(self) -> list[dict[str, Any]]:
        """What it logged."""
        return read_records(self.folder)


@dataclasses.dataclass
class Study:
    """Runs of one experiment, by method and seed, the plain model first.

    What a method's name does not say stands behind a colon ("ct:0.1").
    """

    name: str
    values: dict[str, Any]  # the config that all share, without `alignment` and `seed`
    runs: dict[str, dict[int, Run]]
    times: dict[str, StepTime]  # of a step, by method, where a sweep has measured them
    commands: list[str]  # that made them, where it is known
    notes: list[str]  # what was left aside, in sentences

    @property
    def finished(self) -> dict[str, dict[int, Run]]:
        """The runs that are finished; methods without any are left out."""
        found: dict[str, dict[int, Run]] = {}
        for method, seeds in self.runs.items():
            for seed, run in seeds.items():
                if run.result is not None:
                    found.setdefault(method, {})[seed] = run
        return found

    @property
    def eval(self) -> dict[str, Any]:
        """The config's section on evaluation."""
        return self.values["eval"]

    @property
    def split(self) -> str:
        """The split whose metrics are reported."""
        return self.eval["final"][-1]


def read_studies(folders: Iterable[pathlib.Path]) -> list[Study]:
    """The studies that lie in some folders, in the order of their first runs.

    Args:
        folders: of runs, or of sweeps.

    Raises:
        CheckpointError: a folder holds no run, or a file in it is damaged.
    """
    groups: dict[str, list[tuple[pathlib.Path, Run]]] = {}
    for folder in folders:
        for run in _runs_in(folder):
            shared = {k: v for k, v in run.values.items() if k not in ("alignment", "seed")}
            groups.setdefault(json.dumps(shared, sort_keys=True), []).append((folder, run))
    return [_study(found) for found in groups.values()]


def _runs_in(folder: pathlib.Path) -> list[Run]:
    """The run that a folder is, or those that a sweep's folder holds."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    runs = [read_run(path) for path in inside if (path / CONFIG).is_file()]
    if not runs and (folder / CONFIG).is_file():
        runs = [read_run(folder)]
    if not runs:
        raise CheckpointError(
            f"{folder} is neither the folder of a run nor that of a sweep: there is no {CONFIG} in "
            f"it or in a folder inside it. Give what was --workdir when training."
        )
    return runs


def read_run(folder: pathlib.Path) -> Run:
    """The run in a folder.

    Raises:
        CheckpointError: the folder is no run's, or a file in it is damaged.
    """
    values, path, result = read_config(folder), folder / RESULT, None
    source = folder / CONFIG  # of `values`
    if path.is_file():
        result = read_json(path)
        lacking = [name for name in RESULTS if name not in result]
        if not lacking and not isinstance(result["metrics"], dict):
            lacking = ["metrics by split"]
        if lacking:
            raise CheckpointError(
                f"{path} is not what a run writes at its end: it has no {', '.join(lacking)}. "
                f"Remove it, and start the run's command again."
            )
        # A run may go on with other sections `train` and `eval` than it began with.
        source, values = path if "config" in result else source, result.pop("config", values)
    missing = [name for name in SECTIONS if not isinstance(values, dict) or name not in values]
    if missing:
        raise CheckpointError(
            f"{folder / CONFIG} is not that of a run: it has no {', '.join(missing)}."
        )
    section, seed = values["alignment"], values["seed"]
    known = section if isinstance(section, dict) else {"method": section}
    method, weight = known.get("method"), known.get("weight")
    for name, value, expected, fits in (
        ("alignment.method", method, "a method's name", isinstance(method, str)),
        ("alignment.weight", weight, "a number or null", weight is None or is_number(weight)),
        ("seed", seed, "a whole number", type(seed) is int),
    ):
        if not fits:
            raise CheckpointError(f"{source}: {name} is {value!r:.40}; expected {expected}.")
    return Run(folder, values, result)


def _study(found: Sequence[tuple[pathlib.Path, Run]]) -> Study:
    first = found[0][1].values
    shared = {name: value for name, value in first.items() if name not in ("alignment", "seed")}
    labels = _labels([run.values["alignment"] for _, run in found])
    runs: dict[str, dict[int, Run]] = {label: {} for label in sorted(set(labels), key=_order)}
    times: dict[str, StepTime] = {}
    notes = []
    for (folder, run), label in zip(found, labels, strict=True):
        if run.seed in runs[label]:
            notes.append(
                f"{run.folder} is left aside: {runs[label][run.seed].folder} has the same method "
                f"and seed."
            )
            continue
        runs[label][run.seed] = run
        measured = read_step_times(folder).get(run.values["alignment"]["method"])
        if measured is not None:
            times.setdefault(label, measured)
    for label, seeds in runs.items():
        runs[label] = dict(sorted(seeds.items()))
    files = dict.fromkeys(folder / COMMAND for folder, _ in found)
    texts = [path.read_text("utf-8", "replace") for path in files if path.is_file()]
    commands = [line for text in texts for line in text.splitlines()]
    return Study(first["name"], shared, runs, times, commands, notes)


def _labels(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each section `alignment`: its method, and what tells it from others of its kind.

    A plain model's other settings have no effect and are no difference.
    """
    labels = []
    for section in sections:
        method = section["method"]
        same = [x for x in sections if x["method"] == method != PLAIN]
        keys = dict.fromkeys(key for x in same for key in x)
        differing = [key for key in keys if len({json.dumps(x.get(key)) for x in same}) > 1]
        # As `train.sweep` writes it if the weight is all there is; a method's own needs no name.
        weight = section.get("weight")
        named = [short(weight)] if "weight" in differing and weight is not None else []
        named += [f"{x} {section.get(x)}" for x in differing if x != "weight"]
        labels.append(f"{method}:{' '.join(named)}" if named else method)
    return labels


def is_number(value: object) -> bool:
    """Whether something out of JSON is a number that a float can hold.

    Example:
        >>> is_number(1), is_number(True), is_number(float("nan")), is_number(10**400)
        (True, False, False, False)
    """
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def short(weight: float) -> str:
    """A weight in six digits, or in as many as tell it from every other.

    Example:
        >>> short(1.0), short(1.0000001)
        ('1', '1.0000001')
    """
    text = f"{weight:g}"
    return text if float(text) == weight else repr(weight)


def _order(label: str) -> tuple[int, str]:
    method, known = label.partition(":")[0], list(NAMES)
    return (known.index(method) if method in known else len(known), label)


def config_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its keys in full: {"train.steps": 600, ...}."""
    return traverse_util.flatten_dict(dict(values), sep=".")
