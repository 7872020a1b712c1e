"""The folder of a run: what makes it ours, and whose run it holds.

It holds `config.json` (written first: it marks the folder as ours), `metrics.jsonl`,
`tensorboard/`, `checkpoints/<step>/`, perhaps `damaged/<step>/` and, once the run is complete,
`result.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from train.experiment.experiment import default_settings
from train.places import is_remote, reaching
from train.process import UserError, naming
from train.registry import ConfigError
from train.run.lock import LOCK, locked
from train.step.optimizer import OptimizerConfig

CONFIG = "config.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
COMMAND = "command.txt"  # of a sweep: what it was started with
STEP_TIMES = "step_times.json"  # of a sweep
TABLE = "table.json"  # of a sweep that is done
FREE_SECTIONS = ("train", "eval", "name")  # may change between a run's start and its resumption
WARMUP = ("warmup_steps", "warmup_share")  # the same, given in steps or as a share of them


class CheckpointError(UserError, RuntimeError):
    """A folder or checkpoint cannot be used; says which, why, and what to do."""


class NotWritten(CheckpointError):
    """A checkpoint could not be written; says why, and which ones are intact."""


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: ConfigDict) -> Iterator[None]:
    """Makes a folder ours, as `claim_folder` does, and keeps other processes out while it is open.

    If it was new, and the config is refused before anything has been saved, it goes again.

    Raises:
        CheckpointError: as of `claim_folder`.
        InUse: another process has it.
    """
    if not set("*?[").isdisjoint(os.path.abspath(workdir)):
        raise CheckpointError(
            f"{workdir}: checkpoints cannot be written below a folder with *, ? or [ in its name, "
            f"which Orbax takes for a pattern. Rename it, or take another --workdir."
        )
    with reaching(workdir):
        _check_ours(workdir)  # before anything is written
        new = not is_remote(workdir) and not (workdir / CONFIG).exists()
    if not is_remote(workdir):  # a bucket has neither folders nor locks
        workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if is_remote(workdir) else locked(workdir):
        with reaching(workdir):
            claim_folder(workdir, config)
        try:
            yield
        except ConfigError:
            if new and not any(workdir.rglob(f"{CHECKPOINTS}/*")):
                shutil.rmtree(workdir, ignore_errors=True)
            raise


def claim_folder(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes a folder ours, or checks that it is, and that it belongs to the same experiment.

    Raises:
        CheckpointError: the folder holds other things, or a run whose config differs in what
            determines the model or its training; names the differing keys.
    """
    _check_ours(workdir)
    if not (workdir / CONFIG).exists():
        write_json(workdir / CONFIG, to_json(config))
    check_same_experiment(workdir, config)


def _check_ours(workdir: pathlib.Path) -> None:
    marker = workdir / CONFIG
    if not marker.exists():
        if workdir.exists() and not workdir.is_dir():
            raise CheckpointError(f"{workdir} is a file; --workdir must name a folder.")
        # A run that was killed as it wrote the marker leaves its temporary file, and its lock.
        entries = workdir.iterdir() if workdir.exists() else ()
        if any(x.name != LOCK and not x.name.startswith(f".{CONFIG}.") for x in entries):
            raise CheckpointError(
                f"{workdir} is not empty and was not made by this program (no {CONFIG} in it); "
                f"nothing was written. Choose a new or empty folder with --workdir."
            )


def check_same_experiment(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Refuses a folder that does not hold this experiment's run.

    Raises:
        CheckpointError: the folder is no run's, or its config differs in what determines the model
            or its training; names the differing keys.
    """
    saved, given = (_completed(x) for x in (read_config(workdir), to_json(config)))
    differing = config_differences(saved, given)
    if differing:
        raise CheckpointError(
            f"{workdir} holds a run with another config: {'; '.join(differing)}. Resume with the "
            f"same values, or choose another folder with --workdir."
        )


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the config of the run in a folder.

    Raises:
        CheckpointError: the folder is not a run's.
    """
    marker = workdir / CONFIG
    if not marker.is_file():
        raise CheckpointError(
            f"{workdir} is not the folder of a run: it has no {CONFIG}. Give the folder that was "
            f"--workdir when training (the one above checkpoints/)."
        )
    values = read_json(marker)
    if "model_type" in values:
        raise CheckpointError(
            f"{workdir} holds an exported model, not a run: align_jax.pretrained.load reads it. "
            f"Give the folder that was --workdir when training (the one above checkpoints/)."
        )
    return values


def check_is_one_run(workdir: pathlib.Path) -> None:
    """Refuses the folder of a sweep, or another that holds the folders of runs.

    Raises:
        CheckpointError: names the runs in it.
    """
    if (workdir / CHECKPOINTS).exists() or is_remote(workdir) or not workdir.is_dir():
        return
    inside = sorted(path.parent.name for path in workdir.glob(f"*/{CHECKPOINTS}"))
    if inside:
        names = ", ".join(inside[:8]) + (", ..." if inside[8:] else "")
        raise CheckpointError(
            f"{workdir} holds folders of runs: {names}. Name one of these, such as "
            f"{workdir / inside[0]}."
        )


@contextlib.contextmanager
def making_sense_of(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever comes of a file of JSON that was edited, and holds anything, into one error.

    Raises:
        CheckpointError: names the file; what is an error for the user already stays as it is.

    Example:
        >>> with making_sense_of(pathlib.Path("runs/a/config.json")):
        ...     {"eval": 3}["eval"]["final"]
        Traceback (most recent call last):
        train.run.folder.CheckpointError: runs/a/config.json does not hold what a run writes: ...
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} does not hold what a run writes: {type(error).__name__}: {error}. Undo what "
            f"was changed in it."
        ) from error


def config_differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """'section.key: saved -> given' for each key that determines the model or its training."""
    free: set[tuple[str, ...]] = {(name,) for name in FREE_SECTIONS}
    if _warmup(saved) == _warmup(given):
        free |= {("optimizer", name) for name in WARMUP}
    flat = (traverse_util.flatten_dict(dict(config)) for config in (saved, given))
    old, new = (
        {key: x for key, x in config.items() if not {key, key[:1]} & free} for config in flat
    )
    missing = object()

    def shown(values: Mapping[Any, Any], key: Any) -> str:
        return repr(values[key]) if key in values else "absent"

    return [
        f"{'.'.join(key)} was {shown(old, key)}, now {shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of keys that it does not have: a run may be older than they are."""
    defaults = json.loads(json.dumps(default_settings(config)))
    return dict(config) | {kind: x | config[kind] for kind, x in defaults.items()}


def _warmup(config: Mapping[str, Any]) -> int | None:
    """How many steps the rate rises; None if the config does not say."""
    optimizer, steps = config.get("optimizer", {}), config.get("train", {}).get("steps")
    given = {name: optimizer[name] for name in WARMUP if name in optimizer}
    return OptimizerConfig(**given).warmup(steps) if given and steps is not None else None


def to_json(config: ConfigDict) -> dict[str, Any]:
    """A config as plain JSON values (tuples become lists), for writing and comparing."""
    return json.loads(json.dumps(config.to_dict()))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        CheckpointError: it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested without end
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: it holds {found!r:.40}, not an object.")
    return found


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one go, as of `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in one go: a reader sees the whole file, the one before, or none."""
    if is_remote(path):  # as a bucket does by itself
        with reaching(path):
            path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
