"""One process at a time for a folder or file that is written to."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from train.process import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class InUse(UserError, RuntimeError):
    """Another process is writing to the same place; says which process, where, and what to do."""


@contextlib.contextmanager
def locked(folder: pathlib.Path, name: str = LOCK) -> Iterator[None]:
    """Keeps other processes out while it is open, which includes further ones of this program.

    The lock is the operating system's, on a file that is there only meanwhile: it ends with its
    process, however that ends, and a file that was left behind keeps nobody out. A file system that
    has no locks is said to have none, and the folder is used without.

    Args:
        folder: must be there.
        name: of the lock's file in it.

    Raises:
        InUse: another process has it.
        OSError: the folder cannot be written to.
    """
    path = folder / name
    file = _open_locked(path)
    try:
        yield
    finally:
        # First the name and then the lock: whoever opened the file in between looks again.
        if file is not None:
            with contextlib.suppress(OSError):  # the folder may be gone
                path.unlink()
            os.close(file)


def check_not_locked(folder: pathlib.Path, name: str = LOCK) -> None:
    """Refuses a folder that another process has, before there is anything to lock.

    Raises:
        InUse: another process has it.
    """
    try:
        file = os.open(folder / name, os.O_RDWR)
    except OSError:  # nobody, or it cannot be written to, which `locked` will tell
        return
    try:
        _lock(file, folder / name)
    finally:
        os.close(file)


def _open_locked(path: pathlib.Path) -> int | None:
    """The lock's open file; None where there are no locks."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(file, path):
                path.unlink(missing_ok=True)
                os.close(file)
                return None
            if _is_at(file, path):
                with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
                    os.ftruncate(file, 0)
                    os.write(file, f"{os.getpid()} on {socket.gethostname()}".encode())
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed by the process that had it before


def _is_at(file: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: int, path: pathlib.Path) -> bool:
    """Locks an open file; whether there are locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = os.pread(file, 200, 0).decode("utf-8", "replace")
        what = path.parent if path.name == LOCK else path.with_name(path.name[1 : -len(LOCK)])
        raise InUse(
            f"{what} is in use by another process{f' ({who})' if who else ''}. Wait until it has "
            f"ended, or name another place."
        ) from error
    except OSError as error:
        print(
            f"warning: {path.parent} cannot be locked ({error.strerror}); no other process may "
            f"write there meanwhile.",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return False
    return True
