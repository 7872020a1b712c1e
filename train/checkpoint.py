"""Checkpoints of the whole state, and the folder of a run.

A run's folder holds `config.json` (written first: it marks the folder as ours), `metrics.jsonl`,
`tensorboard/`, `checkpoints/<step>/` and, once the run is complete, `result.json`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.early_stopping import Criterion
from train.state import TrainState

CONFIG = "config.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
COMMAND = "command.txt"  # of a sweep: what it was started with
STEP_TIMES = "step_times.json"  # of a sweep
TABLE = "table.json"  # of a sweep that is done
FREE_SECTIONS = ("train", "eval", "name")  # may change between a run's start and its resumption


class CheckpointError(RuntimeError):
    """A folder or checkpoint cannot be used; says which, why, and what to do."""


@dataclasses.dataclass
class Progress:
    """What besides the state a run must remember.

    Attributes:
        early_stopping: `EarlyStopping.to_json()`.
        best_params: parameters of the best evaluation so far; None unless they are asked for.
    """

    early_stopping: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_params: Any = None


class Checkpoints:
    """Saves and restores a run's state through Orbax.

    Args:
        workdir: the run's folder.
        keep: how many of the newest checkpoints to keep.
        monitor: the metric whose best checkpoint is kept as well.

    Example:
        >>> with Checkpoints(workdir, keep=2, monitor=Criterion.parse("test/accuracy:max")) as c:
        ...     c.save(state, Progress(), {"test/accuracy": 0.9})
        ...     state, progress = c.restore(state)
    """

    def __init__(self, workdir: pathlib.Path, keep: int, monitor: Criterion) -> None:
        self.folder = workdir.resolve() / "checkpoints"
        sign = -1.0 if monitor.direction == "min" else 1.0
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: sign * metrics[monitor.metric],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        newest = preservation_policy.LatestN(max(keep, 1))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy([newest, best]),
            enable_async_checkpointing=False,
        )
        handlers = {
            "arrays": ocp.StandardCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, progress: Progress, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Writes a checkpoint of one (not replicated) copy of the state.

        Args:
            state: the state; its step names the checkpoint. A step already saved is left alone.
            progress: what else to remember.
            metrics: the latest evaluation's, by which the best checkpoint is chosen.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arrays = {"state": _arrays(state)}
        if progress.best_params is not None:
            arrays["best_params"] = serialization.to_state_dict(progress.best_params)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                progress=ocp.args.JsonSave(progress.early_stopping),
            ),
            metrics=dict(metrics) if metrics else None,
            force=True,
        )

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, Progress]:
        """Reads a checkpoint.

        Args:
            state: a state of the same structure, whose arrays are replaced.
            step: which checkpoint; the newest by default.

        Raises:
            CheckpointError: there is no checkpoint, or its parameters differ in name or shape
                from the state's; names them.
        """
        step = self.latest_step if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise CheckpointError(
                f"{self.folder} holds no checkpoint{'' if step is None else f' of step {step}'}; "
                f"found the steps {sorted(self._manager.all_steps())}."
            )
        saved = self._manager.item_metadata(step)["arrays"]
        target = {"state": _arrays(state)}
        if "best_params" in saved:
            target["best_params"] = serialization.to_state_dict(state.params)
        _check_same_arrays(saved, target, self.folder / str(step))

        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
            ),
        )
        best = items.arrays.get("best_params")
        if best is not None:
            best = serialization.from_state_dict(state.params, best)
        return _with_arrays(state, items.arrays["state"]), Progress(items.progress, best)


def claim_folder(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes a folder ours, or checks that it is, and that it belongs to the same experiment.

    Raises:
        CheckpointError: the folder holds other things, or a run whose config differs in what
            determines the model or its training; names the differing keys.
    """
    marker = workdir / CONFIG
    if not marker.exists():
        if workdir.exists() and not workdir.is_dir():
            raise CheckpointError(f"{workdir} is a file; --workdir must name a folder.")
        if workdir.exists() and any(workdir.iterdir()):
            raise CheckpointError(
                f"{workdir} is not empty and was not made by this program (no {CONFIG} in it); "
                f"nothing was written. Choose a new or empty folder with --workdir."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(marker, to_json(config))
        return
    differing = config_differences(read_config(workdir), to_json(config))
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
    try:
        return json.loads(marker.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{marker} is damaged: {error}.") from error


def config_differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """'section.key: saved -> given' for each key that determines the model or its training."""
    flat = [
        traverse_util.flatten_dict({k: v for k, v in x.items() if k not in FREE_SECTIONS}, sep=".")
        for x in (saved, given)
    ]
    missing = object()
    lines = []
    for key in sorted(flat[0].keys() | flat[1].keys()):
        old, new = flat[0].get(key, missing), flat[1].get(key, missing)
        if old != new:
            shown = ["absent" if x is missing else repr(x) for x in (old, new)]
            lines.append(f"{key} was {shown[0]}, now {shown[1]}")
    return lines


def to_json(config: ConfigDict) -> dict[str, Any]:
    """A config as plain JSON values (tuples become lists), for writing and comparing."""
    return json.loads(json.dumps(config.to_dict()))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one go: a reader sees the whole file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def _arrays(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts of plain arrays; a typed key becomes its words."""
    words = state.replace(rng=jax.random.key_data(state.rng))
    return serialization.to_state_dict(words)


def _with_arrays(state: TrainState, arrays: dict[str, Any]) -> TrainState:
    restored = serialization.from_state_dict(
        state.replace(rng=jax.random.key_data(state.rng)), arrays
    )
    restored = jax.tree.map(jnp.asarray, restored)
    return restored.replace(rng=jax.random.wrap_key_data(restored.rng))


def _check_same_arrays(saved: Any, target: Any, folder: pathlib.Path) -> None:
    shapes = [
        {
            "/".join(path): tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape)
            for path, leaf in traverse_util.flatten_dict(dict(tree)).items()
        }
        for tree in (saved, target)
    ]
    problems = [f"{name} is missing" for name in sorted(shapes[1].keys() - shapes[0].keys())]
    problems += [f"{name} is unknown" for name in sorted(shapes[0].keys() - shapes[1].keys())]
    problems += [
        f"{name} has shape {shapes[0][name]}, expected {shapes[1][name]}"
        for name in sorted(shapes[0].keys() & shapes[1].keys())
        if shapes[0][name] != shapes[1][name]
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (
            f"; and {len(problems) - 6} more" if problems[6:] else ""
        )
        raise CheckpointError(f"{folder} does not fit the model of this config: {shown}.")
