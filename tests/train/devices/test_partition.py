"""Which parameters are cut along which axis of a mesh."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

from align_jax.models import BertConfig, SequenceClassifier
from train.devices.mesh import MeshRunner
from train.devices.partition import LOGICAL_AXES, shardings
from train.experiment.experiment import build_experiment
from train.registry import ConfigError

pytestmark = pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")

SHAPES = {
    "layer_0": {
        "attention": {
            "query": {"kernel": (64, 12, 8), "bias": (12, 8)},
            "out": {"kernel": (12, 8, 64)},
            "alignment": {"critic": {"hidden": {"kernel": (8, 10)}}},
        },
        "mlp_in": {"kernel": (64, 256)},
        "mlp_out": {"kernel": (256, 64)},
    },
    "layers": {
        "attention": {
            "query": {"kernel": (128, 64, 12, 8), "bias": (128, 12, 8)},
            "alignment": {"critic": {"hidden": {"kernel": (128, 8, 10)}}},
        },
        "mlp_out": {"kernel": (128, 256, 64), "bias": (128, 64)},
    },
    "words": {"embedding": (30523, 64)},
    "even": {"word": {"embedding": (30524, 64)}},
    "narrow": {"word": {"embedding": (30524, 50)}},
    "classifier": {"kernel": (64, 3)},
}


def specs(model: int, fsdp: bool, in_use: bool = False) -> dict[str, PartitionSpec]:
    mesh = jax.make_mesh((4 // model, model), ("data", "model"), devices=jax.local_devices()[:4])
    tree = jax.tree.map(np.zeros, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    flat = jax.tree_util.tree_leaves_with_path(shardings(tree, mesh, fsdp, in_use))
    return {"/".join(part.key for part in path): sharding.spec for path, sharding in flat}


def cut(spec: PartitionSpec) -> list[str | None]:
    """Without the axes that are whole at the end, which a spec may leave out."""
    axes = list(spec)
    while axes and axes[-1] is None:
        axes.pop()
    return axes


def test_tensor_parallelism_cuts_heads_and_hidden_units() -> None:
    found = {name: cut(spec) for name, spec in specs(model=2, fsdp=False).items()}
    assert found["layer_0/attention/query/kernel"] == [None, "model"]
    assert found["layer_0/attention/query/bias"] == ["model"]
    assert found["layer_0/attention/out/kernel"] == ["model"]
    assert found["layer_0/mlp_in/kernel"] == [None, "model"]
    assert found["layer_0/mlp_out/kernel"] == ["model"]
    assert found["layer_0/attention/alignment/critic/hidden/kernel"] == []
    assert found["words/embedding"] == []  # an odd number of words
    assert found["even/word/embedding"] == ["model"]


def test_all_that_has_a_meaning_is_in_an_encoder() -> None:
    """A pattern that no parameter's path ends in would leave what it is meant for whole."""
    ids, model = np.ones((1, 4), np.int32), SequenceClassifier(BertConfig(layers=1), 2)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), ids, ids)["params"])
    names = traverse_util.flatten_dict(params, sep="/")
    for pattern, meanings in LOGICAL_AXES:
        found = [x.shape for name, x in names.items() if re.search(rf"/({pattern})$", name)]
        assert found, pattern
        assert {len(shape) for shape in found} == {len(meanings)}, pattern


def test_fsdp_cuts_the_longest_axis_that_is_left() -> None:
    found = {name: cut(spec) for name, spec in specs(model=2, fsdp=True).items()}
    assert found["layer_0/attention/query/kernel"] == ["data", "model"]
    assert found["layer_0/mlp_in/kernel"] == ["data", "model"]
    assert found["words/embedding"] == [None, "data"]
    assert found["classifier/kernel"] == []  # too small to be worth it


def test_words_are_cut_along_their_features_and_stay_so_in_use() -> None:
    at_rest, in_use = (
        {name: cut(spec) for name, spec in specs(model=1, fsdp=True, in_use=each).items()}
        for each in (False, True)
    )
    for name in ("words/embedding", "even/word/embedding"):
        assert at_rest[name] == in_use.pop(name)
        assert at_rest[name][1] == "data"
    assert "data" not in at_rest["narrow/word/embedding"]  # 50 features over 4 devices
    assert "data" not in {axis for axes in in_use.values() for axis in axes}


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_stack_is_cut_as_its_layers_are_and_never_between_them(fsdp: bool) -> None:
    found = {name: cut(spec) for name, spec in specs(model=2, fsdp=fsdp).items()}
    data = "data" if fsdp else None
    assert found["layers/attention/query/kernel"] == [None, data, "model"]
    assert found["layers/attention/query/bias"] == [None, "model"]
    assert found["layers/attention/alignment/critic/hidden/kernel"] == []
    assert found["layers/mlp_out/kernel"] == [None, "model", *([data] if fsdp else [])]
    assert found["layers/mlp_out/bias"] == []


def test_a_state_takes_less_of_each_device(tiny_config) -> None:
    config = tiny_config("ct", model__hidden_size=64, model__mlp_size=256)
    state = build_experiment(config).initial_state()
    whole = sum(x.nbytes for x in jax.tree.leaves(state.params))
    placed = MeshRunner(jax.local_devices()[:4], fsdp=True).place(state)
    for tree in (placed.params, placed.opt_state):
        device = jax.local_devices()[0]
        held = sum(
            shard.data.nbytes
            for x in jax.tree.leaves(tree)
            for shard in x.addressable_shards
            if shard.device == device
        )
        moments = 1 if tree is placed.params else 2
        assert held < 0.5 * moments * whole


def test_a_model_axis_that_does_not_divide_the_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match="mesh_model is 3; expected a divisor of 4"):
        MeshRunner(jax.local_devices()[:4], model=3)
