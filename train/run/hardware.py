"""What a run ran on, in words: a measured number belongs to its machine."""

from __future__ import annotations

import os
import pathlib
import platform

import jax

from align_jax.placement import matmul_precision

CPU_INFO = pathlib.Path("/proc/cpuinfo")  # of Linux


def hardware() -> str:
    """The devices, the processor, the version of jax, and the precision of products if it is set.

    Example:
        >>> hardware()  # doctest: +SKIP
        '1 x NVIDIA H200; 16 cores of Intel(R) Xeon(R) Platinum 8481C; jax 0.10.2'
    """
    devices = jax.local_devices()
    usable = hasattr(os, "sched_getaffinity")  # those that this process may use
    count = len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1
    cores = f"{count} core{'' if count == 1 else 's'} of {_processor()}"
    parts = [] if devices[0].platform == "cpu" else [f"{len(devices)} x {devices[0].device_kind}"]
    precision = matmul_precision()
    products = [f"matrix products {precision}"] if precision else []
    return "; ".join([*parts, cores, f"jax {jax.__version__}", *products])


def _processor() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
