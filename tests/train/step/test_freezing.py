"""Frozen parameters: which ones, that they keep their bits, and that nothing is spent on them."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from tests.train.commands import run_quietly
from train.devices.parallel import make_parallel
from train.experiment.experiment import build_experiment
from train.registry import ConfigError
from train.run.loop import restore_run
from train.step.freezing import join, split
from train.step.optimizer import OptimizerConfig, make_optimizer
from train.step.step import train_step

CRITIC = "encoder/layer_0/attention/alignment/critic/kernel"
ADAPTER = "adapters/encoder/layer_0/query/kernel/a"
NAMES = ["encoder/embeddings/word", "encoder/layer_0/query/kernel", CRITIC,
         "encoder/layer_1/query/kernel", "encoder/layer_10/query/kernel", "head/kernel",
         ADAPTER]  # fmt: skip
PARAMS = traverse_util.unflatten_dict(
    {n: np.full(2, 1.0 + i, np.float32) for i, n in enumerate(NAMES)}, sep="/"
)


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (("^encoder/embeddings/",), NAMES[:1]),
        (("layer_[0-3]/",), [NAMES[1], NAMES[3]]),
        (("layer_0/.*", "head"), [NAMES[1], NAMES[5]]),
        (("encoder",), [*NAMES[:2], *NAMES[3:5]]),
        ((r"^encoder/layer_1\d/query/kernel$",), NAMES[4:5]),
        (("layer_0/attention/alignment/",), [CRITIC]),
        (("critic", "embeddings"), [NAMES[0], CRITIC]),
        (("^adapters/",), [ADAPTER]),
    ],
)
def test_an_expression_freezes_what_it_fits_and_networks_only_if_it_names_them(
    freeze, expected
) -> None:
    trained, frozen = split(PARAMS, freeze)
    assert sorted(flat(frozen)) == sorted(expected)
    assert sorted([*flat(trained), *expected]) == sorted(NAMES)
    assert list(trained) == list(PARAMS)
    assert jax.tree.all(jax.tree.map(np.array_equal, join(trained, frozen), PARAMS))


@pytest.mark.fault(
    "Parameters to freeze that do not exist, that are all there are, or no regular expression",
    "Refused, with the nearest name and those of the model",
)
@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (
            ("head", "encoder/embedings/"),
            'embedings/.* fits no .*mean "encoder/embeddings".*encoder, head',
        ),
        (("^layer_0",), 'fits no parameter; did you mean "layer_0"'),
        (("attention",), "fits no parameter"),  # it fits networks alone, and names none
        (("encoder", "head", "adapters"), "every parameter.*nothing would be trained"),
        ((".*", "adapters", "alignment"), "every parameter"),
    ],
)
def test_an_expression_that_fits_nothing_or_everything_is_refused(freeze, message) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        split(PARAMS, freeze)


@pytest.mark.parametrize("field", ["freeze", "not_decayed"])
@pytest.mark.parametrize("expressions", [("layer_[0",), (3,), (None,), ("a", b"b"), "", 5])
def test_what_is_no_regular_expression_is_refused(field, expressions) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{field} holds .* no regular expression"):
        OptimizerConfig(**{field: expressions})


def test_one_string_is_one_expression_and_a_list_is_a_tuple() -> None:
    assert OptimizerConfig(freeze="encoder").freeze == ("encoder",)
    assert OptimizerConfig(freeze=["encoder"]).freeze == ("encoder",)


def test_a_head_has_its_own_rate_on_an_encoder_that_is_frozen() -> None:
    config = OptimizerConfig(learning_rate=1e-3, decay="constant", head_rate_multiplier=10.0)
    trained, _ = split(PARAMS, ("encoder", "alignment", "adapters"))
    tx = make_optimizer(config, steps=10)
    updates, _ = tx.update(trained, tx.init(trained), trained)
    np.testing.assert_allclose(updates["head"]["kernel"], -1e-2, rtol=0.1)


@pytest.fixture(scope="module")
def states(tiny_config):
    """Two first states, one with its first parts frozen; and a batch.

    SGD with rate 1 turns the change of the parameters into the gradient. A zero below 0 among the
    frozen weights would lose its sign by adding 0 to it.
    """
    found = []
    for freeze in ((), ("embedding", "layer_0/attention/(query|key)", "norm")):
        experiment = build_experiment(tiny_config("energy", optimizer__freeze=freeze))
        state = experiment.initial_state()
        state = state.replace(tx=optax.sgd(1.0)).start_from(
            jax.tree.map(lambda x: jax.numpy.where(x == 0, -0.0, x), state.params)
        )
        found.append(state)
    return *found, experiment.data.example_batch()


def test_frozen_parameters_keep_their_bits_and_the_others_have_their_gradients(states) -> None:
    free, frozen, batch = states
    before, expected = flat(frozen.params), flat(jax.jit(train_step)(free, batch)[0].params)
    after, report = jax.jit(train_step)(frozen, batch)
    kept, after = flat(split(frozen.params, frozen.freeze)[1]), flat(after.params)
    assert len(kept) == 13
    for name, value in after.items():
        if name in kept:
            np.testing.assert_array_equal(value.view(np.int32), before[name].view(np.int32))
        else:
            assert (value != before[name]).any(), name
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    norm = np.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in after.keys() - kept.keys()))
    assert report["gradient_norm"].compute() == pytest.approx(norm, rel=1e-4)


def test_adams_moments_are_those_of_the_trained_alone(tiny_config) -> None:
    freeze = ("embedding", "layer_0/", "norm")
    config = tiny_config("ct", optimizer__freeze=freeze, optimizer__weight_decay=0.5)
    state = jax.eval_shape(build_experiment(config).initial_state)
    trained, frozen = split(state.params, freeze)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim > 0]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(trained))
    ones, zeros = (jax.tree.map(lambda x, f=f: f(x.shape, x.dtype), trained)
                   for f in (np.ones, np.zeros))  # fmt: skip
    # Decay alone moves them.
    updates, _ = jax.jit(lambda g, x: state.tx.update(g, state.tx.init(x), x))(zeros, ones)
    assert np.abs(flat(updates)["classifier/kernel"]).max() > 0
    assert not set(flat(frozen)) & set(flat(updates))


def test_nothing_is_computed_for_the_gradients_of_what_is_frozen(states) -> None:
    free, _, batch = states
    head = free.replace(freeze=("embedding", "layer_0/", "norm")).start_from(free.params)
    whole, part = (
        jax.jit(train_step).lower(state, batch).cost_analysis()["flops"] for state in (free, head)
    )
    assert part < 0.5 * whole


@pytest.fixture(scope="module")
def partly_frozen(tiny_config):
    """A state with frozen parts, a batch, and the parameters after a step on one device."""
    config = tiny_config("none", optimizer__freeze=("embedding", "attention", "norm"))
    experiment = build_experiment(config)
    state, batch = experiment.initial_state(), experiment.data.example_batch()
    state = state.replace(tx=optax.sgd(1.0)).start_from(state.params)
    return state, batch, flat(jax.jit(train_step)(state, batch)[0].params)


@pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")
@pytest.mark.parametrize(
    ("runner", "options"),
    [
        pytest.param("pmap", {"microbatch_size": 2}, marks=pytest.mark.thorough),
        ("mesh", {"model": 2, "fsdp": True}),
    ],
)
def test_several_devices_and_parts_of_a_batch_freeze_the_same(
    partly_frozen, runner: str, options
) -> None:
    state, batch, expected = partly_frozen
    before, kept = flat(state.params), flat(split(state.params, state.freeze)[1])
    parallel = make_parallel(runner, jax.local_devices()[:4], **options)
    placed = parallel.place(jax.device_put(state, may_alias=False))  # which a step gives away
    after, _ = parallel.train_step(placed, parallel.shard(batch))
    for name, value in flat(parallel.first(after.params)).items():
        np.testing.assert_array_equal(value == before[name], expected[name] == before[name])
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
        assert (value == before[name]).all() == (name in kept), name


def test_a_run_goes_on_and_starts_another_with_the_frozen_as_they_were(
    tiny_config, tmp_path
) -> None:
    changes = {"optimizer__freeze": ("layer_0/", "embedding"), "eval__every": 0,
               "eval__at_start": False, "eval__final": (), "eval__mmd_examples": 0}  # fmt: skip
    config = tiny_config("none", **changes, train__steps=3)
    first = flat(build_experiment(config).initial_state().params)
    run_quietly(config, tmp_path / "run")
    middle = restore_run(tmp_path / "run")[1]
    run_quietly(tiny_config("none", **changes, train__steps=6), tmp_path / "run")
    last = restore_run(tmp_path / "run")[1]
    assert (int(middle.step), int(last.step)) == (3, 6)
    for name, value in flat(last.params).items():
        kept = "layer_0/" in name or "embedding" in name
        assert (value == first[name]).all() == kept, name
        assert (value == flat(middle.params)[name]).all() == kept, name
    config = tiny_config("none", **changes, train__init_from=str(tmp_path / "run"), train__steps=1)
    run_quietly(config, tmp_path / "next")
    for name, value in flat(restore_run(tmp_path / "next")[1].params).items():
        kept = "layer_0/" in name or "embedding" in name
        assert (value == flat(last.params)[name]).all() == kept, name
