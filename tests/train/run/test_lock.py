"""One process at a time for a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib

import pytest

from train.run import lock
from train.run.lock import LOCK, InUse, check_not_locked, locked


@pytest.mark.fault(
    "Two runs, sweeps or attacks at once in one folder",
    "The second is refused at once, with the first one's process; nothing is mixed up",
)
def test_the_second_is_refused_and_told_who_is_first(tmp_path) -> None:
    with locked(tmp_path):
        said = rf"{tmp_path} is in use by another process \({os.getpid()} on .*\). Wait until it"
        with pytest.raises(InUse, match=said), locked(tmp_path):
            pytest.fail("came in")
        with pytest.raises(InUse, match=said):
            check_not_locked(tmp_path)
        name = ".attack.json.lock"  # of a file in it
        with locked(tmp_path, name), pytest.raises(InUse, match=rf"{tmp_path}/attack.json is in"):
            check_not_locked(tmp_path, name)
    assert list(tmp_path.iterdir()) == []
    check_not_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_what_a_killed_process_left_keeps_nobody_out(tmp_path) -> None:
    (tmp_path / LOCK).write_text("4711 on a machine that is gone, with a long name to shorten")
    check_not_locked(tmp_path)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()} on ")
        assert "4711" not in (tmp_path / LOCK).read_text()


def test_the_lock_ends_with_an_error(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_in_between_is_made_anew(tmp_path, monkeypatch) -> None:
    """As if the process before had ended between this one's opening the file and locking it."""
    original, calls = fcntl.flock, []

    def flock(file: int, how: int) -> None:
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(how)
        original(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / LOCK).exists()
        with pytest.raises(InUse):
            check_not_locked(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(tmp_path):
        assert "cannot be locked (No locks available)" in capsys.readouterr().err
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_folder_ends_quietly_and_a_missing_one_does_not(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder):
        (folder / LOCK).unlink()
        folder.rmdir()
    with pytest.raises(FileNotFoundError, match="run/.lock"), locked(folder):
        pass
