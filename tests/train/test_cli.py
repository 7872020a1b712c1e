"""The commands as a user starts them."""

from __future__ import annotations

import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from tests.train.commands import command
from train import cli
from train.registry import ConfigError

CONFIG = "--config=train/configs/digits.py"
SMALL = [
    "--config.model.hidden_size=16", "--config.model.layers=1", "--config.model.patch_size=4",
    "--config.train.steps=4", "--config.train.log_every=2", "--config.eval.every=2",
    "--config.optimizer.warmup_steps=0", "--config.alignment.method=energy",
    "--config.eval.mmd_examples=0",
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
        (["--config=glue:mrpx"], "there is no task 'mrpx'; did you mean \"mrpc\"? known: cola"),
        (["--config=digits:foo"], "digits.py:foo: there are no kinds of this experiment"),
        ([CONFIG, "--config.alignment.method=CT"], "got 'CT'. Did you mean 'ct'?"),
        ([CONFIG, "oops"], "unexpected argument 'oops'"),
    ],
)
def test_a_command_that_cannot_work_says_why(arguments: list[str], message: str) -> None:
    done = command(*arguments, forked=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert message in done.stderr


@pytest.mark.fault(
    "A config's file that makes no config, raises, is no Python, or lies in a folder with a blank",
    "One line that says what and where; a mistyped key is named all the same",
)
@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("x = 1\n", [], "own.py has no function get_config, and so is no experiment"),
        (
            "def get_config():\n    return {}['x']\n",
            [],
            r"cannot be loaded: KeyError: 'x' \(.*/my folder/own.py, line 2\)",
        ),
        (
            "def get_config(arg=''):\n    return [].x\n",
            ["--config.data.x=1"],
            "AttributeError: .* no attribute 'x' .*own.py, line 2",
        ),
        ("x = 1 / 0\n", [], "ZeroDivisionError: division by zero .*own.py, line 1"),
        ("def get_config(:\n", [], "SyntaxError: invalid syntax .own.py, line 1"),
        (
            "from train.configs import digits\n\n\ndef get_config():\n"
            "    return digits.get_config()\n",
            ["--config.data.batch=1"],
            "no key 'data.batch'; did you mean \"batch_size\"",
        ),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_a_config_of_ones_own_that_cannot_be_loaded(
    content, arguments, message, joined, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "my folder"
    folder.mkdir()
    path = folder / "own.py"
    path.write_text(content)
    sys.modules.pop("config_config", None)  # by which name ml_collections loads any
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    monkeypatch.setattr(flags, "FLAGS", values)
    option = [f"--config={path}"] if joined else ["--config", str(path)]
    argv = ["train", *option, *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads the keys there
    with pytest.raises(ConfigError, match=message):
        cli._parse_flags(argv)


def test_what_configs_share_is_no_config() -> None:
    with pytest.raises(ConfigError, match=r"common.py has no function get_config"):
        cli.load_config("common")


@pytest.mark.parametrize("module", ["train", "train.sweep", "train.benchmarks.pytorch"])
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
    assert "alignment.method was 'energy', now 'gan'" in refused.stderr
    assert "Traceback" not in refused.stderr
