"""All experiments with one command: resumable, within a budget, and what cannot run is said."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import pathlib
import sys
import time
import types

import jax
import pytest
import rich.console

from tests.train.report.studies import write_run
from train import cli, sweep
from train.attack.recipes import ENCODED, RECIPES
from train.reproduce import __main__ as command
from train.reproduce import entries
from train.reproduce.entries import ATTACK_PYTHON, Attacks, Sweep
from train.reproduce.experiments import ENTRIES, SWEEPS
from train.run import loop, trainer
from train.run.folder import NotWritten
from train.run.lock import locked
from train.run.log import read_records
from train.run.trainer import Trainer, TrainingDiverged

pytestmark = pytest.mark.usefixtures("one_device")
TINY = """
from train.configs import digits

def get_config(arg=""):
    config = digits.get_config()
    config.model.update(
        {"patch_size": 4, "hidden_size": 16, "layers": 1, "heads": 2, "mlp_size": 16}
    )
    config.optimizer.warmup_steps = 0
    config.train.update({"steps": 4, "log_every": 2, "checkpoint_every": 4})
    config.eval.update({"every": 2, "mmd_examples": 0})
    return config
"""


@pytest.fixture(autouse=True)
def _keep_programs(monkeypatch) -> None:
    """One entry's programs are of use to the next test."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.fixture
def tiny(tmp_path) -> Sweep:
    """An entry whose runs take seconds."""
    (tmp_path / "tiny.py").write_text(TINY)
    return Sweep("tiny", "Table 0", str(tmp_path / "tiny.py"), ("none",), (0,), 2)


def run(chosen, workdir: pathlib.Path, budget: float | None = None) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    command.reproduce(chosen, workdir, console, budget)
    return console.file.getvalue()


def test_every_entry_names_a_config_and_says_how_to_run_it() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    for entry in SWEEPS:
        config = cli.load_config(entry.config)
        sweep.variant(config, entry.methods[-1], entry.seeds[-1])
        assert f"train.sweep --config={entry.config} --methods=none,gan,ct" in entry.command


def test_attacks_come_after_the_runs_that_they_attack() -> None:
    attacks = [entry for entry in ENTRIES if isinstance(entry, Attacks)]
    assert {entry.recipe for entry in attacks} == set(RECIPES) - set(ENCODED)
    for entry in attacks:
        assert ENTRIES.index(entry.of) < ENTRIES.index(entry)


def test_runs_reports_and_repeats_nothing(tmp_path, tiny, monkeypatch) -> None:
    printed = run([tiny], tmp_path / "work")
    assert "0 of 1" in printed
    assert "about 2" in printed  # minutes
    report = (tmp_path / "work" / "report" / "report.md").read_text().replace("\\", "")
    result = json.loads((tmp_path / "work" / "tiny" / "none-seed0" / "result.json").read_text())
    assert f"{result['metrics']['test']['accuracy']:.4f}" in report
    assert f"- Command: `{tiny.command}`" in report
    assert "- Seeds: 0\n" in report
    assert result["hardware"] in report
    assert "| tiny | Table 0 | 1 of 1 |" in report

    monkeypatch.setattr(loop, "run", lambda *_, **__: pytest.fail("ran again"))
    monkeypatch.setattr(entries, "sweep", lambda *_, **__: pytest.fail("compared again"))
    monkeypatch.setattr(command, "write_report", lambda *_, **__: None)
    printed = run([tiny], tmp_path / "work")
    assert "1 of 1" in printed
    assert "about 0" in printed


def test_a_budget_ends_within_a_run_and_the_next_start_goes_on(tmp_path, tiny, monkeypatch) -> None:
    """A clock that jumps beyond the deadline while the first run takes its second step."""
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    for module in (trainer, command, sweep):
        monkeypatch.setattr(module, "time", clock)
    due = Trainer._due

    def passing(self, every):
        now[0] = 61.0 if self.step == 2 else now[0]
        return due(self, every)

    monkeypatch.setattr(Trainer, "_due", passing)
    other = Sweep("other", "Table 0", tiny.config, ("none",), (0,), 2)
    printed = run([tiny, other], tmp_path / "work", budget=1)
    assert "used up at tiny: Out of time, the run saved its state after step 2 of 4." in printed
    assert "Not finished: tiny, other." in printed
    folder = tmp_path / "work" / "tiny" / "none-seed0"
    assert not (folder / "result.json").exists()
    assert (
        "is not finished (step 2 of 4)" in (tmp_path / "work" / "report" / "report.md").read_text()
    )
    assert not (tmp_path / "work" / "other").exists()

    taken: list[int] = []
    monkeypatch.setattr(command, "write_report", lambda *_, **__: None)
    monkeypatch.setattr(
        Trainer, "_due", lambda self, every: taken.append(self.step) or due(self, every)
    )
    run([tiny], tmp_path / "work")
    assert taken[0] == 3
    assert [r["step"] for r in read_records(folder) if r["split"] == "train"] == [2, 4]


def test_what_cannot_run_is_named_and_left_out(tmp_path, tiny) -> None:
    missing = Sweep("missing", "Table 9", str(tmp_path / "missing.py"), ("none",), (0,), 1)
    (tmp_path / "unprepared.py").write_text(
        TINY.replace("return config", "config.data.batch_size = 10**6; return config")
    )
    unprepared = Sweep("unprepared", "Table 9", str(tmp_path / "unprepared.py"), ("none",), (0,), 1)
    printed = run([missing, unprepared, tiny], tmp_path / "work", budget=0)
    assert "missing lacks: --config: there is no file" in printed
    assert "unprepared lacks: config.data: data.batch_size is 1000000" in printed
    assert "used up at tiny" in printed
    assert "Nothing has been run, so there is no report." in printed


def test_a_failure_is_told_and_the_next_entry_runs(tmp_path, tiny, monkeypatch) -> None:
    begun = []

    def diverges(config, methods, seeds, folder, *_, **__) -> None:
        begun.append(folder.name)
        raise TrainingDiverged("the loss is nan")

    monkeypatch.setattr(entries, "sweep", diverges)
    other = Sweep("other", "Table 0", tiny.config, ("none",), (0,), 2)
    printed = run([tiny, other], tmp_path / "work")
    assert begun == ["tiny", "other"]
    assert "tiny failed: the loss is nan" in printed


@pytest.mark.parametrize(
    "error", [NotWritten("no room"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_full_disk_ends_it_since_the_next_entry_would_meet_it_too(
    tmp_path, tiny, monkeypatch, error
) -> None:
    def fails(*_, **__) -> None:
        raise error

    monkeypatch.setattr(entries, "sweep", fails)
    with pytest.raises(type(error)):
        run([tiny], tmp_path / "work")


def test_a_second_start_in_the_folder_is_refused(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cli, "keep_logs_short", lambda: None)
    with locked(tmp_path):
        assert command.main([f"--workdir={tmp_path}", "--budget=0", "--only=cora"]) == 2
    assert f"error: {tmp_path} is in use by another process" in capsys.readouterr().err


ATTACKER = """#!{python}
import json, pathlib, sys

if sys.argv[1] == "-c":  # whether it has TextAttack
    sys.exit(0)
values = dict(argument[2:].split("=") for argument in sys.argv[3:])
content = dict.fromkeys(("failed_percent", "accuracy_under_attack", "queries_per_attack"), 10.0)
content |= {{"recipe": values["recipe"], "split": "test", "examples": []}}
content |= {{"attacks": int(values["examples"])}}
path = pathlib.Path(values["checkpoint"]) / f"attack-{{values['recipe']}}.json"
if path.exists():
    sys.exit("attacked twice")
path.write_text(json.dumps(content))
"""


def test_attacks_are_run_in_their_own_environment_on_finished_runs(
    tmp_path, tiny, monkeypatch
) -> None:
    both = dataclasses.replace(tiny, methods=("none", "gan"))
    attack = Attacks("attack", "Table 3", both, "pwws", 200, 5)
    assert attack.command == (
        "python -m train.attack --checkpoint=RUN_DIR --recipe=pwws --examples=200"
    )
    python = tmp_path / "python"
    monkeypatch.setenv(ATTACK_PYTHON, str(python))
    assert "No such file or directory" in run([attack], tmp_path / "work")

    python.write_text(ATTACKER.format(python=sys.executable))
    python.chmod(0o755)
    config = cli.load_config(tiny.config)
    metrics = {"test": {"accuracy": 0.9, "ece": 0.1}}
    for method, found in (("none", metrics), ("gan", None)):
        write_run(tmp_path / "work" / "tiny", config, method, 0, found)
    printed = run([attack], tmp_path / "work")
    assert "gan-seed0 is not finished, so it is not attacked" in printed
    report = (tmp_path / "work" / "report" / "report.md").read_text().replace("\\", "")
    assert "| plain | 0 | 200 | 10.0 (1 seed) |" in report
    assert "| attack | Table 3 | 1 of 2 |" in report
    monkeypatch.setattr(command, "write_report", lambda *_, **__: None)
    assert "failed" not in run([attack], tmp_path / "work")  # nothing is attacked twice

    path = tmp_path / "work" / "tiny" / "none-seed0" / "attack-pwws.json"
    path.write_text(path.read_text().replace('"attacks": 200', '"attacks": 199'))
    assert "used up at attack" in run([attack], tmp_path / "work", budget=0)
    assert "attack failed: " in run([attack], tmp_path / "work")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--only=cora,mprc", "--only names 'mprc'; did you mean \"mrpc\"?"),
        ("--budget=-1", "invalid minutes value: '-1'"),
        ("--budget=nan", "invalid minutes value: 'nan'"),
    ],
)
def test_a_mistake_ends_in_one_line(argument, message, capsys) -> None:
    try:
        status = command.main([argument])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
