"""The application: trains, evaluates and compares models with alignment attention."""

import os
import sys

from train.process import install_hooks, reserve_streams

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Starts a command anew with huge pages, before it has loaded anything that takes time.

    XLA on a CPU takes its temporary memory anew in each step and gives it back; with pages of 4 kB
    the kernel then clears some 260,000 of them per step of MiniLM (32 pairs), a sixth of the CPU
    time. For `python -m train...` on Linux alone; whoever imports the package keeps the process as
    it is, and whoever has set the tunable keeps it ("glibc.malloc.hugetlb=0" switches this off).
    """
    tunables = os.environ.get(TUNABLES, "")
    options = sys.orig_argv[1:]
    # While Python looks for the module that "-m" names, that is its whole argv[0].
    if sys.platform != "linux" or HUGE_PAGES in tunables or sys.argv[:1] != ["-m"]:
        return
    module = options[options.index("-m") + 1]
    if module.partition(".")[0] == "train":
        os.environ[TUNABLES] = ":".join(filter(None, [tunables, f"{HUGE_PAGES}=1"]))
        os.execv(sys.executable, sys.orig_argv)


restart_with_huge_pages()
if sys.argv[:1] == ["-m"]:  # a command; whoever imports the package keeps his own way
    reserve_streams()
    install_hooks()
