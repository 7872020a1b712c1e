"""Checkpoints of the whole state.

Orbax writes them in the background, each under another name until it is whole. Beside the arrays
lie sums of their bits: an array that was damaged since is found out when it is read, and the
checkpoint before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.devices import hosts
from train.places import is_remote
from train.run.early_stopping import Criterion
from train.run.folder import CHECKPOINTS, CheckpointError, NotWritten
from train.step.state import TrainState


class DamagedCheckpoint(CheckpointError):
    """A checkpoint's files are not what was written."""

    def __init__(self, folder: pathlib.Path, reason: object) -> None:
        text = " ".join(str(reason).split())[:200]
        super().__init__(f"the checkpoint {folder} is damaged ({text}).")


@dataclasses.dataclass
class Progress:
    """What besides the state a run must remember."""

    early_stopping: dict[str, Any] = dataclasses.field(default_factory=dict)  # its `to_json()`
    best_params: Any = None  # those of the best evaluation so far, if they are asked for


class Checkpoints:
    """Saves and restores a run's state through Orbax.

    Args:
        workdir: the run's folder.
        keep: how many of the newest checkpoints to keep.
        monitor: the metric whose best checkpoint is kept as well.
        read_only: nothing is saved, and the folder is left as it is.

    Raises:
        CheckpointError: there is nothing to read.
    """

    def __init__(
        self, workdir: pathlib.Path, keep: int, monitor: Criterion, *, read_only: bool = False
    ) -> None:
        workdir = workdir if is_remote(workdir) else workdir.resolve()
        self.folder = workdir / CHECKPOINTS
        self.damaged = workdir / "damaged"
        if read_only and not self.folder.exists():
            raise CheckpointError(f"{self.folder} holds no checkpoint; it does not exist.")
        best = preservation_policy.BestN(
            get_metric_fn=monitor.rank, n=1, keep_checkpoints_without_metrics=False
        )
        newest = preservation_policy.LatestN(max(keep, 1))
        kept = preservation_policy.AnyPreservationPolicy([newest, best])
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, read_only=read_only)
        handlers = {
            "arrays": ocp.StandardCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._explained(), contextlib.closing(self._manager):
                self._manager.wait_until_finished()
        except Exception:
            if kind is None:  # else what ended the run is the news
                raise

    def wait(self) -> None:
        """Returns when everything saved so far is on the disk.

        Raises:
            NotWritten: one could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()

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
            metrics: the evaluation's of this very state, by which the best checkpoint is chosen;
                None if it was not evaluated.

        Raises:
            CheckpointError: this or the last one could not be written, for instance because the
                disk is full. Those before are as they were.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Orbax would make it anew, without what else a run holds.
        if not is_remote(self.folder) and not self.folder.exists():
            raise NotWritten(
                f"{self.folder} was deleted or moved while the run wrote to it. Leave the folder "
                f"of a run where it is, and start the same command again."
            )
        arrays = {"state": _arrays(state)}
        if progress.best_params is not None:
            arrays["best_params"] = serialization.to_state_dict(progress.best_params)
        kept = {"early_stopping": progress.early_stopping, "bit_sums": bit_sums(arrays)}
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(kept)
        )
        with self._explained():
            self._manager.save(step, args=items, metrics=dict(metrics or {}) or None, force=True)

    def restore(
        self, state: TrainState, step: int | None = None, *, repair: bool = False
    ) -> tuple[TrainState, Progress]:
        """Reads a checkpoint; the newest that is whole, if no step is named.

        Damaged ones are named on the terminal's error output.

        Args:
            state: a state of the same structure, whose arrays are replaced.
            step: which checkpoint; the newest by default.
            repair: move damaged ones to the folder `damaged`. Only for the run itself: to others
                one may seem damaged that a running one is just deleting.

        Raises:
            CheckpointError: there is no checkpoint, none is whole, or its parameters differ in name
                or shape from the state's; names them.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if (step is not None and step not in steps) or not steps:
            raise CheckpointError(
                f"{self.folder} holds no checkpoint{'' if step is None else f' of step {step}'}; "
                f"found the steps {steps[::-1]}."
            )
        if step is not None:
            return self._read(state, step)
        problems = []
        for candidate in steps:
            try:
                found = self._read(state, candidate)
            except DamagedCheckpoint as error:
                self._manager.reload()
                if sorted(self._manager.all_steps(), reverse=True) != steps:
                    return self.restore(state, repair=repair)  # a running process went on
                problems.append(str(error))
                print(f"warning: {error}", file=sys.stderr, flush=True)
                continue
            if repair:
                self._set_aside([number for number in steps if number > candidate])
            return found
        raise CheckpointError(
            f"No checkpoint can be read. {' '.join(problems)} Start anew in another --workdir."
        )

    def _read(self, state: TrainState, step: int) -> tuple[TrainState, Progress]:
        folder = self.folder / str(step)
        try:
            saved = dict(self._manager.item_metadata(step)["arrays"])
        except Exception as error:  # whatever Orbax and its formats raise on broken files
            raise _unread(folder, error) from error
        target = {"state": _arrays(state)}
        if "best_params" in saved:
            target["best_params"] = serialization.to_state_dict(state.params)
        _check_same_arrays(saved, target, folder)

        # As NumPy arrays, wherever they lay when they were saved: the run places them anew.
        as_numpy = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
        wanted = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(as_numpy), progress=ocp.args.JsonRestore()
        )
        try:
            items = self._manager.restore(step, args=wanted)
            expected = items.progress["bit_sums"]
        except Exception as error:
            raise _unread(folder, error) from error
        found = bit_sums(items.arrays)
        wrong = [name for name, number in found.items() if expected.get(name) != number]
        if wrong:
            raise DamagedCheckpoint(folder, f"the bits of {', '.join(wrong[:3])} have changed")
        best = items.arrays.get("best_params")
        if best is not None:
            best = serialization.from_state_dict(state.params, best)
        progress = Progress(items.progress["early_stopping"], best)
        return _with_arrays(state, items.arrays["state"]), progress

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints away, so that the run can save its own of these steps."""
        if not steps:
            return
        if hosts.is_first():
            if not is_remote(self.damaged):
                self.damaged.mkdir(exist_ok=True)
            for step in steps:
                number = len(list(self.damaged.glob(f"{step}*")))
                target = self.damaged / (f"{step}-{number}" if number else str(step))
                (self.folder / str(step)).rename(target)
        hosts.wait_for_all("set aside")
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what a write may raise, also one in the background, into an error for the user."""
        try:
            yield
        except Exception as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise  # another process has ended, which is no fault of the disk
            steps = self._manager.all_steps()
            kept = sorted(step for step in steps if (self.folder / str(step)).exists())
            intact = f"Those of the steps {kept} are intact" if kept else "It was the first"
            raise NotWritten(
                f"A checkpoint could not be written to {self.folder}: {_reason(error)}. {intact}. "
                f"Make room on the disk, or check that it can be written to, and start the same "
                f"command again."
            ) from error


def bit_sums(tree: Any) -> dict[str, int]:
    """Of nested dicts, the sum of each array's 32-bit words, times 1, 3, 5..., modulo 2**32.

    The same however an array is cut over devices, and computed where it lies. Any one word that is
    another changes it, and so do most words that have changed places.

    Example:
        >>> bit_sums({"w": np.array([1, 2], np.int32)})
        {'w': 7}
    """
    flat = traverse_util.flatten_dict(tree, sep="/")
    flat = {name: x for name, x in flat.items() if np.size(x)}
    on_devices = {name: x for name, x in flat.items() if isinstance(x, jax.Array)}
    read = {name: _bit_sum(np.asarray(x)) for name, x in flat.items() if name not in on_devices}
    sums = read | jax.device_get(_bit_sums(on_devices))
    return {name: int(sums[name]) for name in flat}


def _unread(folder: pathlib.Path, error: Exception) -> CheckpointError:
    """Whether a checkpoint is damaged, or whole but out of reach for now."""
    passing = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)
    memory = isinstance(error, MemoryError)
    if memory or _number(error) in passing:
        reason = "not enough memory" if memory else _reason(error)
        return CheckpointError(
            f"The checkpoint {folder} cannot be read: {reason}. It was left as it is; fix that, "
            f"and start the same command again."
        )
    return DamagedCheckpoint(folder, error)


def _reason(error: Exception) -> str:
    """What the operating system said, in its words, or else the whole text in one line."""
    number = _number(error)
    return os.strerror(number) if number else " ".join(str(error).split())[:400]


def _number(error: Exception) -> int:
    """The operating system's number of an error, which TensorStore has in its text; 0 for none."""
    found = re.search(r"(?:os_error_code='|\[Errno )(\d+)", str(error))
    return int(found[1]) if found else 0


def _bit_sum(x: Any) -> Any:
    """Of one array, NumPy's or JAX's."""
    xp = x.__array_namespace__()
    x = x.reshape(-1)
    if x.dtype.itemsize != 4:  # bfloat16, float16, bool: fits in float32, exactly
        x = x.astype(xp.float32)
    words = x.view(xp.uint32)
    return xp.sum(words * (xp.arange(len(x), dtype=xp.uint32) * 2 + 1), dtype=xp.uint32)


@jax.jit  # one program: several at once, over devices that share few threads, may lock up
def _bit_sums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _bit_sum(x) for name, x in arrays.items()}


def _arrays(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts of plain arrays; a typed key becomes its words."""
    words = state.replace(rng=jax.random.key_data(state.rng))
    return serialization.to_state_dict(words)


def _with_arrays(state: TrainState, arrays: dict[str, Any]) -> TrainState:
    words = state.replace(rng=jax.random.key_data(state.rng))
    restored = jax.tree.map(jnp.asarray, serialization.from_state_dict(words, arrays))
    return restored.replace(rng=jax.random.wrap_key_data(restored.rng))


def _check_same_arrays(saved: Any, target: Any, folder: pathlib.Path) -> None:
    found, expected = (
        {name: tuple(getattr(leaf, "shape", ())) for name, leaf in flat.items()}
        for flat in (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (saved, target))
    )
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is unknown" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if problems[6:] else ""
        shown = "; ".join(problems[:6]) + more
        raise CheckpointError(f"{folder} does not fit the model of this config: {shown}.")
