"""What the benchmarks share: taking turns, ratios within each turn, and types of flags."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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


def ratios(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, list[float]]:
    """Each one's time over that of `base` in the same turn."""
    return {
        name: [mine / other for mine, other in zip(times, seconds[base], strict=True)]
        for name, times in seconds.items()
    }


def spread(values: Sequence[float]) -> str:
    """Median, least and most.

    Example:
        >>> spread([2.0, 1.0, 4.0])
        '2.00 [1.00, 4.00]'
    """
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def listed(kind: Callable[[str], Any] = str, known: Collection[str] = ()) -> Callable[[str], list]:
    """The type of a flag with several values, which commas separate.

    Args:
        kind: makes a value of a text.
        known: what a value may be, up to a colon; nothing for whatever `kind` takes.

    Example:
        >>> listed(int)("128,512")
        [128, 512]
    """

    def values(text: str) -> list[Any]:
        texts = [value for value in text.split(",") if value]
        unknown = [value for value in texts if known and value.partition(":")[0] not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}.")
        return [kind(value) for value in texts]

    return values


def at_least(least: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """The type of a flag that is a number of a certain size."""

    def value(text: str) -> Any:
        number = kind(text)
        if not number >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}.")
        return number

    value.__name__ = kind.__name__  # for "invalid int value"
    return value


def solvable(methods: Sequence[str]) -> list[str]:
    """The methods without "ot" where its solver is not installed."""
    if importlib.util.find_spec("ott") is not None:
        return list(methods)
    print("ott-jax is not installed; leaving ot out.", file=sys.stderr)
    return [method for method in methods if not method.partition(":")[0].endswith("ot")]
