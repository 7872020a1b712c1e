"""Measures what alignment adds to a training step: time, memory, operations.

    python -m train.benchmarks
    python -m train.benchmarks --models=minilm --tokens=128 --methods=ct,ct:32,ct:0:8 --turns=20
    python -m train.benchmarks --models=minilm --tokens=64 --batch=8 --methods=ct,aligned-ct

Runs with align_jax, jax, flax and optax alone. Other benchmarks have commands of their own, and a
sweep times the steps of whatever config it runs:

    python -m train.benchmarks.token_sampling  what drawing some of the tokens does to the value
    python -m train.benchmarks.moving_clouds   whether each method aligns, in toy scenes
    python -m train.benchmarks.mesh_report     what the devices of a mesh send each other
    python -m train.benchmarks.pytorch         fine-tuning beside PyTorch's transformers
"""

from __future__ import annotations

import argparse
import re
import time

import jax

from align_jax.config import METHODS, PLAIN
from train import process
from train.benchmarks import alignment_cost
from train.benchmarks.turns import at_least, listed, solvable


def main() -> None:
    """Runs the command."""
    arguments = process.parser("train.benchmarks", __doc__)
    add = arguments.add_argument
    models = alignment_cost.MODELS
    add("--models", type=listed(known=models), default=[*models], help="minilm,bert-base")
    add("--tokens", type=listed(at_least(2)), default=[128, 512], help="lengths, as 128,512")
    found = [alignment_cost.FOUND + method for method in METHODS if method != PLAIN]
    method = listed(_method, [*METHODS, *found])
    add("--methods", type=method, default=["gan", "ot", "ct"], help="ct:32, ct:32:8, aligned-ct")
    add("--batch", type=at_least(0), default=0, help="examples; 0: 32, for bert-base on a CPU 8")
    add("--turns", type=at_least(1), default=10, help="how often each method is timed")
    add("--cpu-time", action="store_true", help="time of the process alone, on a shared machine")
    options = arguments.parse_args()

    methods, device = solvable(options.methods), jax.local_devices()[0].device_kind
    clock, named = time.perf_counter, "wall time"
    if options.cpu_time:
        clock, named = time.process_time, "CPU time"
    print(f"{device}, jax {jax.__version__}, {options.turns} turns, {named}")
    print(alignment_cost.HEADER)
    sizes = (options.models, options.tokens, methods, options.turns, options.batch)
    for cost in alignment_cost.measure(*sizes, clock=clock):
        print(cost.row(), flush=True)


def _method(name: str) -> str:
    """Refuses numbers that are none."""
    if not re.fullmatch(r"[^:]+(:\d+(:[1-9]\d*)?)?", name):
        raise argparse.ArgumentTypeError(f"{name!r} is none; write ct, ct:32 or ct:32:8.")
    return name


if __name__ == "__main__":
    process.run(main)
