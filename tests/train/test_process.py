"""How a command ends: in one line and with a status, whatever hinders it."""

from __future__ import annotations

import contextlib
import errno
import io
import logging as standard_logging
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

from tests.conftest import ROOT
from tests.train.commands import command
from train import cli, process
from train.process import UserError, status_of
from train.registry import ConfigError
from train.run.folder import CheckpointError
from train.run.interruption import Interrupted
from train.run.lock import InUse
from train.run.trainer import TrainingDiverged

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/metrics.jsonl")


@pytest.fixture
def hooks(monkeypatch):
    """Puts the hooks back at the end."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    # What a shell starts in the background does not hear Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        *((kind("why"), 2, "error: why") for kind in (ConfigError, CheckpointError, InUse)),
        (TrainingDiverged("why"), 2, "error: why"),
        (UserError("two\nlines"), 2, "error: two lines"),
        (Interrupted("saved"), 143, "saved"),
        (FULL, 2, "error: runs/metrics.jsonl: No space left on device. Make room there, and"),
        (
            PermissionError(errno.EACCES, "Permission denied", b"x"),
            2,
            "error: x: Permission denied",
        ),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), 2, "error: a -> b: Cross-"),
        (OSError("host unknown"), 2, "error: host unknown"),
    ],
)
@pytest.mark.fault(
    "The disk is full, or a folder is read-only or deleted",
    "One line that says where and what to do, status 2; what was saved stays",
)
def test_what_the_user_can_mend_ends_in_one_line(capsys, error, status, said) -> None:
    assert status_of(raising(error)) == status
    assert capsys.readouterr().err.startswith(said)
    assert status_of(raising(error)) == status
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.fault(
    "A command without the packages that it needs", "One line that names the package, status 2"
)
def test_a_package_that_is_missing_is_named(tmp_path, capsys) -> None:
    # While the command imports: a Python that finds nothing but its own library.
    bare = [sys.executable, "-S", "-m", "train", "--config=digits.py"]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: the package '\w+' is not installed for .*requirements.txt\n",
                        done.stderr)  # fmt: skip
    # And later.
    assert status_of(raising(ModuleNotFoundError("No module named 'x'", name="x.y"))) == 2
    assert capsys.readouterr().err.startswith("error: the package 'x' is not installed for")
    with pytest.raises(ModuleNotFoundError):
        status_of(raising(ModuleNotFoundError("No module named 'train.z'", name="train.z")))


@pytest.mark.fault("Ctrl-C, also while a command imports", "One line, status 130")
def test_ctrl_c_ends_in_one_line(capsys, monkeypatch, hooks) -> None:
    assert status_of(raising(KeyboardInterrupt()), process.RESUMABLE) == 130
    said = "Interrupted. The same command goes on from the last checkpoint.\n"
    assert capsys.readouterr().err == said

    monkeypatch.setattr(os, "_exit", sys.exit)
    process.install_hooks()
    with pytest.raises(SystemExit) as stop:
        sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    sys.excepthook(ValueError, ValueError("else"), None)
    assert "ValueError: else" in capsys.readouterr().err


@pytest.mark.fault(
    "SIGTERM to a command that trains nothing, such as an export",
    "It cleans up what it began; one line, status 143",
)
@pytest.mark.parametrize("where", ["", "callback"])
def test_sigterm_cleans_up_and_ends_in_one_line(tmp_path, where) -> None:
    program = f"""
import os, pathlib, signal, time
from train import process

class Told:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

def main():
    part = pathlib.Path({str(tmp_path / "part")!r})
    part.touch()
    try:
        Told()
        time.sleep(10)
    finally:
        part.unlink()

process.run(main)
"""
    if not where:
        program = program.replace("        Told()", "        Told.__del__(None)")
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (143, "Told to stop (SIGTERM).\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_not_lost_in_a_callback(hooks, capsys) -> None:
    """As where it hits one of the garbage collection's, of which JAX has one."""

    class Dies:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def main() -> None:
        Dies()
        time.sleep(60)  # a busy machine may take long to interrupt it
        pytest.fail("went on")

    process.install_hooks()
    assert status_of(main) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_only_what_is_no_news_is_not_printed(hooks, capsys) -> None:
    class Dies:
        def __init__(self, text: str) -> None:
            self._text = text

        def __del__(self) -> None:
            raise RuntimeError(self._text)

    process.install_hooks()
    Dies("Event loop is closed")
    assert capsys.readouterr().err == ""
    Dies("news")
    assert "RuntimeError: news" in capsys.readouterr().err


def test_a_status_is_passed_on_and_a_fault_of_the_program_is_not_hidden() -> None:
    assert status_of(lambda: None) == 0
    assert status_of(lambda: 3) == 3
    assert status_of(raising(SystemExit(1))) == 1
    with pytest.raises(ZeroDivisionError):
        status_of(lambda: 1 / 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_end_of_another_process_is_no_fault_of_this_one(monkeypatch, processes, capsys) -> None:
    error = jax.errors.JaxRuntimeError("Gloo AllGather failed")
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    if processes == 1:
        with pytest.raises(jax.errors.JaxRuntimeError):
            status_of(raising(error))
    else:
        assert status_of(raising(error)) == 2
        assert "another process ended or cannot be reached (Gloo" in capsys.readouterr().err


class Broken(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def flush(self) -> None:
        raise OSError(self._number, os.strerror(self._number))


class Unwritable(io.StringIO):
    """A stream that says so at once, as an unbuffered one does."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.fault(
    "Standard output is full, closed, or its reader has ended",
    "One line that says so, status 2",
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
@pytest.mark.parametrize("flushed", [True, False])
def test_output_that_cannot_be_written_is_said(monkeypatch, capsys, number, flushed) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert status_of(lambda: print("results", flush=flushed)) == 2
    said = f"error: standard output: {os.strerror(number)}. Send it to a file"
    errors = capsys.readouterr().err
    assert errors.startswith(said)
    assert status_of(lambda: status_of(lambda: print("results", flush=flushed))) == 2
    assert capsys.readouterr().err == errors


def test_lost_output_is_said_where_the_program_goes_on(monkeypatch, capsys) -> None:
    """As argparse does with its help."""

    def main() -> None:
        with contextlib.suppress(OSError):
            print("help")

    monkeypatch.setattr(sys, "stdout", Unwritable())
    assert status_of(main) == 2
    assert capsys.readouterr().err.startswith("error: standard output: No space left on device.")


def test_a_broken_pipe_that_rich_swallows_is_said(monkeypatch, capsys) -> None:
    import rich.console

    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # Rich gives the stream the null device
    monkeypatch.setattr(Broken, "fileno", lambda _: 1)
    assert status_of(lambda: rich.console.Console().print("results")) == 2
    assert capsys.readouterr().err.startswith("error: standard output: Broken pipe.")


def test_closed_output_is_said_before_anything_is_done(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert status_of(lambda: pytest.fail("ran")) == 2
    assert capsys.readouterr().err.startswith("error: standard output is closed.")


@pytest.mark.parametrize(
    "module", ["train", "train.report", "train.study", "train.reproduce", "train.benchmarks"]
)
def test_commands_say_that_their_output_is_full(module: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    done = command("--help", module=module, forked=True, output="/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: No space left on device.")
    assert done.stderr.count("\n") == 1


def test_a_closed_stream_gives_no_file_its_number(tmp_path) -> None:
    script = (
        "import os, sys; from train.process import reserve_streams; reserve_streams();"
        f"assert os.open({str(tmp_path / 'file')!r}, os.O_CREAT) > 2;"
        "print('lost', file=sys.stderr)"
    )
    closing = f'exec "{sys.executable}" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", closing, "sh", script], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0


def test_an_error_names_the_file_that_is_open(tmp_path) -> None:
    with pytest.raises(OSError, match="'metrics'"), process.naming("metrics"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="'other'"), process.naming("metrics"):
        raise OSError(errno.ENOSPC, "No space left on device", "other")
    with pytest.raises(OSError, match="'model'") as error, process.naming("model"):
        raise Exception("I/O error: No space (os error 28)")
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="else"), process.naming("model"):
        raise RuntimeError("else")


def test_libraries_errors_that_a_command_tells_itself_are_not_logged(monkeypatch) -> None:
    from absl import logging

    handler = logging.get_absl_handler()
    monkeypatch.setattr(handler, "filters", [])
    root = standard_logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # as in a command that is not started by absl
    verbosity = logging.get_verbosity()
    cli.keep_logs_short()
    logging.set_verbosity(verbosity)
    assert root.handlers == [handler]
    make = logging.get_absl_logger().makeRecord
    path = "/site-packages/orbax/checkpoint/async_checkpointer.py"
    kept = [
        bool(handler.filter(make("absl", level, file, 1, "text", (), None)))
        for level, file in ((40, path), (30, path), (40, "/site-packages/tensorflow_datasets/x.py"))
    ]
    assert kept == [False, False, True]
