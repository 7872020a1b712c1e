"""The step: its gradient against plain JAX, and N devices against one."""

from __future__ import annotations

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from align_jax import alignment_loss
from train.data.base import ordered_batches
from train.devices import partition
from train.devices.parallel import Parallel, Pmap, make_parallel
from train.experiment.experiment import build_experiment
from train.registry import ConfigError
from train.step.state import AlignmentTerm
from train.step.step import _sinkhorn, eval_step, train_step
from train.tasks.classification import Classification

WEIGHT = 0.5  # of the alignment: one for all tests, which so share compiled steps
four_devices = pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")


def assert_close(first, second, tolerance: float) -> None:
    chex.assert_trees_all_close(first, second, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def state_and_batch(tiny_config):
    """Makes, once for each config, a state and so many rows of a batch.

    Of the batch's 16 rows most tests take 13, so that few steps are compiled. SGD with rate 1 turns
    the change of the parameters into the gradient.
    """

    @functools.cache
    def start(method: str, **changes):
        experiment = build_experiment(tiny_config(method, alignment__weight=WEIGHT, **changes))
        state, tx = experiment.initial_state(), optax.sgd(1.0)
        state = state.replace(tx=tx, opt_state=tx.init(state.params))
        return state, experiment.data.example_batch()

    def make(method: str, rows: int | None = None, **changes):
        state, batch = start(method, **changes)
        return state, {name: array[:rows].copy() for name, array in batch.items()}

    return make


@pytest.mark.parametrize("method", ["ct", "none", pytest.param("gan", marks=pytest.mark.thorough)])
def test_the_gradient_is_that_of_the_loss_written_down(state_and_batch, method: str) -> None:
    """Of the rows that are no padding."""
    rows = 13
    state, batch = state_and_batch(method)
    batch["image"][rows:] = 1e3
    batch["mask"][rows:] = False

    def loss(params):
        logits, sown = state.model.apply(
            {"params": params}, batch["image"][:rows], deterministic=True, mutable=["alignment"]
        )
        log_probabilities = jax.nn.log_softmax(logits)
        task = -log_probabilities[jnp.arange(rows), batch["label"][:rows]].mean()
        return task + (0.0 if method == "none" else WEIGHT * alignment_loss(sown))

    value, expected = jax.jit(jax.value_and_grad(loss))(state.params)
    after, report = jax.jit(train_step)(state, batch)
    gradient = jax.tree.map(np.subtract, *jax.device_get((state.params, after.params)))
    assert_close(gradient, expected, 1e-5)
    assert report["loss"].compute() == pytest.approx(float(value), rel=1e-5)
    norm = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(expected)))
    assert report["gradient_norm"].compute() == pytest.approx(norm, rel=1e-4)
    aligned = {"alignment", "divergence", "alignment_weight"}
    assert aligned & report.keys() == (set() if method == "none" else aligned)


def test_padding_rows_change_nothing(state_and_batch) -> None:
    """None of the numbers that are reported."""
    state, batch = state_and_batch("ct", rows=13)
    garbage = {name: np.concatenate([array, array[:3]]) for name, array in batch.items()}
    garbage["image"][13:] = 1e3
    garbage["mask"][13:] = False
    sliced, padded = (jax.jit(train_step)(state, b) for b in (batch, garbage))
    assert_close(sliced[0].params, padded[0].params, 1e-5)
    assert sliced[1].keys() == padded[1].keys()
    assert_close(jax.tree.leaves(sliced[1]), jax.tree.leaves(padded[1]), 1e-5)


@pytest.fixture(scope="module")
def partly_masked(state_and_batch):
    """Makes a state, 13 rows of which the first six are masked, and the step on all at once."""

    @functools.cache
    def make(method: str, layers: int):
        state, batch = state_and_batch(
            method, 13, **({} if layers == 1 else {"model__layers": layers})
        )
        batch["mask"][:6] = False
        return state, batch, jax.jit(train_step)(state, batch)

    return make


@pytest.mark.parametrize(("method", "layers"), [
    ("none", 1), ("ct", 1), pytest.param("ot", 2, marks=pytest.mark.thorough),
])  # fmt: skip
def test_parts_take_the_step_of_the_whole(partly_masked, method: str, layers: int) -> None:
    """Three parts of five rows, of which the first holds no example."""
    state, batch, whole = partly_masked(method, layers)
    parts = jax.jit(functools.partial(train_step, microbatch_size=5))(state, batch)
    assert parts[1].keys() == whole[1].keys()
    assert_close(jax.tree.leaves(parts[1]), jax.tree.leaves(whole[1]), 1e-5)
    assert_close(parts[0].params, whole[0].params, 1e-5)
    assert parts[0].step == whole[0].step


def test_parts_that_draw_samples_of_their_own_share_one_mean(state_and_batch) -> None:
    """Of rows that are all alike, so that it does not matter which are drawn."""
    (state, batch), (drawing, _) = (
        state_and_batch("energy", 12, alignment__subsample=subsample) for subsample in (1, 8)
    )
    batch = {name: np.repeat(array[:1], 12, axis=0) for name, array in batch.items()}
    _, whole = jax.jit(train_step)(state, batch)
    _, parts = jax.jit(functools.partial(train_step, microbatch_size=4))(drawing, batch)
    for name in ("alignment", "loss", "gradient_norm"):
        np.testing.assert_allclose(parts[name].compute(), whole[name].compute(), rtol=1e-5)


def test_ot_reports_its_solver(partly_masked) -> None:
    _, report = partly_masked("ot", 2)[2]
    assert report["sinkhorn_iterations"].compute() >= 1
    assert np.isfinite(report["sinkhorn_residual"].compute())
    assert 0.0 <= report["sinkhorn_unconverged"].compute() <= 1.0


def test_the_report_has_a_number_per_layer_and_head(partly_masked) -> None:
    _, report = partly_masked("ot", 2)[2]
    assert list(report["divergence"]) == ["layer_0/attention", "layer_1/attention"]
    heads = np.stack([mean.compute() for mean in report["divergence"].values()])
    assert heads.shape == (2, 2)
    assert heads.mean() == pytest.approx(report["alignment"].compute(), rel=1e-5)


def test_dropout_depends_on_the_step_and_on_the_part_and_is_repeatable(state_and_batch) -> None:
    state, batch = state_and_batch("none", rows=8, model__dropout=0.5)
    step = jax.jit(functools.partial(train_step, microbatch_size=4))
    twice = {name: np.concatenate([array[:4], array[:4]]) for name, array in batch.items()}
    once = {name: array.copy() for name, array in twice.items()}
    once["mask"][4:] = False

    def loss(number: int, batch) -> float:
        return step(state.replace(step=jnp.int32(number)), batch)[1]["loss"].compute()

    first = loss(0, twice)
    assert first == loss(0, twice) != loss(1, twice)
    # Two parts of the same rows do not have the loss of the first of them alone.
    assert first != pytest.approx(loss(0, once), rel=1e-4)


def test_parts_need_less_memory_and_no_second_pass(state_and_batch) -> None:
    state, batch = state_and_batch("energy", 16)
    compiled = [
        jax.jit(functools.partial(train_step, microbatch_size=size)).lower(state, batch).compile()
        for size in (0, 2)
    ]
    whole, parts = (one.memory_analysis().temp_size_in_bytes for one in compiled)
    assert parts < 0.7 * whole
    # The pass that counts the samples is dropped: what is computed, a loop's body counted once, is
    # that of one part of eight, beside what does not grow with the rows.
    whole, parts = (one.cost_analysis()["flops"] for one in compiled)
    assert parts < 0.3 * whole


# A mesh with all that it can do: tensor parallelism over pairs of devices, FSDP over the pairs.
WAYS = {"pmap": {"name": "pmap"}, "mesh": {"name": "mesh", "model": 2, "fsdp": True}}


@pytest.fixture
def four_way(request, monkeypatch) -> Parallel:
    """A way of running on four devices; under FSDP even the tiny model's parameters are cut."""
    monkeypatch.setattr(partition, "LEAST_SIZE", 16)
    way, parts, _ = request.param.partition(" in parts")
    size = 3 if parts else 0
    return make_parallel(devices=jax.local_devices()[:4], microbatch_size=size, **WAYS[way])


in_two_ways = pytest.mark.parametrize("four_way", ["pmap", "mesh"], indirect=True)


def ten_steps(config, parallel: Parallel):
    """The parameters after them, and what they report."""
    experiment = build_experiment(config)
    state, reports = parallel.place(experiment.initial_state()), []
    names = ("loss", "task_loss", "alignment", "accuracy", "gradient_norm")
    for batch, _ in zip(experiment.data.train_batches(), range(10), strict=False):
        state, report = parallel.train_step(state, parallel.shard(batch))
        reports.append(parallel.first({name: report[name] for name in names}))
    return parallel.first(state.params), jax.tree.map(float, jax.tree.leaves(reports))


@four_devices
@pytest.mark.parametrize(
    ("four_way", "method"),
    [
        ("mesh in parts", "energy"),
        pytest.param("pmap in parts", "gan", marks=pytest.mark.thorough),
    ],
    indirect=["four_way"],
)
def test_four_devices_take_the_steps_of_one(tiny_config, four_way, method: str) -> None:
    # Adam divides by the gradient's size, so where a gradient is zero but for rounding (a softmax
    # ignores the keys' bias) its step is noise; a larger epsilon takes that out of the comparison.
    config = tiny_config(
        method, data__batch_size=13, alignment__weight=WEIGHT, optimizer__epsilon=1e-3
    )
    ways = Pmap(jax.local_devices()[:1]), four_way
    for one, four in zip(*(ten_steps(config, way) for way in ways), strict=True):
        assert_close(one, four, 1e-5)


@four_devices
@in_two_ways
def test_four_devices_see_the_gradient_of_one(state_and_batch, four_way) -> None:
    """On 13 rows, so that the devices hold 4, 4, 4 and 1 of them."""
    state, batch = state_and_batch("ct", rows=13)
    whole, _ = jax.jit(train_step)(state, batch)
    placed = four_way.place(jax.device_put(state, may_alias=False))  # which a step gives away
    cut, _ = four_way.train_step(placed, four_way.shard(batch))
    assert_close(whole.params, four_way.first(cut.params), 1e-5)


@four_devices
@in_two_ways
def test_evaluation_counts_every_example_once(state_and_batch, four_way) -> None:
    """For sizes that neither the batch (6) nor the devices (4) divide."""
    for examples in (7, 1):
        state, batch = state_and_batch("none", rows=examples)
        replicas = four_way.place(state)
        total, count = 0.0, 0.0
        for part in ordered_batches({k: v for k, v in batch.items() if k != "mask"}, 6):
            report = four_way.first(four_way.eval_step(replicas, four_way.shard(part))[0])
            total, count = total + report["loss"].total, count + report["loss"].count
        assert count == examples
        logits = jax.jit(state.model.apply)({"params": state.params}, batch["image"])
        losses = -scipy.special.log_softmax(logits, axis=-1)[np.arange(examples), batch["label"]]
        assert total == pytest.approx(float(losses.sum()), rel=1e-5)


def test_the_solvers_report_is_a_mean_over_calls_scanned_or_not() -> None:
    residuals = np.arange(24.0, dtype=np.float32).reshape(3, 4, 2)  # of layers, samples, heads
    valid = np.array([True, True, False, True])

    @jax.jit
    def mean(calls):
        return _sinkhorn({"alignment": {"layer": {"sinkhorn_residual": calls}}}, valid)

    for calls in ((residuals,), tuple(residuals), (residuals[:1], residuals[1], residuals[2])):
        found = mean(calls)["sinkhorn_residual"].compute()
        assert found == pytest.approx(float(residuals[:, valid].mean()))


def test_evaluation_has_no_dropout(state_and_batch) -> None:
    state, batch = state_and_batch("none", model__dropout=0.5)
    evaluated = jax.jit(eval_step)
    first, second = (evaluated(state.replace(step=jnp.int32(s)), batch)[0] for s in (0, 1))
    assert first["loss"].compute() == second["loss"].compute()


def test_the_weight_warms_up_linearly() -> None:
    term = AlignmentTerm(config=None, weight=0.8, warmup_steps=4)  # type: ignore[arg-type]
    weights = [float(term.weight_at(jnp.int32(step))) for step in range(6)]
    np.testing.assert_allclose(weights, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_alignment_lowers_the_divergence_it_is_given(tiny_config) -> None:
    """MMD has no adversary, so training for it must end far below training without it."""
    config = tiny_config(
        "mmd", alignment__weight=100.0, alignment__warmup_steps=1,
        optimizer__learning_rate=2e-2, train__steps=100,
    )  # fmt: skip
    experiment, step, final = build_experiment(config), jax.jit(train_step), {}
    for weight, number in ((0.0, -1), (100.0, 0)):  # one program: the weight is that of the step
        state, batch = experiment.initial_state(), experiment.data.example_batch()
        for _ in range(50):
            state, report = step(state.replace(step=np.int32(number)), batch)
        assert report["alignment_weight"].compute() == weight
        final[weight] = report["alignment"].compute()
    assert final[100.0] < 0.2 * final[0.0]


@pytest.mark.parametrize("step", [train_step, eval_step])
def test_losses_of_another_shape_are_refused_and_not_broadcast(
    state_and_batch, monkeypatch, step
) -> None:
    state, batch = state_and_batch("none")
    loss = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda *arguments: loss(*arguments)[:, None])
    with pytest.raises(AssertionError, match="Classification.loss must return one number per"):
        jax.eval_shape(functools.partial(step), state, batch)  # traced anew


@pytest.mark.parametrize("layers", [("zzz",), ()])
def test_alignment_of_no_layer_is_refused(tiny_config, layers) -> None:
    experiment = build_experiment(tiny_config("energy", alignment__layers=layers))
    state, batch = experiment.initial_state(), experiment.data.example_batch()
    with pytest.raises(ConfigError, match=re.escape(f"alignment.layers is {layers}")):
        jax.eval_shape(train_step, state, batch)
    with pytest.raises(ConfigError, match="no attention of the model has in its path"):
        jax.eval_shape(functools.partial(train_step, microbatch_size=2), state, batch)
