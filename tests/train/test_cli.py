"""The commands as a user starts them."""

from __future__ import annotations

import json

import pytest

from tests.train.commands import command

CONFIG = "--config=train/configs/digits.py"
SMALL = [
    "--config.model.hidden_size=16", "--config.model.layers=1", "--config.model.patch_size=4",
    "--config.train.steps=4", "--config.train.log_every=2", "--config.eval.every=2",
    "--config.optimizer.warmup_steps=0", "--config.alignment.method=ct",
]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.alignmet.method=ct", "'alignmet.method'; did you mean \"alignment.method\"?"),
        ("--config.alignment.methd=ct", "'alignment.methd'; did you mean \"method\"?"),
        ("--config.optimizer.lr=1", "'optimizer.lr'; known: "),
        ("--config.seed=abc", "abc"),
        ("--config.alignment.method=cct", "cct"),
        ("--confg=x", "Did you mean: config"),
    ],
)
def test_a_mistyped_flag_ends_in_one_line(argument: str, message: str, tmp_path) -> None:
    done = command(CONFIG, argument, f"--workdir={tmp_path / 'run'}", forked=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=no/such/x.py"], "no file 'no/such/x.py'; train/configs has digits.py, "),
        (["--config=digit.py"], "no file 'digit.py'; did you mean \"digits.py\"?"),
        (["--config", "glu:mrpc"], "no file 'glu'; did you mean \"glue.py\"?"),
        (["--config=glue:mrpx"], "'mrpx' is no task"),
        ([CONFIG, "--config.alignment.method=CT"], "got 'CT'. Did you mean 'ct'?"),
        ([CONFIG, "oops"], "unexpected argument 'oops'"),
    ],
)
def test_a_command_that_cannot_work_says_why(arguments: list[str], message: str) -> None:
    done = command(*arguments, forked=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("module", ["train", "train.sweep", "train.benchmarks.text_step"])
def test_help_shows_every_flag(module: str) -> None:
    done = command("--help", module=module, forked=True)
    assert done.returncode == 0
    assert "--config:" in done.stdout
    assert f"python -m {module} --config=" in done.stdout


@pytest.mark.parametrize("option", [["--config=digits"], ["--config", "digits.py"]])
def test_a_config_is_found_by_its_name_and_shows_its_keys(option: list[str]) -> None:
    done = command(*option, "--help-config", "--config.seed=7", forked=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "--config.seed=7" in lines
    place = lines.index("--config.optimizer.decay_alignment=False")
    assert lines[place + 1].strip() == "whether the alignment networks are decayed as well."


def test_only_a_single_run_is_shared_by_processes(tmp_path) -> None:
    arguments = ("--coordinator=127.0.0.1:1", f"--workdir={tmp_path / 'sweep'}")
    done = command(CONFIG, *arguments, module="train.sweep", forked=True)
    assert done.returncode != 0
    assert "Unknown command line flag 'coordinator'" in done.stderr
    assert "--coordinator" in command("--help", forked=True).stdout


def test_the_command_trains_resumes_and_refuses_another_model(tmp_path) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    done = command(CONFIG, workdir, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    first = json.loads((tmp_path / "run" / "result.json").read_text())
    assert first["steps"] == 4

    again = command(CONFIG, workdir, *SMALL, "--config.train.steps=6", forked=True)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 6

    refused = command(CONFIG, workdir, *SMALL, "--config.alignment.method=gan", forked=True)
    assert refused.returncode != 0
    assert "alignment.method was 'ct', now 'gan'" in refused.stderr
    assert "Traceback" not in refused.stderr
