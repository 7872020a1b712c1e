"""Test set-up: four faked devices, and where the real data lies."""

import gc
import importlib.metadata
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

# Must be set before jax is imported anywhere. Devices that share few cores may wait long for each
# other, after which XLA by default ends the process; and programs run one at a time, since several
# in flight could take the threads that the first one still needs.
_FLAGS = {"--xla_force_host_platform_device_count": 4}
# A flag that jaxlib does not know ends the process.
_JAXLIB = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
if _JAXLIB >= (0, 9):
    _FLAGS["--xla_cpu_collective_call_terminate_timeout_seconds"] = 300

# Tests compile far more than they compute: so a gradient of CT takes a quarter of the time. The
# slow tests run what users run. A program cut into parts to be compiled side by side costs more,
# for all cores are taken.
QUICK_TO_COMPILE = {
    "--xla_backend_optimization_level": 0,
    "--xla_cpu_parallel_codegen_split_count": 1,
}
if _JAXLIB < (0, 11):
    QUICK_TO_COMPILE["--xla_cpu_use_fusion_emitters"] = "false"
# As a process started by a test takes them, on one device.
QUICK_FLAGS = " ".join(f"{flag}={value}" for flag, value in QUICK_TO_COMPILE.items())


def _set_flags(flags: Mapping[str, object]) -> None:
    """Adds those to XLA_FLAGS that it does not set; too late once jax has made its devices."""
    for flag, value in flags.items():
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()


_set_flags(_FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")
# Lowering is faster if it writes no tracebacks into the programs.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Compiled programs are shared by all processes of a test run, and kept for the next one.
ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A checkpoint is done once the disk has it, and tests of runs would wait for that longer than for
# anything else. In memory they need not; there all tests together take 2 GiB at most.
MEMORY = pathlib.Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Where Python is told to keep nothing that it compiled, as in many containers, every process that
# the tests start would compile all packages anew: 4 of its 10 seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tracing makes millions of objects, few of them garbage: Python need not look for it so often.
gc.set_threshold(20_000, 10, 10)

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import faults  # noqa: E402

MANY_MAPS = 40_000
LONGEST = (
    "tests/train/attack/", "tests/test_notebooks.py", "tests/end_to_end/", "tests/train/configs/"
)  # fmt: skip


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data; skips, saying so, where there is none."""
    folder = pathlib.Path(os.environ.get("ALIGN_JAX_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ALIGN_JAX_DATA to a folder that has it")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Drops compiled programs where there are many: each holds memory maps, and Linux ends a
    process that has more than vm.max_map_count (65,530) of them."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `tests.faults`."""
    parser.addoption("--faults", help="the file whose table of faults tried to write anew")


def pytest_configure(config: pytest.Config) -> None:
    """Sets how programs are compiled, and collects the table of faults where it is asked for: in
    the process that sees all tests."""
    if config.getoption("markexpr") != "slow":
        _set_flags(QUICK_TO_COMPILE)
    path = config.getoption("--faults")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(faults.FaultTable(pathlib.Path(path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a file's tests to one worker: what they share is made, and compiled, once.

    In the order of their names, and not those with the fewest tests last, which take longest.
    """
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Prepares the tests that are rows of the table, and puts the files first that take longest of
    those that are not fast: else one worker would be left alone with them."""
    faults.mark(items)
    if config.getoption("markexpr") in ("slow", "thorough"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
