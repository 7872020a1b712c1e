"""Where a run's numbers go: the terminal, TensorBoard event files, and a JSON-lines file."""

from __future__ import annotations

import contextlib
import datetime
import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table
from flax import traverse_util

from train.places import is_remote, reaching
from train.process import naming
from train.registry import ConfigError
from train.run.events import EventFile
from train.run.folder import METRICS, CheckpointError, write_text
from train.run.sinks import Sink

NOT_CURVES = ("reliability",)  # a whole diagram, no number over the steps
SHOWN_EVALUATIONS = 24
SHOWN = ("loss", "task_loss", "alignment", "accuracy", "ece", "ece_scaled", "mmd", "scale_free_mmd")


class RunLog:
    """Writes every record to all three places.

    A record is a flat dict: scalars, and per-layer arrays [H] as lists. On resumption the records
    after the resumed step are dropped, so that the file reads like that of one run.

    Args:
        workdir: the run's folder; None writes for nobody, as of all processes but the first.
        steps: length of the run, for the progress bar.
        start: the step at which this process starts.
        console: where to print.
        title: the run's name on the terminal.
        sinks: see `train.run.sinks`; they get what TensorBoard gets.

    Attributes:
        last_train: the newest record of the training split, also an earlier process's.
    """

    def __init__(
        self, workdir: pathlib.Path | None, steps: int, start: int,
        console: rich.console.Console, title: str, sinks: Sequence[Sink] = (),
    ) -> None:  # fmt: skip
        kept = _drop_after(workdir / METRICS, start) if workdir else []
        if workdir is None or is_remote(workdir):  # whose files cannot be written piece by piece
            self._local = pathlib.Path(tempfile.mkdtemp(prefix="align_jax-"))
            (self._local / METRICS).write_text((workdir / METRICS).read_text() if workdir else "")
        else:
            self._local = workdir
        self._workdir, self._path = workdir, self._local / METRICS
        self._kept = {(r["step"], r["split"]): r for r in kept}
        self.last_train: dict[str, Any] = next(
            (r for r in reversed(kept) if r["split"] == "train"), {}
        )
        self._file = self._path.open("a")
        self._events = EventFile(self._local / "tensorboard", start)
        self._sinks: tuple[Sink, ...] = (self._events, *sinks)
        self._steps, self._title, self._console = steps, title, console
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn(title), rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task(title, total=steps, completed=start, note="")
        self._evaluations: list[dict[str, Any]] = []
        self._noticed: set[str] = set()
        self._said: set[str] = set()  # the splits whose evaluation was printed since training was
        self._trained = False  # whether this process has written a record of the training split

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        problems = []
        for close in (self._progress.stop, self._events.close, self._file.close, self.keep):
            try:
                close()
            except (OSError, ConfigError) as error:
                problems.append(error)
        if self._local != self._workdir:
            shutil.rmtree(self._local, ignore_errors=True)
        if problems and kind is None:  # else what ended the run is the news
            raise problems[0]

    def keep(self) -> None:
        """Copies to the run's bucket what lies on this machine so far; a disk has it already.

        Raises:
            ConfigError: the bucket cannot be reached.
        """
        if self._workdir is None or self._local == self._workdir:
            return
        for file in filter(pathlib.Path.is_file, self._local.rglob("*")):
            with reaching(self._workdir):
                target = self._workdir / file.relative_to(self._local).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        self._progress.update(self._task, completed=step)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes a record.

        Args:
            step: number of steps taken.
            split: "train", or the name of an evaluated split.
            values: numbers, or nested dicts of numbers and arrays.

        Raises:
            CheckpointError: the run's folder is not there any more.
            OSError: the files cannot be written.
        """
        if not self._path.exists():  # an open file can be written to all the same, for nobody
            raise CheckpointError(
                f"{self._path} was deleted or moved while the run wrote to it. Leave the folder of "
                f"a run where it is, and start the same command again."
            )
        record = {"step": step, "split": split} | _plain(values)
        # A run that was killed after its last evaluation evaluates again, with the same result.
        kept = self._kept.get((step, split), {})
        if any(name not in kept or kept[name] != value for name, value in record.items()):
            with naming(self._path):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        curves = {name: value for name, value in values.items() if name not in NOT_CURVES}
        for sink in self._sinks:
            for name, value in _scalars(curves, split):
                sink.scalar(name, value, step)
            sink.flush()
        if split == "train":
            self.last_train = record
            loss = values.get("loss", np.nan)  # of no step, if all were skipped
            rate = values["steps_per_second"]
            note = f"loss {loss:.4f}  {rate:.1f} steps/s"
            self._progress.update(self._task, completed=step, note=note)
            left = datetime.timedelta(seconds=round((self._steps - step) / max(rate, 1e-9)))
            # The first steps compiled the program too, and say little of the others.
            rest = f"{left} left" if self._trained else "compilation included"
            self._say(step, f"loss {loss:.4f}, {rate:.3g} steps/s, {rest}")
            self._trained = True
            self._said.clear()
        else:
            self._evaluations.append(record)
            if split not in self._said:  # one between two lines of training: there may be many
                shown = [f"{name} {record[name]:.4f}" for name in SHOWN if name in record]
                self._say(step, f"{split}: {', '.join(shown)}")
            self._said.add(split)

    def notice(self, step: int, text: str) -> None:
        """Prints a warning of whole sentences, once, and keeps it among TensorBoard's texts."""
        kind = text.partition(":")[0]  # what follows are numbers, which change
        if kind not in self._noticed:
            self._noticed.add(kind)
            for sink in self._sinks:
                sink.text("notice", text, step)
            self._console.print(f"Step {step}: {text}", markup=False, highlight=False)

    def _say(self, step: int, text: str) -> None:
        """A line, where nobody sees the progress bar: in a file, or the log of a cluster's job."""
        if not (self._console.is_terminal or self._console.quiet):
            line = f"{self._title}: step {step} of {self._steps}, {text}"
            # Who does not read it does not end the run; `train.process` says it at the end.
            with contextlib.suppress(OSError):  # at once, whatever buffers a file has
                print(line, file=self._console.file, flush=True)

    def print_evaluations(self, title: str) -> None:
        """Prints the evaluations of this process as a table, of very many the last ones."""
        if not self._evaluations:
            return
        names = [n for n in SHOWN if any(n in record for record in self._evaluations)]
        table = rich.table.Table(title=title, title_justify="left")
        table.add_column("step", justify="right")
        table.add_column("split")
        for name in names:
            table.add_column(name, justify="right")
        left_out = len(self._evaluations) - SHOWN_EVALUATIONS
        if left_out > 0:
            table.caption = f"{left_out} earlier evaluations are in {METRICS}"
        for record in self._evaluations[-SHOWN_EVALUATIONS:]:
            cells = [f"{record[n]:.4f}" if n in record else "" for n in names]
            table.add_row(str(record["step"]), record["split"], *cells)
        self._console.print(table)


def read_records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run's JSON-lines file, in order, up to a line that is none.

    That is the last one, where a run was killed while it wrote.
    """
    path = workdir / METRICS
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not (
            isinstance(record.get("step"), int) and isinstance(record.get("split"), str)
        ):
            break
        records.append(record)
    return records


def _drop_after(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
    # At step 0 there is no checkpoint: the run starts anew, and evaluates again.
    kept = [record for record in read_records(path.parent) if 0 < step >= record["step"]]
    # In one go: killed in between, the run would lose what it had recorded.
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return np.asarray(value).tolist()


def _scalars(values: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    """Flattens to ("train/divergence/layer_0/attention/head_1", 0.3) and the like."""
    found: list[tuple[str, float]] = []
    for path, value in traverse_util.flatten_dict({prefix: dict(values)}, sep="/").items():
        if np.ndim(value) == 0:
            found.append((path, float(value)))
        else:
            found += [(f"{path}/head_{i}", float(x)) for i, x in enumerate(np.ravel(value))]
    return found
