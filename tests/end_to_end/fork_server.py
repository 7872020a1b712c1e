"""Forks processes that run side by side, each of which has made its imports already.

Of what a short run takes, the imports are half. A fork goes on as `python -m MODULE ARGUMENTS`
would, see `tests.train.command_server`, but is not waited for.
"""

from __future__ import annotations

import json
import os
import sys

from tests.train import command_server


def main() -> None:
    """Answers requests, one a line, until there are no more.

    One that holds a "pid" asks how that fork ended: its exit status, negative after a signal, or
    null as long as it runs. Any other is a request of `command_server`; the answer is the pid.
    """
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            ended, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if not answer:
                command_server.become(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
