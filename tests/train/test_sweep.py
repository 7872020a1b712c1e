"""The sweep: a table and a picture, resumable, and refusing what is not its own."""

from __future__ import annotations

import io
import json
import signal

import matplotlib.image
import pytest
import rich.console

from tests.train.commands import command
from tests.train.report.studies import write_run
from train import sweep
from train.registry import ConfigError
from train.run import loop
from train.run.folder import CheckpointError, claim_folder
from train.run.interruption import OutOfTime
from train.run.lock import InUse, locked


def run(config, methods, seeds, workdir) -> str:
    console = rich.console.Console(file=io.StringIO(), width=160)
    sweep.sweep(config, methods, seeds, workdir, console)
    return console.file.getvalue()


@pytest.mark.usefixtures("one_device")
def test_a_sweep_ends_in_a_table_and_a_picture_and_repeats_nothing(
    tmp_path, tiny_config, monkeypatch
) -> None:
    config = tiny_config("none", train__steps=2, eval__every=2)
    config.name = "[digits](x) <b>"
    printed = run(config, ["none", "energy"], [0, 1], tmp_path)
    written = (tmp_path / "table.md").read_text()
    assert written.startswith(r"\[digits\](x) \<b\>: seeds 0, 1; ")  # no link, no tag
    assert "[digits](x) <b>: seeds 0, 1; " in printed
    assert "| method | test accuracy |" in written
    assert "| over plain |" in written
    assert "accuracy" in printed
    assert "a step of each method is timed" in printed  # it takes minutes where a step is slow
    (noise,) = (line for line in printed.splitlines() if "noise" in line)
    assert "paired by seed, not adjusted for 2 comparisons" in noise

    results = [
        json.loads((tmp_path / f"energy-seed{seed}" / "result.json").read_text()) for seed in (0, 1)
    ]
    accuracies = [result["metrics"]["test"]["accuracy"] for result in results]
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert rows["energy"]["test accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert rows["none"]["divergence"] is None
    assert rows["none"]["over plain"]["mean"] == 1.0
    picture = matplotlib.image.imread(tmp_path / "picture.png")
    assert picture.shape[0] > 500
    assert picture.std() > 0.05  # something is drawn

    monkeypatch.setattr(loop, "run", lambda *_, **__: pytest.fail("ran again"))
    monkeypatch.setattr(sweep, "measure_step_times", lambda *_: pytest.fail("timed again"))
    monkeypatch.setattr(sweep, "write_pictures", lambda *_: [])  # those are drawn again
    again = run(config, ["none", "energy"], [0, 1], tmp_path)
    assert again.count("finished before") == 4
    assert "is timed" not in again
    assert "not asked for" not in again
    assert "not in the table: energy-seed0, energy-seed1, none-seed0." in run(
        config, ["none"], [1], tmp_path
    )


@pytest.mark.parametrize("budget", ["0", "-1", "nan"])
def test_a_sweep_keeps_to_its_budget(tmp_path, budget) -> None:
    arguments = "--config=train/configs/digits.py", f"--budget={budget}", f"--workdir={tmp_path}"
    done = command(*arguments, module="train.sweep", forked=True)
    said = (done.stdout + done.stderr).strip().splitlines()[-1]
    if budget == "0":
        assert said == "The time is over. The same command goes on with what is missing."
        assert done.returncode == 128 + signal.SIGTERM
    else:
        assert "--budget" in said
        assert done.returncode == 2
    assert not list(tmp_path.glob("*-seed0"))


def test_the_command_is_that_of_the_runs_and_of_none_that_was_refused(
    tmp_path, tiny_config, monkeypatch
) -> None:
    config, console = tiny_config("none"), rich.console.Console(file=io.StringIO())

    def start(command, **options) -> str:
        sweep.sweep(config, ["none"], [0], tmp_path, console, command=command, **options)
        return (tmp_path / "command.txt").read_text()

    def refuse(*_: object, **__: object) -> None:
        raise CheckpointError("of another length")

    with pytest.raises(OutOfTime):
        start("first", deadline=0.0)
    assert (tmp_path / "command.txt").read_text() == "first\n"
    monkeypatch.setattr(loop, "run", refuse)
    with pytest.raises(CheckpointError):
        start("refused")
    assert (tmp_path / "command.txt").read_text() == "first\n"
    monkeypatch.setattr(sweep, "_sweep", lambda *_: {})
    assert start("of_other_methods") == "first\nof_other_methods\n"
    assert start("first") == "first\nof_other_methods\n"


def test_a_variant_has_its_method_weight_and_seed(tiny_config) -> None:
    config = sweep.variant(tiny_config("none"), "ct:0.1", 3)
    assert (config.alignment.method, config.alignment.weight, config.seed) == ("ct", 0.1, 3)


def test_a_result_of_another_config_is_not_taken(tmp_path, tiny_config) -> None:
    write_run(tmp_path, tiny_config(), "ct", 1, {"test": {"accuracy": 0.5}})
    assert sweep.finished_result(tiny_config(), "ct", 1, tmp_path)["steps"] == 6
    assert sweep.finished_result(tiny_config(train__steps=7), "ct", 1, tmp_path) is None
    assert sweep.finished_result(tiny_config(), "ct", 2, tmp_path) is None


def test_another_experiments_folder_is_refused(tmp_path, tiny_config) -> None:
    claim_folder(tmp_path, sweep.variant(tiny_config(), "none", 0))
    with pytest.raises(CheckpointError, match="model.hidden_size was 16, now 32"):
        run(tiny_config(model__hidden_size=32), ["none"], [0], tmp_path)


def test_a_second_sweep_in_the_folder_is_refused(tmp_path, tiny_config, monkeypatch) -> None:
    monkeypatch.setattr(loop, "run", lambda *_, **__: pytest.fail("ran"))
    with locked(tmp_path), pytest.raises(InUse, match=f"{tmp_path} is in use by another process"):
        run(tiny_config(), ["none"], [0], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_refused(tmp_path, tiny_config) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="was not made by this program"):
        run(tiny_config(), ["none"], [0], tmp_path)


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        ([], [0], "--methods is ''; expected one or more"),
        (["none"], [0, 0], "--seeds is '0,0'"),
        (["none"], [2**32], r"--seeds are \[4294967296\]"),
        (["none", "got"], [0], "config.alignment: method must be one of"),
        (["none", "ct:x"], [0], "'ct:x'; expected METHOD or METHOD:WEIGHT"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    tmp_path, tiny_config, methods, seeds, message
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny_config(), methods, seeds, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_without_a_split_to_compare_is_refused(tmp_path, tiny_config) -> None:
    with pytest.raises(ConfigError, match="config.eval.final is empty"):
        run(tiny_config(eval__final=()), ["none"], [0], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
