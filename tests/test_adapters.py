"""Adapters against float64 NumPy, on every form of a kernel, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from jax.test_util import check_grads

from align_jax import (
    AdapterConfig,
    AlignmentConfig,
    aligned,
    alignment_loss,
    init_adapters,
    merge_adapters,
)
from align_jax.models import BertConfig, BertEncoder

RANK, ALPHA = 2, 6.0
# A kernel's path and shape, the shape of its bias (None for none), and of A and B.
FORMS = {
    "dense": ("dense/kernel", (6, 8), (8,), (6, RANK), (RANK, 8)),
    "dense without bias": ("dense/kernel", (6, 8), None, (6, RANK), (RANK, 8)),
    "query": ("query/kernel", (6, 2, 4), (2, 4), (6, RANK), (RANK, 2, 4)),
    "query without bias": ("query/kernel", (6, 2, 4), None, (6, RANK), (RANK, 2, 4)),
    "out": ("out/kernel", (2, 4, 6), (6,), (2, 4, RANK), (RANK, 6)),
    "stack": ("layers/query/kernel", (3, 6, 2, 4), (3, 2, 4), (3, 6, RANK), (3, RANK, 2, 4)),
    "stack of out": ("layers/out/kernel", (3, 2, 4, 6), (3, 6), (3, 2, 4, RANK), (3, RANK, 6)),
    "convolution": ("stem/kernel", (3, 3, 2, 4), (4,), (3, 3, 2, RANK), (RANK, 4)),
    "half precision": ("dense/kernel", (6, 8), (8,), (6, RANK), (RANK, 8)),
}


def tree(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


def flat(nested):
    return traverse_util.flatten_dict(nested, sep="/")


@pytest.mark.parametrize("form", FORMS)
def test_a_merged_kernel_is_that_of_numpy(form):
    name, kernel_shape, bias_shape, a_shape, b_shape = FORMS[form]
    rng = np.random.default_rng(0)
    half = form == "half precision"
    kernel = rng.normal(size=kernel_shape).astype(jnp.bfloat16 if half else np.float32)
    params = {name: kernel, "other/kernel": np.ones((2, 2), np.float32)}
    if bias_shape is not None:
        params[name.replace("kernel", "bias")] = np.ones(bias_shape, np.float32)
    config = AdapterConfig(RANK, ALPHA, targets=(rf"{name}$",))
    adapters = flat(init_adapters(jax.random.key(0), tree(params), config))
    assert {n: x.shape for n, x in adapters.items()} == {f"{name}/a": a_shape, f"{name}/b": b_shape}
    assert {x.dtype for x in adapters.values()} == {jnp.dtype(np.float32)}
    a = np.asarray(adapters[f"{name}/a"], np.float64)
    inputs = np.prod(a_shape[1 if "layers" in name else 0 : -1])
    assert 0.5 < np.abs(a).max() * inputs**0.5 <= 1.0
    assert not np.asarray(adapters[f"{name}/b"]).any()

    b = rng.normal(size=b_shape)
    adapters[f"{name}/b"] = jnp.asarray(b, jnp.float32)
    merged = flat(merge_adapters(tree(params), tree(adapters), config))
    rows = [(a, b)] if "layers" not in name else list(zip(a, b, strict=True))
    change = [(x.reshape(-1, RANK) @ y.reshape(RANK, -1)).ravel() for x, y in rows]
    expected = kernel.astype(np.float64) + ALPHA / RANK * np.reshape(change, kernel_shape)
    assert merged[name].dtype == kernel.dtype
    np.testing.assert_allclose(
        np.asarray(merged[name], np.float64), expected, rtol=1e-2 if half else 1e-6, atol=1e-6
    )
    assert merged.keys() == params.keys()
    for other in params.keys() - {name}:
        assert merged[other] is params[other]


MODEL = BertEncoder(
    BertConfig(vocab_size=9, hidden_size=8, layers=2, heads=2, mlp_size=8,
               alignment=AlignmentConfig("ct")),
    pooler=False,
)  # fmt: skip
IDS = np.array([[1, 2, 3, 4]], np.int32)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IDS)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def test_by_default_queries_and_keys_of_every_layer_and_no_networks(params):
    config = AdapterConfig(rank=3)
    adapters = flat(init_adapters(jax.random.key(0), params, config))
    names = [f"layer_{n}/attention/{x}/kernel" for n in (0, 1) for x in ("key", "query")]
    assert sorted(adapters) == sorted(f"{name}/{part}" for name in names for part in "ab")
    assert sum(x.size for x in adapters.values()) == 4 * 3 * (8 + 8)
    everything = AdapterConfig(rank=1, targets="kernel$")
    assert not [name for name in flat(init_adapters(jax.random.key(0), params, everything))
                if "alignment" in name]  # fmt: skip


def test_the_model_starts_as_it_was_and_only_adapters_have_gradients(params):
    """Of the adapted model; by finite differences of A and B."""
    config = AdapterConfig(rank=2)
    adapters = init_adapters(jax.random.key(0), params, config)
    same = flat(merge_adapters(params, adapters, config))
    assert all((same[name] == x).all() for name, x in flat(params).items())
    layer = nn.MultiHeadDotProductAttention(2)
    x = np.random.default_rng(1).normal(size=(1, 3, 8)).astype(np.float32)
    part = {name: child for name, child in params["layer_0"]["attention"].items()
            if name != "alignment"}  # fmt: skip
    own = jax.tree.map(lambda x: x + 0.1, init_adapters(jax.random.key(0), part, config))

    @jax.jit
    def loss(own):
        return (layer.apply({"params": merge_adapters(part, own, config)}, x) ** 2).mean()

    gradients = jax.jit(jax.grad(loss))(own)
    assert all(np.abs(value).max() > 0 for value in jax.tree.leaves(gradients))
    check_grads(loss, (own,), order=1, modes=("rev",), rtol=1e-2, atol=1e-2)


def test_a_converted_model_takes_merged_parameters():
    model = aligned(nn.MultiHeadDotProductAttention(2), AlignmentConfig("energy"))
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    config = AdapterConfig(rank=2)
    adapters = init_adapters(jax.random.key(1), params, config)

    @jax.jit
    @jax.value_and_grad
    def divergence(adapters):
        merged = merge_adapters(params, adapters, config)
        return alignment_loss(model.apply({"params": merged}, x, mutable=["alignment"])[1])

    before, gradient = divergence(adapters)
    assert np.abs(gradient["query"]["kernel"]["b"]).max() > 0
    step = jax.tree.map(lambda x, g: x - 0.1 * g, adapters, gradient)
    assert divergence(step)[0] < before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.0}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"alpha": 0.0}, "alpha must be above 0 and finite, got 0.0"),
        ({"alpha": float("nan")}, "alpha must be above 0"),
        ({"alpha": "16"}, "alpha must be above 0 and finite, got '16'"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": 5}, "targets must be a tuple of regular expressions, got 5"),
        ({"targets": ("query[",)}, "targets holds 'query\\[', no regular expression"),
        ({"stacked": (3,)}, "stacked holds 3, no regular expression"),
    ],
)
def test_a_config_that_is_none_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("querry/kernel",)}, "No parameter fits 'querry/kernel'.*query/kernel"),
        ({"targets": ("critic",)}, "No parameter fits 'critic'"),
        ({"targets": ("query/",)}, r"query/bias, of shape \(2, 4\), which is no kernel"),
        ({"targets": ("norm/scale",)}, "norm/scale, of shape .8,., which is no kernel"),
        ({"targets": ("word",)}, "word/embedding, of shape .9, 8., which is no kernel"),
        ({"rank": 9}, "rank is 9, but layer_0/.*/kernel is a matrix of 8 x 8: expected 8 or less"),
    ],
)
def test_targets_that_are_no_kernels_are_refused(params, changes, message):
    with pytest.raises(ValueError, match=message):
        init_adapters(jax.random.key(0), params, AdapterConfig(**changes))


def test_adapters_of_other_parameters_or_another_config_are_refused(params):
    config = AdapterConfig(rank=2)
    adapters = init_adapters(jax.random.key(0), params, config)
    with pytest.raises(ValueError, match="rank 4. Merge it into the parameters that it was made"):
        merge_adapters(params, adapters, AdapterConfig(rank=4))
    with pytest.raises(ValueError, match="'layer_0/attention/key/kernel' is none of a kernel"):
        merge_adapters({"layer_1": params["layer_1"]}, adapters, config)
    with pytest.raises(ValueError, match="Expected what init_adapters made"):
        merge_adapters(params, params, config)
    wider = jax.tree.map(lambda x: np.concatenate([x, x], axis=-1), params)
    with pytest.raises(ValueError, match=r"makes no kernel of shape \(8, 2, 8\)"):
        merge_adapters(wider, adapters, config)
    with pytest.raises(TypeError, match="nested dicts of arrays, .* got a BertEncoder"):
        init_adapters(jax.random.key(0), MODEL, config)
    with pytest.raises(TypeError, match=r"got a State; nnx.to_pure_dict\(\) makes them"):
        init_adapters(jax.random.key(0), nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), config)


@pytest.mark.parametrize("key", ["mha/query", 0])
def test_the_keys_of_other_libraries_stay(key):
    """Haiku's have slashes, and some trees number their layers."""
    params = {key: {"w": np.ones((4, 4), np.float32)}}
    config = AdapterConfig(rank=1, targets=("/w$",))
    adapters = init_adapters(jax.random.key(0), params, config)
    assert jax.tree.map(np.shape, adapters) == {key: {"w": {"a": (4, 1), "b": (1, 4)}}}
    merged = merge_adapters(params, adapters, config)
    assert jax.tree.map(np.shape, merged) == {key: {"w": (4, 4)}}


def test_a_kernel_of_integers_is_refused():
    params = {"query": {"kernel": np.ones((4, 4), np.int8)}}
    with pytest.raises(ValueError, match="query/kernel.*no kernel of floating-point numbers"):
        init_adapters(jax.random.key(0), params, AdapterConfig(rank=1))
