"""What the devices of a mesh need, and send each other, in a training step that is only compiled.

    python -m train.benchmarks.mesh_report --target=cpu:16
    python -m train.benchmarks.mesh_report --target=tpu:v5e:4x4 --ways=data,fsdp --methods=none,ct

The target need not be there: "cpu:N" fakes N devices, "tpu:TOPOLOGY" describes TPUs to their own
compiler (pip install --no-deps libtpu). A way is "data" (parameters on all devices), "fsdp" (each
device holds a part of them) or "model=N" (heads and units over N devices), joined by "+". The model
is the beginning of MiniLM. Per device: temporary memory, memory of state and batch, and the size of
the arrays that each kind of collective moves.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from align_jax import AlignmentConfig
from align_jax.config import METHODS
from align_jax.models import BertConfig, SequenceClassifier
from train import process
from train.benchmarks.turns import at_least, listed
from train.devices.mesh import MeshRunner
from train.registry import ConfigError
from train.step.optimizer import OptimizerConfig, make_optimizer
from train.step.state import AlignmentTerm, create_state
from train.tasks.text import TextClassification

MIB = 2**20
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+))\[([\d,]*)\]")


class Moved(NamedTuple):
    """One array that a collective moves: its shape on each device, its bytes, its operation."""

    kind: str
    shape: tuple[int, ...]
    size: float
    name: str


def collectives(text: str) -> list[Moved]:
    """The arrays that the collectives of a compiled program's text move; loops are counted once.

    Example:
        >>> collectives('a = f32[8,2]{1,0} all-gather(b), metadata={op_name="x/y"}')
        [Moved(kind='all-gather', shape=(8, 2), size=64.0, name='x/y')]
    """
    found = []
    for line in text.splitlines():
        instruction, name = _INSTRUCTION.search(line), re.search(r'op_name="([^"]*)"', line)
        if instruction is None:
            continue
        for _, bits, sizes in _ARRAY.findall(instruction[1]):
            shape = tuple(int(size) for size in sizes.split(",") if size)
            size = math.prod(shape) * int(bits or 8) / 8
            found.append(Moved(instruction[2], shape, size, name[1] if name else ""))
    return found


def described(target: str) -> list[jax.Device]:
    """The devices of a target, which need not be there.

    Raises:
        ConfigError: it is no target, or its compiler is not installed.
    """
    kind, _, which = target.partition(":")
    if kind == "cpu" and which.isdigit() and int(which):
        jax.config.update("jax_num_cpu_devices", int(which))
        return jax.devices("cpu")
    if kind != "tpu" or not which:
        raise ConfigError(f"--target is {target!r}; expected cpu:16 or tpu:v5e:4x4, say.")
    from jax.experimental import topologies

    # It is asked for what a machine with TPUs would say of itself.
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    try:
        return list(topologies.get_topology_desc(which, platform="tpu").devices)
    except Exception as error:  # of whatever kind the plugin has
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"--target={target} cannot be described: {text}") from error


def report(
    devices: list[jax.Device], way: str, method: str, rows: int, tokens: int, layers: int
) -> tuple[Any, list[Moved]]:
    """Compiles the step of a way on some devices; its memory, and what its collectives move."""
    options: dict[str, Any] = {}
    for part in way.split("+"):
        name, _, number = part.partition("=")
        if part == "fsdp":
            options["fsdp"] = True
        elif name == "model" and number.isdigit():
            options["model"] = int(number)
        elif part != "data":
            raise ConfigError(f"--ways has {part!r}; expected data, fsdp or model=N.")
    runner = MeshRunner(devices, **options)
    alignment = AlignmentConfig(method)
    config = BertConfig(
        hidden_size=384, layers=layers, mlp_size=1536, max_positions=max(tokens, 512),
        dropout=0.0, attention_dropout=0.0, alignment=alignment,
    )  # fmt: skip
    total = rows * len(devices) // options.get("model", 1)
    ids = jax.ShapeDtypeStruct((total, tokens), jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)
    batch["label"] = jax.ShapeDtypeStruct((total,), jnp.int32)
    batch["mask"] = jax.ShapeDtypeStruct((total,), jnp.bool_)
    state = jax.eval_shape(
        lambda: create_state(
            SequenceClassifier(config, 2),
            make_optimizer(OptimizerConfig(), 100),
            TextClassification(),
            AlignmentTerm(alignment, None, 0),
            {name: jnp.zeros((1, *x.shape[1:]), x.dtype) for name, x in batch.items()},
            seed=0,
        )
    )
    compiled = runner.lower(state, batch).compile()
    return compiled.memory_analysis(), collectives(compiled.as_text() or "")


def main() -> None:
    """Runs the command."""
    arguments = process.parser("train.benchmarks.mesh_report", __doc__)
    add, ways = arguments.add_argument, ["data", "fsdp", "model=2"]
    add("--target", default="cpu:16", help="cpu:N or tpu:TOPOLOGY, such as tpu:v5e:4x4")
    add("--ways", type=listed(), default=ways, help="of data, fsdp, model=N, fsdp+model=N")
    add("--methods", type=listed(known=METHODS), default=["none", "ct"], help=", ".join(METHODS))
    add("--rows", type=at_least(1), default=8, help="examples on each device")
    add("--tokens", type=at_least(2), default=128, help="in an example")
    add("--layers", type=at_least(1), default=1, help="of MiniLM's six")
    options = arguments.parse_args()
    sizes = (options.rows, options.tokens, options.layers)
    devices = described(options.target)
    print(f"{options.target}, {len(devices)} devices, {sizes[0]} x {sizes[1]} tokens each\n")
    columns = ["temporary", "state", *COLLECTIVES]
    print(f"| way | method | {' | '.join(f'{column}, MiB' for column in columns)} |")
    print(f"| --- | --- |{' ---: |' * len(columns)}")
    for way, method in itertools.product(options.ways, options.methods):
        memory, moved = report(devices, way, method, *sizes)
        totals = [sum(one.size for one in moved if one.kind == kind) for kind in COLLECTIVES]
        found = [memory.temp_size_in_bytes, memory.argument_size_in_bytes, *totals]
        cells = [way, method, *(f"{x / MIB:.1f}" for x in found)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    process.run(main)
