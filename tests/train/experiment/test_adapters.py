"""Runs that train adapters: what is trained, that everything knows them, and what is exported."""

from __future__ import annotations

import io
import pathlib

import jax
import numpy as np
import pytest
import rich.console
from flax import traverse_util

from align_jax import merge_adapters
from align_jax.pretrained import load
from tests.train.commands import run_quietly
from tests.train.tiny_glue import fake_glue, tiny_config
from train.experiment.experiment import build_experiment
from train.predict import export, predict
from train.predictor import restore_predictor
from train.registry import ConfigError
from train.run.evaluation import collect_clouds
from train.run.loop import restore_run, start_from
from train.step.freezing import split
from train.step.optimizer import parameter_groups

PAIRS = [("The cat sat.", "A dog ran?"), ("dogs", ""), ("the mat", "the mat on a hill")]
QUERY = "encoder/layer_0/attention/query/kernel"


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def adapted_config(checkpoint, **changes):
    config = tiny_config(checkpoint, method="energy")
    config.update_from_flattened_dict({"model.adapter_rank": 2, **changes})
    return config


@pytest.fixture(scope="module")
def adapted(checkpoint, tmp_path_factory):
    """A run of three steps that went on to six: its folder, first parameters, result, state."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        fake_glue(patch)
        config = adapted_config(checkpoint, **{"train.steps": 3})
        first = flat(build_experiment(config).initial_state().params)
        run_quietly(config, folder)
        config.train.steps = 6
        result = run_quietly(config, folder)
        return folder, first, result, restore_run(folder)[1]


def test_the_encoder_is_frozen_and_adapters_and_head_are_trained(adapted) -> None:
    _, first, result, state = adapted
    last = flat(state.params)
    changed = {name for name, value in last.items() if (value != first[name]).any()}
    adapters = {name for name in last if name.startswith("adapters/")}
    assert sorted(adapters) == [f"adapters/encoder/layer_0/attention/{name}/kernel/{part}"
                                for name in ("key", "query") for part in "ab"]  # fmt: skip
    assert changed == adapters | {"classifier/kernel", "classifier/bias"}
    sizes = {name: value.size for name, value in last.items()}
    assert result["trained_parameters"] == sum(sizes[name] for name in changed) == 2 * 64 + 34
    assert result["parameters"] == sum(sizes.values())
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * result["trained_parameters"]


def test_networks_are_trained_beneath_adapters_and_the_rest_has_the_models_rate(
    checkpoint, monkeypatch
) -> None:
    fake_glue(monkeypatch)
    config = adapted_config(checkpoint, **{"optimizer.head_rate_multiplier": 10.0})
    config.alignment.method = "ct"
    state = jax.eval_shape(build_experiment(config).initial_state)
    trained = split(state.params, state.freeze)[0]
    groups = flat(parameter_groups(trained, head=True))
    assert {name.partition("/")[0]: x for name, x in groups.items()} == {
        "adapters": "model", "encoder": "alignment", "classifier": "head",
    }  # fmt: skip
    assert QUERY not in traverse_util.flatten_dict(trained, sep="/")


def test_what_is_named_is_frozen_in_place_of_the_encoder(checkpoint, monkeypatch) -> None:
    fake_glue(monkeypatch)
    config = adapted_config(checkpoint, **{"optimizer.freeze": ("embeddings", "kernel$")})
    state = jax.eval_shape(build_experiment(config).initial_state)
    trained = set(traverse_util.flatten_dict(split(state.params, state.freeze)[0], sep="/"))
    assert {QUERY.replace("kernel", "bias"), "encoder/layer_0/mlp_norm/scale"} <= trained
    assert not [name for name in trained if name.endswith("/kernel")]
    assert len([name for name in trained if name.startswith("adapters/")]) == 4


def test_the_export_is_the_plain_model_and_answers_as_the_run_does(adapted, tmp_path) -> None:
    folder, first, _, state = adapted
    data, restored = restore_predictor(folder)
    export(data, restored, tmp_path / "export")
    plain = load(tmp_path / "export")
    params = flat(plain.params)
    assert not [name for name in params if "adapters" in name]
    a, b = (np.asarray(flat(state.params)[f"adapters/{QUERY}/{x}"], np.float64) for x in "ab")
    expected = first[QUERY] + 16.0 / 2 * np.tensordot(a, b, 1)
    assert np.abs(expected - first[QUERY]).max() > 1e-3
    np.testing.assert_allclose(params[QUERY], expected, atol=1e-6)
    batch = data.inputs(PAIRS)
    logits = jax.jit(plain.model.apply)({"params": plain.params}, **batch)
    shown = [list(x["probabilities"].values()) for x in predict(data, restored, PAIRS)]
    np.testing.assert_allclose(jax.nn.softmax(logits), shown, atol=1e-6)


def test_clouds_are_those_of_the_merged_kernels(adapted) -> None:
    _, _, _, state = adapted
    batch = {"input_ids": np.array([[2, 8, 9, 3]], np.int32),
             "attention_mask": np.ones((1, 4), np.int32),
             "token_type_ids": np.zeros((1, 4), np.int32)}  # fmt: skip
    base = {name: child for name, child in state.params.items() if name != "adapters"}
    merged = merge_adapters(base, state.params["adapters"], state.adapters)
    found, expected, without = (
        next(iter(collect_clouds(x, batch).values())).query
        for x in (
            state,
            state.replace(params=merged, adapters=None, freeze=()),
            state.replace(params=base, adapters=None, freeze=()),
        )
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - without).max() > 1e-3


@pytest.mark.parametrize("rank", [0, 2, 3])
def test_another_run_starts_from_what_adapters_have_learnt(
    adapted, checkpoint, monkeypatch, rank: int
) -> None:
    """The same adapters are taken over as they are, others in the kernels beneath."""
    fake_glue(monkeypatch)
    folder, _, _, state = adapted
    config = adapted_config(checkpoint, **{"model.adapter_rank": rank})
    fresh = build_experiment(config).initial_state()
    console = rich.console.Console(file=io.StringIO())
    started = start_from(fresh, pathlib.Path(folder), console)
    np.testing.assert_allclose(
        flat(started.variables["params"])[QUERY], flat(state.variables["params"])[QUERY], atol=1e-6
    )
    same = flat(started.params)[QUERY] == flat(state.params)[QUERY]
    assert same.all() == (rank == 2)


@pytest.mark.fault(
    "Adapters that fit no kernel, or of an invalid or too high rank",
    "Refused, with the nearest parameters or the highest rank",
)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.adapter_rank": 17}, "rank is 17, but .* is a matrix of 16 x 16: expected 16"),
        ({"model.adapter_rank": -1}, "config.model: rank must be a whole number .* got -1"),
        ({"model.adapter_alpha": 0.0}, "config.model: alpha must be above 0"),
        ({"model.adapter_targets": ("qery/kernel",)}, "No parameter fits 'qery/kernel'.*query"),
        ({"model.adapter_targets": ("(",)}, "config.model: targets holds .* no regular expr"),
        ({"optimizer.freeze": ("layer_7/",)}, "optimizer.freeze names 'layer_7/'"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    checkpoint, monkeypatch, changes, message: str
) -> None:
    fake_glue(monkeypatch)
    with pytest.raises(ConfigError, match=message):
        build_experiment(adapted_config(checkpoint, **changes)).initial_state()
