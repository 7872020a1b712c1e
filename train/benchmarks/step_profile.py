"""Where the time of an aligned training step goes: which part of the program, and which operations.

    python -m train.benchmarks.step_profile --model=minilm --tokens=128 --method=ct

Needs align_jax, jax, flax and optax alone. JAX's profiler says how long each compiled operation
took, the compiled program says which line of the model an operation comes from. An operation that
XLA fused out of several counts for the one whose name it carries.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from align_jax.config import METHODS
from train import process
from train.benchmarks import alignment_cost

# The first pattern that is found in an operation's origin says which part it belongs to.
PARTS = (
    (
        "alignment: critic, navigator, discriminator",
        r"alignment/.*(critic|navigator|discriminator)",
    ),
    ("alignment: divergence", r"attention/alignment/"),
    ("model: attention", r"attention/"),
    ("model: the rest of the layers", r"layer_[\d*]+/"),
    ("model: embeddings and head", r"SequenceClassifier"),
)
OPTIMISER = "optimiser, and what names no origin"
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?metadata=\{.*?op_name=\"([^\"]*)\"")


def origins(program: str) -> dict[str, str]:
    """What each instruction of a compiled program was traced from.

    Args:
        program: the text of the compiled program.

    Returns:
        Name of the instruction -> path of modules and primitives, such as
        "jit(step)/jvp(SequenceClassifier)/encoder/layer_0/attention/query/dot_general".

    Example:
        >>> origins('  %dot.1 = f32[2] dot(%x), metadata={op_name="jit(f)/dot"}')
        {'dot.1': 'jit(f)/dot'}
    """
    found = (_INSTRUCTION.match(line) for line in program.splitlines())
    return {match[1]: match[2] for match in found if match}


def self_times(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Microseconds of each operation, without those that ran within it (a loop's body).

    Args:
        events: of a trace in Chrome's format.
    """
    threads = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            threads[event["pid"], event["tid"]].append(event)
    total: dict[str, float] = collections.defaultdict(float)
    for thread in threads.values():
        open_events: list[tuple[float, str]] = []  # where it ends, and its name
        for event in sorted(thread, key=lambda e: (e["ts"], -e["dur"])):
            while open_events and open_events[-1][0] <= event["ts"]:
                open_events.pop()
            name = event.get("args", {}).get("hlo_op", event["name"])
            total[name] += event["dur"]
            if open_events:
                total[open_events[-1][1]] -= event["dur"]
            open_events.append((event["ts"] + event["dur"], name))
    return dict(total)


def part_of(origin: str) -> str:
    """The part of the training step that an operation belongs to, by its origin.

    Example:
        >>> part_of("jit(step)/jvp(SequenceClassifier)/encoder/layer_0/mlp_in/dot_general")
        'model: the rest of the layers'
    """
    return next((part for part, pattern in PARTS if re.search(pattern, origin)), OPTIMISER)


def profile(step: alignment_cost.Step, steps: int) -> dict[str, float]:
    """Milliseconds per step of a compiled step's operations, by origin, all layers together.

    Args:
        step: what to profile; it has been called before.
        steps: how many to take.

    Returns:
        Origin, with "layer_*" for every layer -> milliseconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                step()
        events = []
        for path in Path(folder).rglob("*.trace.json.gz"):
            events += json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    known, times = origins(step.program), self_times(events)
    total: dict[str, float] = collections.defaultdict(float)
    for name in known.keys() & times.keys():
        total[re.sub(r"layer_\d+", "layer_*", known[name])] += times[name] / 1e3 / steps
    return dict(total)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.benchmarks.step_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=alignment_cost.MODELS, default="minilm")
    parser.add_argument("--tokens", type=int, default=128, help="length (default: %(default)s)")
    parser.add_argument("--method", choices=METHODS, default="ct", help='"none": the plain model')
    parser.add_argument("--batch", type=int, default=0, help="examples; 0: as for the benchmarks")
    parser.add_argument("--steps", type=int, default=3, help="to profile (default: %(default)s)")
    parser.add_argument("--operations", type=int, default=5, help="to list of each part")
    options = parser.parse_args()

    batch = options.batch or alignment_cost.batch_size(options.model)
    data = alignment_cost.random_batch(batch, options.tokens)
    step = alignment_cost.Step(options.model, options.method, data)
    step()
    times = profile(step, options.steps)
    whole = sum(times.values())
    device = jax.local_devices()[0].device_kind
    print(f"{options.method} on {options.model}, {batch} x {options.tokens} tokens, {device}")
    print(f"{whole:9.1f} ms in operations, per step")
    for part in (*(part for part, _ in PARTS), OPTIMISER):
        inside = {origin: t for origin, t in times.items() if part_of(origin) == part}
        total = sum(inside.values())
        print(f"{total:9.1f} ms {total / whole:6.1%}  {part}")
        largest = sorted(inside.items(), key=lambda item: -item[1])[: options.operations]
        for origin, milliseconds in largest:
            print(f"{milliseconds:14.2f}           {'/'.join(origin.split('/')[-5:])}")


if __name__ == "__main__":
    process.run(main)
