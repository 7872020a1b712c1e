"""Commands start anew with huge pages, once; nobody else does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import train


@pytest.mark.parametrize(
    ("options", "tunables", "expected"),
    [
        (["-m", "train.sweep", "--seeds=0"], "", "glibc.malloc.hugetlb=1"),
        (["-X", "dev", "-m", "train"], "a.b=2", "a.b=2:glibc.malloc.hugetlb=1"),
        (["-m", "train"], "glibc.malloc.hugetlb=0", None),
        (["-m", "training"], "", None),
        (["-m", "pytest", "train"], "", None),
        (["train.py"], "", None),
        (["bin/pytest", "-m", "train"], "", None),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables")
def test_commands_restart(monkeypatch, options, tunables, expected) -> None:
    started = []
    monkeypatch.setenv(train.TUNABLES, tunables)
    monkeypatch.setattr(sys, "orig_argv", ["python", *options])
    script = options[0] if options[0].count("py") else "-m"  # as while it looks for the module
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))
    train.restart_with_huge_pages()
    if expected is None:
        assert not started
        assert os.environ[train.TUNABLES] == tunables
    else:
        assert started == [(sys.executable, ["python", *options])]
        assert os.environ[train.TUNABLES] == expected


def test_importing_the_package_leaves_the_process_as_it_is() -> None:
    code = "import os, train; print(os.environ.get('GLIBC_TUNABLES'))"
    environment = {name: x for name, x in os.environ.items() if name != train.TUNABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "None"
