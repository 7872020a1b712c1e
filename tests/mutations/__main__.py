"""Do the fast tests notice small faults? Run by hand; neither CI nor pytest runs it.

    python -m tests.mutations --list
    python -m tests.mutations --check
    python -m tests.mutations "ece-*" gradient-reversal-gone
    python -m tests.mutations --jobs=2 --results=mutations.md

Each mutation is made in a copy of the tree, where its tests then run until one fails; the working
tree stays as it is. All of them together take more than an hour of a core. With --results the
outcomes are also appended to a Markdown table, and what that holds is not run again. The exit
status is 1 if a mutation was not noticed, or could not be tried.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tests.mutations.catalogue import MUTATIONS
from tests.mutations.mutation import ROOT, Mutation, problems

LIMIT = 600  # seconds that the tests of a mutation may take
PYTEST = (
    "-m", "pytest", "-q", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist",
)  # fmt: skip
# Most programs are those that they were without the mutation: compiled once, they are kept.
CACHE = "JAX_COMPILATION_CACHE_DIR"
CACHE_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
HEAD = "| Mutation | File | Noticed by |\n| --- | --- | --- |\n"
NOT_NOTICED, INVALID = "NOT NOTICED", "INVALID"


def copy_tree(target: pathlib.Path) -> None:
    """Copies what git tracks, and what it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def try_out(mutation: Mutation, cache: str) -> str:
    """The test that notices a mutation, or `NOT_NOTICED`, or `INVALID` and why.

    Args:
        mutation: to try.
        cache: folder of compiled programs.
    """
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = pathlib.Path(folder)
        copy_tree(copy)
        try:
            mutation.apply(copy)
        except ValueError as error:
            return f"{INVALID}: {error}"
        # The copy comes before whatever is installed of the checkout.
        process = subprocess.Popen(
            [sys.executable, *PYTEST, *mutation.tests],
            cwd=copy, env={CACHE: cache} | CACHE_ALL | os.environ | {"PYTHONPATH": folder},
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return f"{INVALID}: its tests took more than {LIMIT} s."
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return outcome(process.returncode, output)


def outcome(status: int, output: str) -> str:
    """What pytest's exit status and output say of a mutation."""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", output, re.MULTILINE)
    if status == 1 and failed:
        return failed[1]
    if status == 0:
        return NOT_NOTICED
    said = " ".join(output.split())[-300:]
    return f"{INVALID}: pytest ended with {status}: {said}"


def read_results(path: pathlib.Path | None) -> dict[str, str]:
    """The outcomes that a table holds, by mutation."""
    lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
    cells = [[cell.strip(" `") for cell in line.strip("| ").split(" | ")] for line in lines[2:]]
    return {name: said for name, _, said in cells}


def run(mutations: Sequence[Mutation], jobs: int, results: pathlib.Path | None) -> bool:
    """Tries mutations out and says what comes of each; whether all of them are noticed."""
    known = read_results(results)
    outcomes = [known[mutation.name] for mutation in mutations if mutation.name in known]
    if results and not results.exists():
        results.write_text(HEAD, encoding="utf-8")
    with (
        tempfile.TemporaryDirectory(prefix="mutations-") as cache,
        ThreadPoolExecutor(jobs) as pool,
    ):
        waiting = {pool.submit(try_out, x, cache): x for x in mutations if x.name not in known}
        try:
            for future in as_completed(waiting):
                mutation, said = waiting[future], future.result()
                print(f"{mutation.name}: {said}", flush=True)
                outcomes.append(said)
                if results:
                    row = f"| {mutation.name} | `{mutation.file}` | `{said.replace('|', '/')}` |\n"
                    with results.open("a", encoding="utf-8") as file:
                        file.write(row)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    missed = [said for said in outcomes if said.startswith((NOT_NOTICED, INVALID))]
    print(f"{len(outcomes) - len(missed)} of {len(outcomes)} mutations are noticed.")
    return not missed


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", help="names, or patterns such as 'ece-*'; all without")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--check", action="store_true", help="only see that they can be made")
    parser.add_argument("--jobs", type=int, default=1, help="at a time (default: %(default)s)")
    parser.add_argument("--results", type=pathlib.Path, help="a Markdown table to append to")
    options = parser.parse_args()
    if options.check:
        wrong = problems(MUTATIONS)
        print("\n".join(wrong) or f"All {len(MUTATIONS)} mutations can be made.")
        return int(bool(wrong))
    names = options.names or ["*"]
    unknown = [name for name in names if not fnmatch.filter([x.name for x in MUTATIONS], name)]
    if unknown:
        parser.error(f"there is no mutation {', '.join(unknown)}; see --list")
    chosen = [x for x in MUTATIONS if any(fnmatch.fnmatchcase(x.name, name) for name in names)]
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name}: {mutation.file}, {' '.join(mutation.tests)}")
        return 0
    return int(not run(chosen, options.jobs, options.results))


if __name__ == "__main__":
    sys.exit(main())
