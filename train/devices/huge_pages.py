"""Huge pages for glibc's memory, which a process can ask for only before it starts.

XLA on a CPU takes its temporary memory anew in each step and gives it back; with pages of 4 kB the
kernel then clears some 260,000 of them per step of MiniLM (32 pairs), a sixth of the CPU time.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Starts a command anew with huge pages, before it has loaded anything that takes time.

    For `python -m train...` on Linux alone; whoever imports the package keeps the process as it is,
    and whoever has set the tunable keeps it ("glibc.malloc.hugetlb=0" switches this off).
    """
    tunables = os.environ.get(VARIABLE, "")
    options = sys.orig_argv[1:]
    # While Python looks for the module that "-m" names, that is its whole argv[0].
    if sys.platform != "linux" or SETTING in tunables or sys.argv[:1] != ["-m"]:
        return
    module = options[options.index("-m") + 1]
    if module.partition(".")[0] == "train":
        os.environ[VARIABLE] = ":".join(filter(None, [tunables, f"{SETTING}=1"]))
        os.execv(sys.executable, sys.orig_argv)


@contextlib.contextmanager
def children_without_huge_pages() -> Iterator[None]:
    """Processes started meanwhile have glibc's memory as it comes, whatever this process has."""
    tunables = os.environ.get(VARIABLE)
    if tunables is None:
        yield
        return
    others = [option for option in tunables.split(":") if not option.startswith(f"{SETTING}=")]
    os.environ[VARIABLE] = ":".join(others)
    try:
        yield
    finally:
        os.environ[VARIABLE] = tunables
