"""BERT and RoBERTa: padding, positions, options and alignment. Parity: tests/pretrained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
from align_jax.models.transformer import exact_gelu

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, layers=2, heads=4, mlp_size=24, max_positions=20,
    initializer_range=0.3,
)  # fmt: skip
ROBERTA = dataclasses.replace(CONFIG, family="roberta", pad_token_id=1, token_types=1)


def batch(config=CONFIG, lengths=(9, 4, 1), seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(9) < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(2, 50, mask.shape), config.pad_token_id)
    types = np.where(mask, rng.integers(0, config.token_types, mask.shape), 0)
    return jnp.array(ids), jnp.array(mask.astype(np.int32)), jnp.array(types)


def initialise(model, *inputs, seed=0):
    return model.init(jax.random.key(seed), *inputs, mutable=["params"])["params"]


@pytest.mark.parametrize("config", [CONFIG, ROBERTA], ids=["bert", "roberta"])
def test_padding_changes_nothing(config) -> None:
    """A padded row gives what the row alone gives, whatever the padding holds."""
    ids, mask, types = batch(config)
    model = BertEncoder(config)
    params = initialise(model, ids)
    hidden, pooled = model.apply({"params": params}, ids, mask, types)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = slice(row, row + 1), slice(0, length)
        single, single_pooled = model.apply({"params": params}, ids[alone], None, types[alone])
        np.testing.assert_allclose(hidden[alone], single, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(pooled[row : row + 1], single_pooled, rtol=1e-5, atol=1e-5)
    if config is CONFIG:  # RoBERTa counts positions by the padding token, as PyTorch does
        other = jnp.where(mask == 1, ids, 7)
        again, _ = model.apply({"params": params}, other, mask, types)
        np.testing.assert_array_equal(again[mask == 1], hidden[mask == 1])


def test_positions() -> None:
    ids = jnp.array([[5, 6, 7, 1, 1], [1, 5, 1, 6, 1]])
    assert positions(CONFIG, ids).tolist() == [[0, 1, 2, 3, 4]]
    assert positions(ROBERTA, ids).tolist() == [[2, 3, 4, 1, 1], [1, 2, 1, 3, 1]]
    assert (CONFIG.max_length, ROBERTA.max_length) == (20, 18)


def test_a_row_of_padding_alone_stays_finite() -> None:
    ids, mask, types = batch(lengths=(9, 0, 3))
    model = SequenceClassifier(CONFIG, labels=2, pooling="mean")
    params = initialise(model, ids)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, ids, mask, types) ** 2)

    for leaf in jax.tree.leaves(jax.value_and_grad(loss)(params)):
        assert np.isfinite(leaf).all()


def test_the_padding_tokens_embedding_is_not_trained() -> None:
    ids, mask, _ = batch()
    model = SpanExtractor(CONFIG)
    params = initialise(model, ids)
    gradient = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, ids, mask).start ** 2))(params)
    words = gradient["encoder"]["embeddings"]["word"]["embedding"]
    assert not words[CONFIG.pad_token_id].any()
    assert words[ids[0, 0]].any()


@pytest.mark.parametrize("pooling", ["pooler", "mean", "dense"])
def test_heads(pooling) -> None:
    ids, mask, types = batch()
    model = SequenceClassifier(CONFIG, labels=3, pooling=pooling)
    params = initialise(model, ids)
    assert ("pooler" in params["encoder"]) is (pooling == "pooler")
    assert ("head_dense" in params) is (pooling == "dense")
    logits = model.apply({"params": params}, ids, mask, types)
    assert logits.shape == (3, 3)

    choice = MultipleChoice(CONFIG, pooling)
    choices = [jnp.stack([x, x[::-1]], axis=1) for x in (ids, mask, types)]
    choice_params = initialise(choice, *choices)
    assert jax.tree.structure(choice_params) == jax.tree.structure(params)
    scores = choice.apply({"params": choice_params}, *choices)
    assert scores.shape == (3, 2)
    np.testing.assert_allclose(scores[:, 0], scores[::-1, 1], atol=1e-5)


def test_mean_pooling_leaves_padding_out() -> None:
    hidden = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(mean_pooling(hidden, mask), [[1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(mean_pooling(hidden, None), hidden.mean(1))


def test_dropout_needs_training_and_uses_each_rate() -> None:
    ids, mask, types = batch()

    def outputs(key, deterministic, **rates):
        config = dataclasses.replace(CONFIG, **{"dropout": 0.0, "attention_dropout": 0.0, **rates})
        model = SequenceClassifier(config)
        params = initialise(model, ids)
        rngs = {"dropout": jax.random.key(key)}
        return np.asarray(
            model.apply(
                {"params": params}, ids, mask, types, deterministic=deterministic, rngs=rngs
            )
        )

    expected = outputs(0, True)
    for rates in ({"dropout": 0.5}, {"attention_dropout": 0.5}, {"classifier_dropout": 0.5}):
        np.testing.assert_array_equal(outputs(0, True, **rates), expected)
        assert (outputs(0, False, **rates) != expected).any()
        assert (outputs(0, False, **rates) != outputs(1, False, **rates)).any()
        np.testing.assert_array_equal(outputs(1, False, **rates), outputs(1, False, **rates))
    np.testing.assert_allclose(outputs(0, False), expected, atol=1e-6)


def test_attention_function_agrees_with_flax() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (jax.random.normal(x, (2, 5, 3, 4)) for x in keys[:3])
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)[:, None, None, :]
    expected = nn.dot_product_attention(query, key, value, mask=mask, deterministic=True)
    for options in (
        {"deterministic": True},
        {"deterministic": False},
        {"deterministic": True, "dropout_rate": 0.5, "dropout_rng": keys[3]},
    ):
        outputs = dot_product_attention(query, key, value, mask=mask, **options)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_attention_dropout_drops_each_weight_on_its_own() -> None:
    query = jnp.zeros((2, 50, 3, 4))
    value = jnp.broadcast_to(jnp.eye(50)[None, :, None, :], (2, 50, 3, 50))
    weights = 50 * dot_product_attention(
        query, query, value, dropout_rate=0.25, dropout_rng=jax.random.key(0)
    )
    np.testing.assert_allclose(jnp.unique(weights.round(4)), [0.0, 1.3333], atol=1e-3)
    assert float((weights == 0).mean()) == pytest.approx(0.25, abs=0.02)
    assert (weights[0] != weights[1]).any()
    assert (weights[:, :, 0] != weights[:, :, 1]).any()


def test_attention_weights_can_be_sown() -> None:
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            attention = nn.MultiHeadDotProductAttention(2, attention_fn=dot_product_attention)
            return attention(x, deterministic=True, sow_weights=True)

    x = jnp.ones((1, 3, 4))
    variables = Module().init(jax.random.key(0), x)
    _, sown = Module().apply(variables, x, mutable=["intermediates"])
    (weights,) = jax.tree.leaves(sown["intermediates"])
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_exact_gelu() -> None:
    x = jnp.linspace(-8, 8, 1001)
    np.testing.assert_allclose(exact_gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    half = exact_gelu(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), exact_gelu(x), atol=0.04)


@pytest.mark.parametrize("alignment", [None, AlignmentConfig("ct")], ids=["plain", "ct"])
def test_remat_changes_neither_values_nor_gradients(alignment) -> None:
    ids, mask, types = batch()
    results = []
    for remat in (False, True):
        config = dataclasses.replace(CONFIG, layers=1, remat=remat, alignment=alignment)
        model = SequenceClassifier(config)
        params = initialise(model, ids)

        def loss(params, model=model):
            outputs, sown = model.apply(
                {"params": params}, ids, mask, types, deterministic=False,
                rngs={"dropout": jax.random.key(3)}, mutable=["alignment"],
            )  # fmt: skip
            extra = 0.0 if alignment is None else alignment_loss(sown)
            return jnp.sum(outputs**2) + extra

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def aligned_loss(config, params):
    """Loss, gradient, and all that is read of the collections; two of three rows count."""
    ids, mask, types = batch()
    rows = jnp.array([True, False, True])

    def loss(params):
        logits, sown = SequenceClassifier(config).apply(
            {"params": params}, ids, mask, types, deterministic=False,
            rngs={"dropout": jax.random.key(3)}, mutable=["alignment", "alignment_clouds"],
        )  # fmt: skip
        sums, table = alignment_sums(sown, rows), alignment_table(sown, rows)
        mmd = cloud_mmd(sown, bandwidth=2.0, sample_mask=rows)
        value = jnp.sum(logits**2) + alignment_loss(sown, rows)
        return value, (logits, sums.total, sums.count, table, mmd)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize(("method", "remat"), [("ct", False), ("mmd", True)])
def test_a_scan_over_layers_is_the_loop(method, remat) -> None:
    """Values, gradients of every parameter, and one entry per layer in all that is reported."""
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    looped = dataclasses.replace(CONFIG, alignment=AlignmentConfig(method), **rates)
    params = initialise(SequenceClassifier(looped), batch()[0])
    (value, (*arrays, table, mmd)), gradient = aligned_loss(looped, params)
    config = dataclasses.replace(looped, scan_layers=True, remat=remat)
    (other, (*others, rows, heads)), stacked = aligned_loss(config, stack_layers(params))
    for found, expected in ((rows, table), (heads, mmd)):
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
    params = initialise(model, ids)
    kernels = params["encoder"]["layers"]["mlp_in"]["kernel"]
    assert kernels.shape == (2, 16, 24)
    assert (kernels[0] != kernels[1]).all()
    _, seen = model.apply(
        {"params": params}, ids, mask, types, deterministic=False,
        rngs={"dropout": jax.random.key(3)}, mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, Dropout),
    )  # fmt: skip
    for dropped in jax.tree.leaves(seen["intermediates"]["encoder"]["layers"]):
        assert dropped.shape == (2, 3, 9, 16)
        assert dropped.dtype == jnp.bfloat16
        assert ((dropped[0] == 0) != (dropped[1] == 0)).any()


def test_stacking_layers_goes_both_ways_and_refuses_what_makes_no_stack() -> None:
    params = initialise(SequenceClassifier(dataclasses.replace(CONFIG, layers=11)), batch()[0])
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
    partly = initialise(BertEncoder(dataclasses.replace(CONFIG, alignment=some)), batch()[0])
    with pytest.raises(ValueError, match=r"Is AlignmentConfig\.layers None\?"):
        stack_layers(partly)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters() -> None:
    ids, mask, types = batch()
    half = SequenceClassifier(dataclasses.replace(CONFIG, dtype="bfloat16"))
    params = initialise(half, ids)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = half.apply({"params": params}, ids, mask, types)
    assert logits.dtype == jnp.float32
    exact = SequenceClassifier(CONFIG).apply({"params": params}, ids, mask, types)
    np.testing.assert_allclose(logits, exact, atol=0.15)
    encoder = BertEncoder(half.config)
    hidden, pooled = encoder.apply({"params": params["encoder"]}, ids, mask, types)
    assert {hidden.dtype, pooled.dtype} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("method", ["gan", "ct", "mmd"])
def test_alignment_sees_tokens_alone(method) -> None:
    """Nothing in the padding reaches the divergence: not its number, not its content."""
    model = SequenceClassifier(dataclasses.replace(CONFIG, alignment=AlignmentConfig(method)))
    ids, mask, types = batch()
    params = initialise(model, ids)

    def table(*inputs):
        _, sown = model.apply({"params": params}, *inputs, mutable=["alignment"])
        return alignment_table(sown)

    expected = table(ids, mask, types)
    assert list(expected) == ["encoder/layer_0/attention", "encoder/layer_1/attention"]
    other = table(jnp.where(mask == 1, ids, 9), mask, jnp.where(mask == 1, types, 1))
    wide = table(*(jnp.pad(x, ((0, 0), (0, 4))) for x in (ids, mask, types)))
    for name in expected:
        np.testing.assert_array_equal(other[name], expected[name])
        np.testing.assert_allclose(wide[name], expected[name], rtol=1e-5, atol=1e-6)


def test_alignment_adds_parameters_and_changes_no_output() -> None:
    ids, mask, types = batch()
    model = SequenceClassifier(dataclasses.replace(CONFIG, alignment=AlignmentConfig("ct")))
    params = initialise(model, ids)
    plain = SequenceClassifier(CONFIG)
    stripped = strip_alignment(params)
    assert jax.tree.structure(stripped) == jax.tree.structure(initialise(plain, ids))
    assert "alignment" in params["encoder"]["layer_0"]["attention"]
    np.testing.assert_array_equal(
        model.apply({"params": params}, ids, mask, types),
        plain.apply({"params": stripped}, ids, mask, types),
    )


@pytest.mark.parametrize("method", ["gan", "ot", "ct", "mmd"])
def test_inference_is_the_plain_models_program(method) -> None:
    """After `strip_alignment` nothing of the alignment is left, neither parameters nor work."""
    tokens = jnp.ones((2, 6), jnp.int32)

    def program(alignment):
        model = SequenceClassifier(dataclasses.replace(CONFIG, alignment=alignment), pooling="mean")
        params = strip_alignment(model.init(jax.random.key(0), tokens)["params"])
        return jax.jit(model.apply).lower({"params": params}, tokens).as_text()

    assert program(AlignmentConfig(method)) == program(None)


def test_clouds_of_a_plain_model_can_be_measured() -> None:
    ids, mask, types = batch()
    model = SequenceClassifier(dataclasses.replace(CONFIG, alignment=AlignmentConfig("none")))
    params = initialise(model, ids)
    _, sown = model.apply({"params": params}, ids, mask, types, mutable=["alignment_clouds"])
    assert all(x.shape == (4,) and (x > 0).all() for x in cloud_mmd(sown).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "BertConfig.layers is 0"),
        ({"hidden_size": 17}, "17, which 4 heads do not divide"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"dropout": None}, "dropout is None"),
        ({"activation": "gleu"}, "got 'gleu'. Did you mean 'gelu'"),
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
    params = initialise(model, ids)
    for inputs, message in (
        ((ids[0],), r"input_ids must be \[B, N\]"),
        ((jnp.zeros((1, 21), int),), "21 tokens per sequence; this model has positions for 20"),
        ((ids, mask[:, 1:]), "attention_mask must have the shape of input_ids"),
        ((ids, mask, mask[:1]), "token_type_ids must have the shape of input_ids"),
    ):
        with pytest.raises(ValueError, match=message):
            model.apply({"params": params}, *inputs)
    with pytest.raises(ValueError, match="pooling must be one of pooler, mean, dense, got 'max'"):
        initialise(SequenceClassifier(CONFIG, pooling="max"), ids)
    with pytest.raises(ValueError, match=r"must be \[B, C, N\]"):
        initialise(MultipleChoice(CONFIG), ids)
