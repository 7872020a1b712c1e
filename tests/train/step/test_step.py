"""The step: its gradient against plain JAX, and N devices against one."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax import alignment_loss
from train.data.base import ordered_batches
from train.devices import partition
from train.devices.parallel import Parallel, Pmap, make_parallel
from train.experiment.experiment import build_experiment
from train.step.state import AlignmentTerm
from train.step.step import _sinkhorn, eval_step, train_step
from train.tasks.classification import Classification

four_devices = pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")


def assert_close(first, second, tolerance: float) -> None:
    chex.assert_trees_all_close(first, second, rtol=tolerance, atol=tolerance)


def state_and_batch(config, tx=None, rows: int | None = None):
    experiment = build_experiment(config)
    state = experiment.initial_state()
    if tx is not None:
        state = state.replace(tx=tx, opt_state=tx.init(state.params))
    batch = experiment.data.example_batch()
    return state, {name: array[:rows] for name, array in batch.items()}


@pytest.mark.parametrize("method", ["ct", "gan", "none"])
def test_the_gradient_is_that_of_the_loss_written_down(tiny_config, method: str) -> None:
    """SGD with rate 1 turns the change of the parameters into the gradient."""
    weight = 0.3
    config = tiny_config(method, alignment__weight=weight)
    state, batch = state_and_batch(config, tx=optax.sgd(1.0))

    def loss(params):
        logits, sown = state.model.apply(
            {"params": params}, batch["image"], deterministic=True, mutable=["alignment"]
        )
        log_probabilities = jax.nn.log_softmax(logits)
        task = -log_probabilities[jnp.arange(16), batch["label"]].mean()
        return task + (0.0 if method == "none" else weight * alignment_loss(sown))

    value, expected = jax.value_and_grad(loss)(state.params)
    after, report = jax.jit(train_step)(state, batch)
    gradient = jax.tree.map(lambda a, b: a - b, state.params, after.params)
    assert_close(gradient, expected, 1e-5)
    assert report["loss"].compute() == pytest.approx(float(value), rel=1e-5)
    assert report["gradient_norm"].compute() == pytest.approx(
        float(optax.tree.norm(expected)), rel=1e-4
    )
    assert ("alignment" in report) is (method != "none")


@pytest.mark.parametrize("method", ["ct", "gan"])
def test_padding_rows_change_nothing(tiny_config, method: str) -> None:
    state, batch = state_and_batch(tiny_config(method), tx=optax.sgd(1.0), rows=5)
    garbage = {name: np.concatenate([array, array[:3]]) for name, array in batch.items()}
    garbage["image"][5:] = 1e3
    garbage["mask"][5:] = False
    sliced, padded = (jax.jit(train_step)(state, b) for b in (batch, garbage))
    assert_close(sliced[0].params, padded[0].params, 1e-5)
    for name in sliced[1]:
        assert_close(jax.tree.leaves(sliced[1][name]), jax.tree.leaves(padded[1][name]), 1e-5)


@pytest.mark.parametrize("method", ["none", "gan", "ct", "ot", "mmd"])
def test_parts_take_the_step_of_the_whole(tiny_config, method: str) -> None:
    """13 rows in three parts of five, of which the first holds no example."""
    config = tiny_config(method, alignment__weight=0.5, model__layers=2)
    state, batch = state_and_batch(config, tx=optax.sgd(1.0), rows=13)
    batch["mask"][:6] = False
    whole = jax.jit(train_step)(state, batch)
    parts = jax.jit(functools.partial(train_step, microbatch_size=5))(state, batch)
    assert parts[1].keys() == whole[1].keys()
    assert_close(jax.tree.leaves(parts[1]), jax.tree.leaves(whole[1]), 1e-5)
    assert_close(parts[0].params, whole[0].params, 1e-5)
    assert parts[0].step == whole[0].step


def test_each_part_draws_its_own_dropout(tiny_config) -> None:
    """Two parts of the same rows do not have the loss of the first of them alone."""
    state, batch = state_and_batch(
        tiny_config("none", model__dropout=0.5), tx=optax.sgd(1.0), rows=8
    )
    step = jax.jit(functools.partial(train_step, microbatch_size=4))
    twice = {name: np.concatenate([array[:4], array[:4]]) for name, array in batch.items()}
    once = {name: array.copy() for name, array in twice.items()}
    once["mask"][4:] = False
    changed = [step(state, rows)[1]["loss"].compute() for rows in (twice, once)]
    assert changed[0] != pytest.approx(changed[1], rel=1e-4)


def test_parts_need_less_memory_and_no_second_pass(tiny_config) -> None:
    state, batch = state_and_batch(tiny_config("ct", model__layers=2), rows=16)
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


WAYS = {
    "pmap": {"name": "pmap"},
    "mesh": {"name": "mesh"},
    "tensor parallel": {"name": "mesh", "model": 2},
    "fsdp": {"name": "mesh", "fsdp": True},
    "both": {"name": "mesh", "model": 2, "fsdp": True},
}


@pytest.fixture
def four_way(request, monkeypatch) -> Parallel:
    """A way of running on four devices; under FSDP even the tiny model's parameters are cut."""
    monkeypatch.setattr(partition, "LEAST_SIZE", 16)
    way, parts, _ = request.param.partition(" in parts")
    size = 3 if parts else 0
    return make_parallel(devices=jax.local_devices()[:4], microbatch_size=size, **WAYS[way])


in_two_ways = pytest.mark.parametrize("four_way", ["pmap", "both"], indirect=True)


@four_devices
@pytest.mark.parametrize(
    ("four_way", "method", "rows"),
    [
        *((way, "ct", 13) for way in (*WAYS, "pmap in parts", "both in parts")),
        ("pmap", "gan", 16),
        ("both", "gan", 16),
    ],
    indirect=["four_way"],
)
def test_four_devices_take_the_steps_of_one(tiny_config, four_way, method: str, rows: int) -> None:
    # Adam divides by the gradient's size, so where a gradient is zero but for rounding (a softmax
    # ignores the keys' bias) its step is noise; a larger epsilon takes that out of the comparison.
    config = tiny_config(
        method, data__batch_size=rows, alignment__weight=0.5, optimizer__epsilon=1e-3
    )
    experiment = build_experiment(config)
    runs = []
    for parallel in (Pmap(jax.local_devices()[:1]), four_way):
        state = parallel.place(experiment.initial_state())
        reports = []
        for batch, _ in zip(experiment.data.train_batches(), range(10), strict=False):
            state, report = parallel.train_step(state, parallel.shard(batch))
            reports.append(jax.tree.map(float, jax.tree.leaves(
                {k: parallel.first(report)[k] for k in ("loss", "task_loss", "alignment",
                                                        "accuracy", "gradient_norm")}
            )))  # fmt: skip
        runs.append((parallel.first(state.params), reports))
    assert_close(runs[0][1], runs[1][1], 1e-5)
    assert_close(runs[0][0], runs[1][0], 1e-5)


@four_devices
@in_two_ways
def test_four_devices_see_the_gradient_of_one(tiny_config, four_way) -> None:
    """On 13 rows, so that the devices hold 4, 4, 4 and 1 of them."""
    state, batch = state_and_batch(
        tiny_config("ct", alignment__weight=0.5), tx=optax.sgd(1.0), rows=13
    )
    after = []
    for parallel in (Pmap(jax.local_devices()[:1]), four_way):
        stepped, _ = parallel.train_step(parallel.place(state), parallel.shard(batch))
        after.append(parallel.first(stepped.params))
    assert_close(after[0], after[1], 1e-5)


@four_devices
@in_two_ways
@pytest.mark.parametrize("examples", [7, 1])
def test_evaluation_counts_every_example_once(tiny_config, four_way, examples: int) -> None:
    """For sizes that neither the batch (6) nor the devices (4) divide."""
    state, batch = state_and_batch(tiny_config("none"), rows=examples)
    parallel = four_way
    replicas = parallel.place(state)
    total, count = 0.0, 0.0
    for part in ordered_batches({k: v for k, v in batch.items() if k != "mask"}, 6):
        report = parallel.first(parallel.eval_step(replicas, parallel.shard(part))[0])
        total, count = total + report["loss"].total, count + report["loss"].count
    assert count == examples
    logits = state.model.apply({"params": state.params}, batch["image"])
    losses = -jax.nn.log_softmax(logits)[jnp.arange(examples), batch["label"]]
    assert total == pytest.approx(float(losses.sum()), rel=1e-5)


def test_a_plain_model_reports_no_alignment_and_sows_nothing(tiny_config) -> None:
    state, batch = state_and_batch(tiny_config("none"))
    _, report = jax.jit(train_step)(state, batch)
    assert not {"alignment", "divergence", "alignment_weight"} & report.keys()


def test_ot_reports_its_solver(tiny_config) -> None:
    state, batch = state_and_batch(tiny_config("ot"))
    _, report = jax.jit(train_step)(state, batch)
    assert report["sinkhorn_iterations"].compute() >= 1
    assert np.isfinite(report["sinkhorn_residual"].compute())


def test_the_solvers_report_is_a_mean_over_calls_scanned_or_not() -> None:
    residuals = jnp.arange(24.0).reshape(3, 4, 2)  # of layers, samples, heads
    valid = jnp.array([True, True, False, True])

    def mean(calls):
        return _sinkhorn({"alignment": {"layer": {"sinkhorn_residual": calls}}}, valid)

    for calls in ((residuals,), tuple(residuals), (residuals[:1], residuals[1], residuals[2])):
        found = mean(calls)["sinkhorn_residual"].compute()
        assert found == pytest.approx(float(residuals[:, valid].mean()))


def test_the_report_has_a_number_per_layer_and_head(tiny_config) -> None:
    state, batch = state_and_batch(tiny_config("ct", model__layers=2))
    _, report = jax.jit(train_step)(state, batch)
    assert list(report["divergence"]) == ["layer_0/attention", "layer_1/attention"]
    heads = np.stack([mean.compute() for mean in report["divergence"].values()])
    assert heads.shape == (2, 2)
    assert heads.mean() == pytest.approx(report["alignment"].compute(), rel=1e-5)


def test_dropout_depends_on_the_step_and_is_repeatable(tiny_config) -> None:
    state, batch = state_and_batch(tiny_config("none", model__dropout=0.5))
    step = jax.jit(train_step)
    losses = [
        step(state.replace(step=jnp.int32(number)), batch)[1]["loss"].compute()
        for number in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_evaluation_has_no_dropout(tiny_config) -> None:
    state, batch = state_and_batch(tiny_config("ct", model__dropout=0.5))
    evaluated = jax.jit(eval_step)
    first, second = (evaluated(state.replace(step=jnp.int32(s)), batch)[0] for s in (0, 1))
    assert first["loss"].compute() == second["loss"].compute()


def test_the_weight_warms_up_linearly() -> None:
    term = AlignmentTerm(config=None, weight=0.8, warmup_steps=4)  # type: ignore[arg-type]
    weights = [float(term.weight_at(jnp.int32(step))) for step in range(6)]
    np.testing.assert_allclose(weights, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_alignment_lowers_the_divergence_it_is_given(tiny_config) -> None:
    """MMD has no adversary, so training for it must end far below training without it."""
    final = {}
    for weight in (0.0, 100.0):
        config = tiny_config(
            "mmd", alignment__weight=weight, optimizer__learning_rate=2e-2, train__steps=100
        )
        state, batch = state_and_batch(config)
        step = jax.jit(train_step)
        for _ in range(50):
            state, report = step(state, batch)
        final[weight] = report["alignment"].compute()
    assert final[100.0] < 0.2 * final[0.0]


@pytest.mark.parametrize("step", [train_step, eval_step])
def test_losses_of_another_shape_are_refused_and_not_broadcast(tiny_config, monkeypatch, step):
    state, batch = state_and_batch(tiny_config("none"))
    loss = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda *arguments: loss(*arguments)[:, None])
    with pytest.raises(AssertionError, match="Classification.loss must return one number per"):
        jax.jit(step)(state, batch)
