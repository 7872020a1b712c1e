"""Timing several things in one process and in turns; imports nothing beyond Python's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def timed_in_turns(
    steps: Mapping[str, Callable[[], Any]],
    turns: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, turn by turn.

    Another one goes first in each turn, so that none always follows the same.

    Args:
        steps: what is timed; each must wait for its own end.
        turns: how often.
        warm_up: turns before, which are left out: the first use of each program.
        clock: says the time, in seconds. On a machine that others use as well, `time.process_time`
            leaves out their share; it adds up the process's threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(warm_up + turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            steps[name]()
            elapsed = clock() - start
            if turn >= warm_up:
                seconds[name].append(elapsed)
    return seconds
