"""What the devices of a mesh send each other, read off the compiled step."""

from __future__ import annotations

import functools
import re
from collections import defaultdict

import jax
import numpy as np
import pytest
from flax import traverse_util

from align_jax import AlignmentConfig
from align_jax.models import BertConfig, SequenceClassifier
from train.benchmarks.mesh_report import collectives
from train.devices.mesh import MeshRunner
from train.step.optimizer import OptimizerConfig, make_optimizer
from train.step.state import AlignmentTerm, TrainState, create_state
from train.step.step import train_step
from train.tasks.text import TextClassification

pytestmark = pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")

# All sizes differ, and from their quarters: so that a shape says what it is of.
ROWS, TOKENS, HIDDEN, MLP, VOCABULARY = 20, 24, 64, 256, 8192


def example() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, TOKENS, ROWS)
    return {
        "input_ids": rng.integers(1, 200, (ROWS, TOKENS)).astype(np.int32),
        "attention_mask": (np.arange(TOKENS) < lengths[:, None]).astype(np.int32),
        "token_type_ids": np.zeros((ROWS, TOKENS), np.int32),
        "label": rng.integers(0, 2, ROWS).astype(np.int32),
        "mask": np.arange(ROWS) < ROWS - 3,
    }


@functools.cache
def first_state(method: str) -> TrainState:
    alignment = AlignmentConfig(method, tokens=8, subsample=5)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, layers=1, heads=4, mlp_size=MLP, dropout=0.0,
        attention_dropout=0.0, max_positions=TOKENS, alignment=alignment,
    )  # fmt: skip
    batch = {name: x[:1] for name, x in example().items()}
    return create_state(
        SequenceClassifier(config, 2), make_optimizer(OptimizerConfig(), 100), TextClassification(),
        AlignmentTerm(alignment, 0.1, 0), batch, seed=0,
    )  # fmt: skip


def state(method: str = "energy") -> TrainState:
    """A copy, which a step may be given."""
    return jax.device_put(first_state(method), may_alias=False)


@functools.cache
def compiled(method: str = "energy", *, model: int = 1, fsdp: bool = False):
    """The step on a mesh of four, compiled for placed arguments."""
    runner = MeshRunner(jax.local_devices()[:4], model=model, fsdp=fsdp)
    arguments = runner.place(state(method)), runner.shard(example())
    return runner, runner.lower(*arguments).compile()


def shapes_moved(text: str) -> dict[str, set[tuple[int, ...]]]:
    """The shapes that each kind of collective moves."""
    found = defaultdict(set)
    for moved in collectives(text):
        found[moved.kind].add(moved.shape)
    return found


# Under FSDP a device looks up its features of all words, and sends them to whose words they are.
LOOKED_UP = {("all-gather", (ROWS, TOKENS)), ("all-to-all", (1, ROWS // 4, TOKENS, HIDDEN // 4))}
BACK = ("all-to-all", (ROWS // 4, TOKENS, 1, HIDDEN // 4))  # the gradient of what was sent


@pytest.mark.parametrize("fsdp", [False, True])
def test_devices_exchange_parameters_and_never_the_batch(fsdp: bool) -> None:
    found = shapes_moved(compiled(fsdp=fsdp)[1].as_text())
    shapes = {x.shape for x in jax.tree.leaves(state().params)}
    if fsdp:
        for kind, shape in {*LOOKED_UP, BACK}:
            found[kind].remove(shape)
        assert not found.pop("all-to-all")
        # At least the matrices of attention and MLP; the table of words stays where it lies.
        assert {(HIDDEN, MLP), (MLP, HIDDEN)} <= found["all-gather"] <= shapes
        assert not any(VOCABULARY in shape for shape in set().union(*found.values()))
    assert set(found) == ({"all-reduce", "all-gather"} if fsdp else {"all-reduce"})
    for shape in set().union(*found.values()):
        assert not {ROWS, ROWS * TOKENS, ROWS // 4, ROWS // 4 * TOKENS} & set(shape), shape
        assert TOKENS not in shape or shape in shapes, shape  # the table of positions


@pytest.mark.parametrize("passes", [None, 2])
def test_devices_that_evaluate_exchange_no_activations(passes: int | None) -> None:
    runner = compiled(fsdp=True)[0]
    arguments = runner.place(state()), runner.shard(example())
    programs = runner._programs
    with jax.set_mesh(runner._mesh):
        if passes is None:
            lowered = programs.eval_step.lower(*arguments)
        else:
            lowered = programs.stochastic_step.lower(*arguments, np.int32(0), passes)
    moved = collectives(lowered.compile().as_text())
    assert {(one.kind, one.shape) for one in moved if TOKENS in one.shape} == LOOKED_UP


def test_cut_parameters_need_less_memory_beside_the_state_too() -> None:
    whole, cut = (compiled(fsdp=fsdp)[1].memory_analysis() for fsdp in (False, True))
    assert cut.argument_size_in_bytes < 0.3 * whole.argument_size_in_bytes
    assert cut.temp_size_in_bytes < whole.temp_size_in_bytes


def test_the_step_is_that_of_one_device() -> None:
    runner, program = compiled(fsdp=True)
    placed, report = program(runner.place(state()), runner.shard(example()))
    expected, expected_report = jax.jit(train_step)(state(), example())
    for name in ("loss", "alignment", "gradient_norm"):
        np.testing.assert_allclose(
            report[name].compute(), expected_report[name].compute(), rtol=1e-5
        )
    before, after, found = (
        traverse_util.flatten_dict(jax.device_get(x.params), sep="/")
        for x in (state(), expected, placed)
    )
    for name, parameter in after.items():
        np.testing.assert_allclose(found[name], parameter, atol=5e-5, err_msg=name)
    moved = [name for name in after if not np.array_equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(after)


@pytest.mark.parametrize("method", [pytest.param("ot", marks=pytest.mark.thorough), "energy"])
def test_devices_align_their_own_samples_and_heads(method: str) -> None:
    """Heads are cut over two devices and samples over two; the numbers are those of one device."""
    runner, program = compiled(method, model=2)
    operations = re.findall(r'.*op_name="[^"]*alignment\._divergence[^"]*".*', program.as_text())
    assert len(operations) > 20
    assert not collectives("\n".join(operations))
    _, report = program(runner.place(state(method)), runner.shard(example()))
    _, expected = jax.jit(train_step)(state(method), example())
    for name in {"loss", "alignment", "gradient_norm", "sinkhorn_iterations"} & expected.keys():
        np.testing.assert_allclose(report[name].compute(), expected[name].compute(), rtol=1e-5)
