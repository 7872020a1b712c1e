"""The application: trains, evaluates and compares models with alignment attention."""

import sys

from train.devices.huge_pages import restart_with_huge_pages
from train.process import install_hooks, reserve_streams

restart_with_huge_pages()
if sys.argv[:1] == ["-m"]:  # a command; whoever imports the package keeps his own way
    reserve_streams()
    install_hooks()
