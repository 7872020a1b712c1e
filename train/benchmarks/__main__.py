"""Measures what alignment adds to a training step: time, memory, operations.

    python -m train.benchmarks
    python -m train.benchmarks --models=minilm --tokens=128 --methods=gan,ct,ct:32 --turns=20

Prints a table; with --output=FOLDER also writes costs.json and, where matplotlib is installed,
costs.png. Runs with align_jax, jax, flax and optax alone. Beside it are benchmarks of their own
(and a sweep times the steps of whatever config it runs):

    python -m train.benchmarks.step_profile    where the time of an aligned step goes
    python -m train.benchmarks.token_sampling  what drawing some of the tokens does to the value
    python -m train.benchmarks.moving_clouds   whether each method aligns, in toy scenes
    python -m train.benchmarks.mesh_report     what the devices of a mesh send each other
    python -m train.benchmarks.conversion      what finding the attentions of a model costs
    python -m train.benchmarks.text_step       fine-tuning beside PyTorch's transformers
    python -m train.benchmarks.gat_epoch       a graph attention network beside PyTorch Geometric's
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import jax

from align_jax.config import METHODS
from train import process
from train.benchmarks import alignment_cost, cost_report
from train.places import place_of

LONG_TOKENS = (16_384, 32_768)


def main() -> None:
    """Runs the command."""
    options = _options()
    solved = [name for name in options.methods if name.partition(":")[0] == "ot"]
    if solved and importlib.util.find_spec("ott") is None:
        print("ott-jax is not installed; leaving ot out.", file=sys.stderr)
        options.methods = [name for name in options.methods if name not in solved]
    if options.output:
        options.output = place_of(options.output, "--output")
        options.output.mkdir(parents=True, exist_ok=True)  # known now, not after all is measured
    device = jax.local_devices()[0].device_kind
    clock, named = time.perf_counter, "wall time"
    if options.cpu_time:
        clock, named = time.process_time, "CPU time"
    print(f"{device}, jax {jax.__version__}, {options.turns} turns, {named}\n{cost_report.HEADER}")
    costs = []
    sizes = (options.models, options.tokens, options.methods, options.turns, options.batch)
    for cost in alignment_cost.measure(*sizes, clock=clock):
        costs.append(cost)
        print(cost_report.row(cost), flush=True)
    long = []
    for tokens in LONG_TOKENS if options.long else ():
        long.append(alignment_cost.measure_long(tokens, turns=3, clock=clock))
        print(cost_report.long_row(long[-1]), flush=True)
    if options.output:
        with process.naming(options.output):
            cost_report.write(options.output, device, costs, long, named)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    def counts(text: str) -> list[int]:
        return [int(number) for number in names(text)]

    add = parser.add_argument
    add("--models", type=names, default=list(alignment_cost.MODELS), help="minilm,bert-base")
    add("--tokens", type=counts, default=[128, 512], help="lengths, such as 128,512")
    add(
        "--methods",
        type=names,
        default=["gan", "ot", "ct"],
        help="of gan, ot, ct, mmd, energy; ct:32 draws 32 tokens",
    )
    add("--batch", type=int, default=0, help="examples; 0: 32, and 8 for bert-base on a CPU")
    add("--turns", type=int, default=10, help="how often each method is timed")
    add("--cpu-time", action="store_true", help="time of the process alone, on a shared machine")
    add(
        "--long",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="CT of 16,384 and 32,768 tokens",
    )
    add("--output", type=Path, help="folder for costs.json and costs.png")
    options = parser.parse_args()

    parts = [name.partition(":") for name in options.methods]
    wrong = [drawn for _, colon, drawn in parts if colon and not drawn.isdecimal()]
    if wrong:
        parser.error(f"--methods: {wrong[0]!r} is no number of tokens; write ct:32.")
    for flag, named, choices in (
        ("models", options.models, alignment_cost.MODELS),
        ("methods", [method for method, *_ in parts], METHODS),
    ):
        unknown = set(named) - set(choices)
        if unknown:
            parser.error(f"--{flag}: {unknown.pop()!r} is none of {', '.join(choices)}.")
    if options.turns < 1 or options.batch < 0 or min(options.tokens, default=1) < 2:
        parser.error("--turns must be at least 1, --batch at least 0, --tokens at least 2.")
    return options


if __name__ == "__main__":
    process.run(main)
