"""Kinds of experiments: what they lack, how far they have come, and how they go on."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import TypeAlias

import rich.console

from train import cli
from train.experiment.experiment import build_experiment
from train.registry import ConfigError
from train.run.folder import TABLE, read_json
from train.run.interruption import OutOfTime
from train.sweep import finished_result, run_folder, sweep

ATTACK_PYTHON = "ALIGN_JAX_ATTACK_PYTHON"
_HAS_ATTACKS = (
    "import importlib.util as u, sys; "
    "sys.exit(not all(u.find_spec(x) for x in ('train', 'train.attack', 'textattack')))"
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far an entry has come.

    Attributes:
        runs: that it consists of.
        left: of these, not finished.
        minutes: that they take, about.
        done: whether nothing at all is left to do.
    """

    runs: int
    left: int
    minutes: float
    done: bool

    @property
    def finished(self) -> str:
        """Such as "2 of 9"."""
        return f"{self.runs - self.left} of {self.runs}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Methods x seeds of a config, as `train.sweep` runs them.

    Attributes:
        name: for --only, and of the folder of its runs.
        table: of the paper.
        config: as the flag --config takes it.
        methods: of alignment.
        seeds: of each method.
        minutes: that a run takes, about.
    """

    name: str
    table: str
    config: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float

    @property
    def of(self) -> Sweep:
        """Whose runs it is about: its own."""
        return self

    @property
    def command(self) -> str:
        """What does the same by itself."""
        methods, seeds = ",".join(self.methods), ",".join(map(str, self.seeds))
        flags = [f"--config={self.config}", f"--methods={methods}", f"--seeds={seeds}"]
        return shlex.join(["python", "-m", "train.sweep", *flags])

    def lacks(self) -> str:
        """What is missing to run it (config, data, a model to start from), "" if nothing is."""
        try:
            experiment = build_experiment(cli.load_config(self.config))
            empty = [split for split, size in experiment.data.examples.items() if not size]
        except (ValueError, OSError, ImportError) as error:  # a ConfigError is a ValueError
            return str(error)
        return f"the splits {', '.join(empty)} are empty" if empty else ""

    def progress(self, workdir: pathlib.Path) -> Progress:
        """How far it has come; what finished runs took tells what the others will."""
        config, folder = cli.load_config(self.config), workdir / self.name
        results = [finished_result(config, *run, folder) for run in self.runs()]
        seconds = [result["seconds"] for result in results if result is not None]
        left = len(results) - len(seconds)
        minutes = sum(seconds) / len(seconds) / 60 if seconds else self.minutes
        done = not left and (folder / TABLE).is_file()
        return Progress(len(results), left, left * minutes, done)

    def run(
        self, workdir: pathlib.Path, console: rich.console.Console, deadline: float | None
    ) -> None:
        """Runs what is not finished, until the deadline; raises what `sweep` does."""
        config, folder = cli.load_config(self.config).lock(), workdir / self.name
        run = functools.partial(sweep, command=self.command, deadline=deadline)
        run(config, self.methods, self.seeds, folder, console)

    def runs(self) -> list[tuple[str, int]]:
        """Method and seed of each run, in the order in which they run."""
        return [(method, seed) for seed in self.seeds for method in self.methods]


@dataclasses.dataclass(frozen=True)
class Attacks:
    """A recipe of `train.attack` on each finished run of a sweep.

    TextAttack needs another environment than training: $ALIGN_JAX_ATTACK_PYTHON names its Python.

    Attributes:
        name: for --only.
        table: of the paper.
        of: whose runs are attacked.
        recipe: of the attack.
        examples: attacks on each run.
        minutes: that they take on one run, about.
    """

    name: str
    table: str
    of: Sweep
    recipe: str
    examples: int
    minutes: float

    @property
    def command(self) -> str:
        """What does the same for one run."""
        return shlex.join(["python", *self._arguments("RUN_DIR")])

    def lacks(self) -> str:
        """What is missing to run it (an environment with TextAttack), "" if nothing is."""
        try:
            found = subprocess.run([self._python, "-c", _HAS_ATTACKS], cwd=cli.ROOT, check=False)
        except OSError as error:
            return f"{ATTACK_PYTHON} names {self._python!r}: {error}"
        if found.returncode:
            return (
                f"{self._python} has no TextAttack. Name the Python of an environment that has it "
                f"by {ATTACK_PYTHON}."
            )
        return ""

    def progress(self, workdir: pathlib.Path) -> Progress:
        """How far it has come; a run that is not finished is yet to be attacked."""
        runs = self.of.runs()
        left = sum(not self._attacked(run_folder(workdir / self.of.name, *run)) for run in runs)
        return Progress(len(runs), left, left * self.minutes, not left)

    def run(
        self, workdir: pathlib.Path, console: rich.console.Console, deadline: float | None
    ) -> None:
        """Attacks the finished runs that have not been attacked yet.

        Raises:
            ConfigError: the command failed; its message is on the terminal.
            OutOfTime: the deadline has passed; the examples attacked so far are kept.
        """
        config, runs = cli.load_config(self.of.config), workdir / self.of.name
        for run in self.of.runs():
            folder = run_folder(runs, *run)
            if finished_result(config, *run, runs) is None:
                console.print(f"{folder} is not finished, so it is not attacked", highlight=False)
            elif not self._attacked(folder):
                self._attack(folder, deadline)

    def _attack(self, folder: pathlib.Path, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        command = [self._python, *self._arguments(str(folder.resolve()))]
        try:
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(command, left)
            subprocess.run(command, cwd=cli.ROOT, check=True, timeout=left)
        except subprocess.TimeoutExpired as error:
            raise OutOfTime(f"The time is over at {folder}.") from error
        except subprocess.CalledProcessError as error:
            raise ConfigError(f"{shlex.join(command)} failed: {error}") from error

    def _arguments(self, run: str) -> list[str]:
        flags = [f"--checkpoint={run}", f"--recipe={self.recipe}", f"--examples={self.examples}"]
        return ["-m", "train.attack", *flags]

    def _attacked(self, folder: pathlib.Path) -> bool:
        path = folder / f"attack-{self.recipe}.json"
        return path.is_file() and read_json(path).get("attacks", 0) >= self.examples

    @property
    def _python(self) -> str:
        return os.environ.get(ATTACK_PYTHON, sys.executable)


Entry: TypeAlias = Sweep | Attacks
