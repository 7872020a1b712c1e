"""BERT and RoBERTa: padding, positions, options and alignment. Parity: tests/pretrained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn

from align_jax import (
    AlignmentConfig,
    alignment_loss,
    alignment_sums,
    alignment_table,
    cloud_mmd,
    strip_alignment,
)
from align_jax.models.attention_function import dot_product_attention
from align_jax.models.bert import BertConfig, BertEncoder, positions
from align_jax.models.dropout import Dropout
from align_jax.models.heads import MultipleChoice, SequenceClassifier, SpanExtractor, mean_pooling
from align_jax.models.stack import stack_layers, unstack_layers
from align_jax.models.transformer import ACTIVATIONS, exact_gelu
from tests.models.parameters import inference_program, random_parameters

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, layers=2, heads=4, mlp_size=24, max_positions=20,
    initializer_range=0.3,
)  # fmt: skip
ONE_LAYER = dataclasses.replace(CONFIG, layers=1)
ROBERTA = dataclasses.replace(CONFIG, family="roberta", pad_token_id=1, token_types=1)


def batch(config=CONFIG, lengths=(9, 4, 1), seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(9) < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(2, 50, mask.shape), config.pad_token_id)
    types = np.where(mask, rng.integers(0, config.token_types, mask.shape), 0)
    return ids, mask.astype(np.int32), types


@functools.cache
def program(model, **options):
    """What a model computes, compiled once for all tests: to compile takes the most time."""
    return jax.jit(functools.partial(model.apply, **options))


def outputs(model, params, *inputs, **options):
    return program(model, **options)({"params": params}, *inputs)


@pytest.mark.parametrize("config", [CONFIG, ROBERTA], ids=["bert", "roberta"])
def test_padding_changes_nothing(config) -> None:
    """A padded row gives what the row alone gives, whatever the padding holds."""
    ids, mask, types = batch(config)
    model = BertEncoder(config)
    params = random_parameters(model, ids)
    hidden, pooled = outputs(model, params, ids, mask, types)
    for row, length in ((1, 4), (2, 1)):  # the first has no padding
        alone = slice(row, row + 1), slice(0, length)
        single, single_pooled = outputs(model, params, ids[alone], None, types[alone])
        np.testing.assert_allclose(hidden[alone], single, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(pooled[row : row + 1], single_pooled, rtol=1e-5, atol=1e-5)
    if config is CONFIG:  # RoBERTa counts positions by the padding token, as PyTorch does
        other = np.where(mask == 1, ids, 7)
        again, _ = outputs(model, params, other, mask, types)
        np.testing.assert_array_equal(again[mask == 1], hidden[mask == 1])


def test_positions() -> None:
    ids = jnp.array([[5, 6, 7, 1, 1], [1, 5, 1, 6, 1]])
    assert positions(CONFIG, ids).tolist() == [[0, 1, 2, 3, 4]]
    assert positions(ROBERTA, ids).tolist() == [[2, 3, 4, 1, 1], [1, 2, 1, 3, 1]]
    assert (CONFIG.max_length, ROBERTA.max_length) == (20, 18)


def test_a_row_of_padding_alone_stays_finite() -> None:
    ids, mask, types = batch(lengths=(9, 0, 3))
    model = SequenceClassifier(ONE_LAYER, labels=2, pooling="mean")
    params = random_parameters(model, ids)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, ids, mask, types) ** 2)

    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params)):
        assert np.isfinite(leaf).all()


def test_the_padding_tokens_embedding_is_not_trained() -> None:
    ids, mask, _ = batch()
    model = SpanExtractor(ONE_LAYER)
    params = random_parameters(model, ids)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, ids, mask).start ** 2)

    gradient = jax.jit(jax.grad(loss))(params)
    words = gradient["encoder"]["embeddings"]["word"]["embedding"]
    assert not words[CONFIG.pad_token_id].any()
    assert words[ids[0, 0]].any()


@pytest.mark.parametrize("pooling", ["pooler", "mean", "dense"])
def test_heads(pooling) -> None:
    ids, mask, types = batch()
    model = SequenceClassifier(ONE_LAYER, labels=3, pooling=pooling)
    params = random_parameters(model, ids)
    assert ("pooler" in params["encoder"]) is (pooling == "pooler")
    assert ("head_dense" in params) is (pooling == "dense")
    logits = jax.eval_shape(model.apply, {"params": params}, ids, mask, types)
    assert logits.shape == (3, 3)

    choice = MultipleChoice(ONE_LAYER, pooling)
    choices = [np.stack([x, x[::-1]], axis=1) for x in (ids, mask, types)]
    choice_params = random_parameters(choice, *choices)
    assert jax.tree.structure(choice_params) == jax.tree.structure(params)
    scores = outputs(choice, choice_params, *choices)
    assert scores.shape == (3, 2)
    np.testing.assert_allclose(scores[:, 0], scores[::-1, 1], atol=1e-5)


def test_mean_pooling_leaves_padding_out() -> None:
    hidden = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(mean_pooling(hidden, mask), [[1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(mean_pooling(hidden, None), hidden.mean(1))


def test_dropout_needs_training_and_uses_each_rate() -> None:
    inputs = batch()
    params = random_parameters(SequenceClassifier(ONE_LAYER), inputs[0])

    def apply(key, deterministic, **rates):
        rates = {"dropout": 0.0, "attention_dropout": 0.0, **rates}
        model = SequenceClassifier(dataclasses.replace(ONE_LAYER, **rates))
        step = program(model, deterministic=deterministic)
        return np.asarray(step({"params": params}, *inputs, rngs={"dropout": jax.random.key(key)}))

    expected = apply(0, True)
    for rates in ({"dropout": 0.5}, {"attention_dropout": 0.5}, {"classifier_dropout": 0.5}):
        np.testing.assert_array_equal(apply(0, True, **rates), expected)
        assert (apply(0, False, **rates) != expected).any()
        assert (apply(0, False, **rates) != apply(1, False, **rates)).any()
        np.testing.assert_array_equal(apply(1, False, **rates), apply(1, False, **rates))
    np.testing.assert_allclose(apply(0, False), expected, atol=1e-6)


def test_attention_function_agrees_with_flax() -> None:
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)[:, None, None, :]
    flax = jax.jit(functools.partial(nn.dot_product_attention, deterministic=True))
    expected = flax(query, key, value, mask=mask)
    for options in (
        {"deterministic": True},
        {"deterministic": False},
        {"deterministic": True, "dropout_rate": 0.5, "dropout_rng": jax.random.key(0)},
    ):
        ours = jax.jit(functools.partial(dot_product_attention, **options))
        np.testing.assert_allclose(ours(query, key, value, mask=mask), expected, atol=1e-5)


def test_attention_dropout_drops_each_weight_on_its_own() -> None:
    query = np.zeros((2, 50, 3, 4), np.float32)
    value = np.broadcast_to(np.eye(50, dtype=np.float32)[None, :, None, :], (2, 50, 3, 50))
    attention = jax.jit(functools.partial(dot_product_attention, dropout_rate=0.25))
    weights = 50 * np.asarray(attention(query, query, value, dropout_rng=jax.random.key(0)))
    np.testing.assert_allclose(np.unique(weights.round(4)), [0.0, 1.3333], atol=1e-3)
    assert float((weights == 0).mean()) == pytest.approx(0.25, abs=0.02)
    assert (weights[0] != weights[1]).any()
    assert (weights[:, :, 0] != weights[:, :, 1]).any()


def test_attention_weights_can_be_sown() -> None:
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            attention = nn.MultiHeadDotProductAttention(2, attention_fn=dot_product_attention)
            return attention(x, deterministic=True, sow_weights=True)

    x = np.ones((1, 3, 4), np.float32)
    params = random_parameters(Module(), x)
    _, sown = outputs(Module(), params, x, mutable=("intermediates",))
    (weights,) = jax.tree.leaves(sown["intermediates"])
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_exact_gelu() -> None:
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    found, half = jax.jit(lambda x: (exact_gelu(x), exact_gelu(x.astype(jnp.bfloat16))))(x)
    np.testing.assert_allclose(found, x * scipy.special.ndtr(np.float64(x)), atol=1e-6)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), found, atol=0.04)


def test_remat_changes_neither_values_nor_gradients() -> None:
    ids, mask, types = batch()
    config = dataclasses.replace(ONE_LAYER, alignment=AlignmentConfig("mmd"))
    params = random_parameters(SequenceClassifier(config), ids)

    def loss(params, remat):
        model = SequenceClassifier(dataclasses.replace(config, remat=remat))
        logits, sown = model.apply(
            {"params": params}, ids, mask, types, deterministic=False,
            rngs={"dropout": jax.random.key(3)}, mutable=["alignment"],
        )  # fmt: skip
        return jnp.sum(logits**2) + alignment_loss(sown)

    results = [jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, x) for x in (0, 1)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def aligned_loss(config, params):
    """Loss, gradient, and all that is read of the collections; two of three rows count."""
    ids, mask, types = batch()
    rows = np.array([True, False, True])

    def loss(params):
        logits, sown = SequenceClassifier(config).apply(
            {"params": params}, ids, mask, types, deterministic=False,
            rngs={"dropout": jax.random.key(3)}, mutable=["alignment", "alignment_clouds"],
        )  # fmt: skip
        sums, table = alignment_sums(sown, rows), alignment_table(sown, rows)
        mmd = cloud_mmd(sown, bandwidth=2.0, sample_mask=rows)
        value = jnp.sum(logits**2) + alignment_loss(sown, rows)
        return value, (logits, sums.total, sums.count, table, mmd)

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))


# Without remat a scan also runs in the next test.
@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_a_scan_over_layers_is_the_loop(remat) -> None:
    """Values, gradients of every parameter, and one entry per layer in all that is reported."""
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    looped = dataclasses.replace(CONFIG, alignment=AlignmentConfig("ct"), **rates)
    params = random_parameters(SequenceClassifier(looped), batch()[0])
    (value, (*arrays, table, mmd)), gradient = aligned_loss(looped, params)
    config = dataclasses.replace(looped, scan_layers=True, remat=remat)
    (other, (*others, rows, heads)), stacked = aligned_loss(config, stack_layers(params))
    for found, expected in ((rows, table), (heads, mmd)):
        assert list(expected) == [f"encoder/layer_{n}/attention" for n in range(2)]
        assert list(found) == [f"encoder/layers/attention#{n}" for n in range(2)]
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-5)
    for found, expected in zip((other, *others), (value, *arrays), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        unstack_layers(stacked), gradient,
    )  # fmt: skip


def test_a_scans_layers_have_weights_and_dropout_of_their_own() -> None:
    ids, mask, types = batch()
    config = dataclasses.replace(CONFIG, scan_layers=True, dropout=0.5, dtype="bfloat16")
    model = SequenceClassifier(config)
    init = jax.jit(functools.partial(model.init, mutable=["params"]))
    params = init(jax.random.key(0), ids)["params"]
    kernels = params["encoder"]["layers"]["mlp_in"]["kernel"]
    assert kernels.shape == (2, 16, 24)
    assert (np.asarray(kernels[0]) != np.asarray(kernels[1])).all()
    apply = jax.jit(
        functools.partial(
            model.apply, deterministic=False, mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Dropout),
        )
    )  # fmt: skip
    rngs = {"dropout": jax.random.key(3)}
    _, seen = apply({"params": params}, ids, mask, types, rngs=rngs)
    for dropped in jax.tree.leaves(seen["intermediates"]["encoder"]["layers"]):
        assert dropped.shape == (2, 3, 9, 16)
        assert dropped.dtype == jnp.bfloat16
        first, second = np.asarray(dropped) == 0
        assert (first != second).any()


def test_stacking_layers_goes_both_ways_and_refuses_what_makes_no_stack() -> None:
    model = SequenceClassifier(dataclasses.replace(CONFIG, layers=11))
    params = random_parameters(model, batch()[0])
    again = unstack_layers(stack_layers(params))
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(ValueError, match="'layer_4' is missing or does not hold"):
        stack_layers({name: x for name, x in params["encoder"].items() if name != "layer_4"})
    with pytest.raises(ValueError, match="'layer_0' is missing"):
        stack_layers({"layer_1": params["encoder"]["layer_1"]})
    others = {"layer_norm": {"scale": np.ones(3)}, "layer_0": {}}
    assert stack_layers(others) == {"layer_norm": others["layer_norm"], "layers": {}}
    some = AlignmentConfig("ct", layers=("layer_1/",))
    model = BertEncoder(dataclasses.replace(CONFIG, alignment=some))
    partly = random_parameters(model, batch()[0])
    with pytest.raises(ValueError, match=r"Is AlignmentConfig\.layers None\?"):
        stack_layers(partly)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters() -> None:
    ids, mask, types = batch()
    half = SequenceClassifier(dataclasses.replace(ONE_LAYER, dtype="bfloat16"))
    params = jax.eval_shape(half.init, jax.random.key(0), ids)["params"]
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    params = random_parameters(half, ids)
    logits = outputs(half, params, ids, mask, types)
    assert logits.dtype == jnp.float32
    exact = outputs(SequenceClassifier(ONE_LAYER), params, ids, mask, types)
    np.testing.assert_allclose(logits, exact, atol=0.15)
    encoder = functools.partial(BertEncoder(half.config).apply, {"params": params["encoder"]})
    hidden, pooled = jax.eval_shape(encoder, ids, mask, types)
    assert {hidden.dtype, pooled.dtype} == {jnp.dtype("bfloat16")}


# With and without networks.
@pytest.mark.parametrize("method", ["ct", "mmd", pytest.param("gan", marks=pytest.mark.thorough)])
def test_alignment_sees_tokens_alone(method) -> None:
    """Nothing in the padding reaches the divergence: not its number, not its content."""
    model = SequenceClassifier(dataclasses.replace(ONE_LAYER, alignment=AlignmentConfig(method)))
    ids, mask, types = batch()
    params = random_parameters(model, ids)

    def table(*inputs):
        _, sown = outputs(model, params, *inputs, mutable=("alignment",))
        return alignment_table(jax.device_get(sown))

    expected = table(ids, mask, types)
    assert list(expected) == ["encoder/layer_0/attention"]
    other = table(np.where(mask == 1, ids, 9), mask, np.where(mask == 1, types, 1))
    wide = table(*(np.pad(x, ((0, 0), (0, 4))) for x in (ids, mask, types)))
    for name in expected:
        np.testing.assert_array_equal(other[name], expected[name])
        np.testing.assert_allclose(wide[name], expected[name], rtol=1e-5, atol=1e-6)


def test_alignment_adds_parameters_and_changes_no_output() -> None:
    ids, mask, types = batch()
    model = SequenceClassifier(dataclasses.replace(ONE_LAYER, alignment=AlignmentConfig("ct")))
    params = random_parameters(model, ids)
    plain = SequenceClassifier(ONE_LAYER)
    stripped = strip_alignment(params)
    assert jax.tree.structure(stripped) == jax.tree.structure(random_parameters(plain, ids))
    assert "alignment" in params["encoder"]["layer_0"]["attention"]
    np.testing.assert_array_equal(
        outputs(model, params, ids, mask, types), outputs(plain, stripped, ids, mask, types)
    )


@pytest.mark.parametrize("method", ["gan", "ot", "ct", "mmd"])
def test_inference_is_the_plain_models_program(method) -> None:
    """After `strip_alignment` nothing of the alignment is left, neither parameters nor work."""
    aligned, plain = (
        SequenceClassifier(dataclasses.replace(ONE_LAYER, alignment=alignment), pooling="mean")
        for alignment in (AlignmentConfig(method), None)
    )
    tokens = np.ones((2, 6), np.int32)
    params = strip_alignment(random_parameters(aligned, tokens))
    infer = [inference_program(model, params, tokens) for model in (aligned, plain)]
    assert infer[0] == infer[1]


def test_clouds_of_a_plain_model_can_be_measured() -> None:
    ids, mask, types = batch()
    model = SequenceClassifier(dataclasses.replace(ONE_LAYER, alignment=AlignmentConfig("none")))
    params = random_parameters(model, ids)
    _, sown = outputs(model, params, ids, mask, types, mutable=("alignment_clouds",))
    assert all(x.shape == (4,) and (x > 0).all() for x in jax.jit(cloud_mmd)(sown).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "BertConfig.layers is 0"),
        ({"hidden_size": 17}, "17, which 4 heads do not divide"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"dropout": None}, "dropout is None"),
        ({"activation": "gleu"}, "got 'gleu'. GELU is 'gelu' in its exact form"),
        ({"dtype": "float8"}, "dtype must be one of float32, .*got 'float8'"),
        ({"family": "xlnet"}, "family must be one of bert, roberta, got 'xlnet'"),
        ({"pad_token_id": 50}, "pad_token_id is 50"),
        ({"pad_token_id": None}, "pad_token_id is None"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0"),
        ({"family": "roberta", "pad_token_id": 19}, "must exceed pad_token_id"),
        (
            {"scan_layers": True, "alignment": AlignmentConfig("ct", layers=("layer_1/",))},
            r"alignment.layers \('layer_1/',\); a scan has one path",
        ),
    ],
)
def test_bad_configurations(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_bad_inputs() -> None:
    ids, mask, _ = batch()
    model = BertEncoder(CONFIG)
    params = random_parameters(model, ids)
    for inputs, message in (
        ((ids[0],), r"input_ids must be \[B, N\]"),
        ((np.zeros((1, 21), int),), "21 tokens per sequence; this model has positions for 20"),
        ((ids, mask[:, 1:]), "attention_mask must have the shape of input_ids"),
        ((ids, mask, mask[:1]), "token_type_ids must have the shape of input_ids"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.apply, {"params": params}, *inputs)
    with pytest.raises(ValueError, match="pooling must be one of pooler, mean, dense, got 'max'"):
        random_parameters(SequenceClassifier(CONFIG, pooling="max"), ids)
    with pytest.raises(ValueError, match=r"must be \[B, C, N\]"):
        random_parameters(MultipleChoice(CONFIG), ids)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_that_checkpoints_mean(name) -> None:
    """The exact GELU and its tanh form differ by up to 5e-4."""
    activations = pytest.importorskip("transformers.activations")
    torch = pytest.importorskip("torch")
    x = np.linspace(-6.0, 6.0, 241, dtype=np.float32)
    theirs = activations.ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](x), theirs, atol=2e-6)


@pytest.mark.parametrize("name", ["gelu_exact", "gelu_erf", "gelu_10", "quick_gelu", ["gelu"]])
def test_an_unknown_activation_is_not_told_to_be_another(name) -> None:
    with pytest.raises(ValueError, match="activation must be one of") as caught:
        BertConfig(activation=name)
    assert "mean" not in str(caught.value)
    assert "'gelu' in its exact form (by erf), 'gelu_new' in its tanh form" in str(caught.value)
