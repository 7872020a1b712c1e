"""How a command begins and ends: its streams, one line for what went wrong, its status.

Imports the standard library alone: a benchmark needs no more than what it measures, and a command
can say that it was interrupted while it imports the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, TextIO, TypeAlias

OUTPUT = "standard output"
INTERRUPTED = "Interrupted."
TERMINATED = "Told to stop (SIGTERM)."
RESUMABLE = "Interrupted. The same command goes on from the last checkpoint."
AGAIN = "start the same command again"
_ADVICE = {
    errno.ENOSPC: f"Make room there, and {AGAIN}",
    errno.EDQUOT: f"Make room in your quota there, and {AGAIN}",
    errno.EROFS: "Name a place that can be written to",
    errno.EACCES: "Name a place that you may read and write",
    errno.EPERM: "Name a place that you may read and write",
    errno.ENOENT: "Check the path; if it was there before, it was deleted or moved meanwhile",
    errno.ENOTDIR: "Check the path: a part of it is a file",
    errno.EISDIR: "Check the path: it is a folder",
    errno.ENAMETOOLONG: "Name a shorter path",
    errno.ESTALE: f"Check that the file system is mounted, and {AGAIN}",
    errno.EIO: f"Check the disk or the network file system, and {AGAIN}",
    errno.EMFILE: f"Allow more open files (ulimit -n), and {AGAIN}",
    errno.ENFILE: f"Close other programs, and {AGAIN}",
}


Status: TypeAlias = int | str | None  # as sys.exit takes it


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as schedulers and `timeout` send it; it ends a command as Ctrl-C does."""


class UserError(Exception):
    """What the user can correct; a command ends in its text, in one line, and its status."""

    status = 2
    label = "error: "  # stands before the text


def run(main: Callable[[], object], interrupted: str = INTERRUPTED) -> NoReturn:
    """Runs a command and ends the process, as `status_of` says."""
    reserve_streams()
    install_hooks()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # which leaves half an export behind
        signal.signal(signal.SIGTERM, _terminate)
    status = status_of(main, interrupted)
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status == 128 + signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would interrupt the end
    jax = sys.modules.get("jax")
    if status and jax is not None and jax.distributed.is_initialized():
        os._exit(status if isinstance(status, int) else 1)  # else it waits for other processes
    sys.exit(status)


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Of a command whose help is its module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def status_of(main: Callable[[], object], interrupted: str = INTERRUPTED) -> Status:
    """Runs a command; what the user can correct, and Ctrl-C, end in one line on standard error.

    Args:
        main: the command; it returns or raises its status as `sys.exit` takes it, None for success.
        interrupted: what to say after Ctrl-C.

    Returns:
        The status as `sys.exit` takes it: what `main` gave, 2 for what the user can correct, 130
        for Ctrl-C, 143 for SIGTERM that `run` noticed. What else `main` raises is a fault of ours.

    Example:
        >>> status_of(lambda: None)
        0
    """
    if sys.stdout is None:
        return _end("error: standard output is closed. Send it to a file or to /dev/null.", 2)
    try:
        output = _Output(sys.stdout)
        with contextlib.redirect_stdout(output):  # type: ignore[type-var]
            try:
                status = main()
            except SystemExit as stop:  # of --help, say
                if isinstance(stop.__context__, BrokenPipeError):  # Rich ends so, without a word
                    raise stop.__context__ from None
                status = stop.code
            output.flush()
            if output.problem is not None:  # argparse, too, ends without a word
                raise output.problem
    except Terminated:
        return _end(TERMINATED, 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _end(interrupted, 128 + signal.SIGINT)
    except UserError as error:
        return _end(error.label + " ".join(str(error).splitlines()), error.status)
    except OSError as error:
        return _end(f"error: {describe(error)}", 2)
    except ModuleNotFoundError as error:
        if _is_ours(error):
            raise
        return _end(f"error: {_missing(error)}", 2)
    except Exception as error:
        jax = sys.modules.get("jax")
        if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        if jax.process_count() == 1:
            raise
        return _end(
            f"error: another process ended or cannot be reached ({_one_line(error)[:200]}). Start "
            f"all of them again with the same command: the run goes on from its last checkpoint.",
            2,
        )
    return 0 if status is None else status  # type: ignore[return-value]


def describe(error: OSError) -> str:
    """What the operating system refused, where, and what to do about it, in one line.

    Example:
        >>> describe(OSError(errno.EROFS, "Read-only file system", "runs/digits"))
        'runs/digits: Read-only file system. Name a place that can be written to.'
    """
    if error.errno is None:
        return _one_line(error)[:400]
    names = [x for x in (error.filename, error.filename2) if x is not None]
    where = " -> ".join(os.fsdecode(x) if isinstance(x, bytes) else str(x) for x in names)
    advice = _ADVICE.get(error.errno)
    if error.filename == OUTPUT:
        advice = f"Send it to a file that has room or to a program that reads all, and {AGAIN}"
    return f"{_one_line(where) or 'a file'}: {error.strerror}." + (f" {advice}." if advice else "")


def hinders_all(error: Exception) -> bool:
    """Whether an error is one of the disk or of standard output, which the next try would meet too.

    Example:
        >>> hinders_all(OSError(errno.ENOSPC, "No space left on device"))
        True
    """
    everywhere = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EPIPE)
    return isinstance(error, OSError) and error.errno in everywhere


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lets an error say which file it is about, where Python knows only its number.

    Example:
        >>> with naming("metrics.jsonl"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'metrics.jsonl'
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:
                error.filename = os.fspath(path)
            raise
        number = re.search(r"\(os error (\d+)\)", str(error))  # as libraries in Rust say it
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


def reserve_streams() -> None:
    """Gives a standard stream that is closed the null device.

    Else the next file that is opened takes its number, and whatever writes there spoils it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def install_hooks() -> None:
    """Lets Ctrl-C end a command in a line before it has come to `run`, and wherever it hits."""
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, ModuleNotFoundError) and not _is_ours(error):  # as the command began
        _say(f"error: {_missing(error)}")
        os._exit(2)
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _say(INTERRUPTED)
    os._exit(128 + signal.SIGINT)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise Terminated


def _unraisable(problem: sys.UnraisableHookArgs) -> None:
    """What Python would only print, for it happened where nothing can be raised."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        # Ctrl-C hit a callback, such as JAX's of each garbage collection, and would be lost.
        told = isinstance(problem.exc_value, Terminated)
        again = signal.SIGTERM if told else signal.SIGINT
        # A real signal: it also ends what the main thread waits in.
        main = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main, again)).start()
    # TensorStore's threads, whose writes failed, find that Orbax has given them up.
    elif str(problem.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(problem)


def _is_ours(error: ModuleNotFoundError) -> bool:
    return (error.name or "align_jax").partition(".")[0] in ("align_jax", "train")


def _missing(error: ModuleNotFoundError) -> str:
    return (
        f"the package {str(error.name).partition('.')[0]!r} is not installed for "
        f"{sys.executable}. In the checkout, with that Python: -m pip install -r requirements.txt"
    )


def _end(text: str, status: int) -> int:
    """Says how it ended, and lets Python flush without another error what it may still hold."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError:
        abandon_output()
    if isinstance(sys.stdout, _Output):  # of a command within one: it is said only once
        sys.stdout.problem = None
    _say(text)
    return status


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # then nobody can be told
        print(text, file=sys.stderr, flush=True)


def abandon_output() -> None:
    """Sends what is still to be written to standard output nowhere, which is no error then."""
    if isinstance(sys.stdout, _Output):
        sys.stdout.problem, sys.stdout.abandoned = None, True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Output:
    """A stream that names itself in its errors, and keeps the last one, or writes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.problem: OSError | None = None
        self.abandoned = False

    def write(self, text: str) -> int:
        with self._keeping():
            return len(text) if self.abandoned else self._stream.write(text)

    def flush(self) -> None:
        with self._keeping():
            if not self.abandoned:
                self._stream.flush()

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            with naming(OUTPUT):
                yield
        except OSError as error:
            self.problem = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
