"""Runs commands in processes that have imported JAX and the application already.

A command that only tells of a mistake would spend nearly all of its time on imports. This process
makes them once, and each command that it is asked for is a fork of it that goes on as
`python -m MODULE ARGUMENTS` would: it parses its flags, writes, and ends with a status of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import sys
from typing import Any, NoReturn

# Nothing that defines the flags of a command.
import train.cli
import train.data.digits
import train.predictor
import train.run.loop  # noqa: F401


def main() -> None:
    """Answers requests, one a line, until there are no more.

    A request names the "module", its "arguments", the "environment" and the files of the standard
    streams, "files"; the answer is the command's exit status.
    """
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            become(request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(request: dict[str, Any]) -> NoReturn:
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, (path, mode) in enumerate(
        zip(request["files"], (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)
    ):
        os.dup2(os.open(path, mode), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (the old one has read on)
    sys.argv = ["-m", *request["arguments"]]
    _run(request["module"])


def _run(module: str) -> NoReturn:
    """Runs a command and ends the process. Python's own end frees all that was imported before the
    fork, which takes longer than most commands do."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = None
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    main()
