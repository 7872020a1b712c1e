"""MCAN: size, padding, and that alignment reaches every attention and leaves outputs alone."""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import AlignmentConfig, alignment_loss, alignment_table, strip_alignment
from align_jax.models import MCAN, MCANConfig
from tests.models.parameters import inference_program, initial_program, random_parameters

CONFIG = MCANConfig(
    vocabulary_size=11, num_answers=5, region_features=6, word_features=7, hidden_size=8, layers=1,
    heads=2, mlp_size=12, reduction_size=9, fused_size=10,
)  # fmt: skip
QUESTION = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
IMAGE = np.random.default_rng(1).normal(size=(2, 4, 6)).astype(np.float32)
IMAGE_MASK = np.array([[True, True, True, False], [True] * 4])


@functools.cache
def build(**changes):
    model = MCAN(dataclasses.replace(CONFIG, **changes))
    return model, random_parameters(model, QUESTION, IMAGE, scale=0.2)


@functools.cache
def program(**changes):
    """What a model computes, compiled once for all tests: to compile takes the most time."""
    return jax.jit(MCAN(dataclasses.replace(CONFIG, **changes)).apply)


@functools.cache
def size(config: MCANConfig) -> int:
    model = MCAN(config)
    shapes = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0),
            jnp.ones((1, 14), int),
            jnp.ones((1, 100, config.region_features)),
            mutable=["params"],
        )
    )
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_the_small_model_is_as_large_as_published() -> None:
    """43.3 million plain, 43.4 with either alignment (Table 6 of the alignment paper), of which
    all heads of an attention share the networks."""
    assert size(MCANConfig()) == pytest.approx(43.3e6, rel=0.01)
    for method in ("gan", "ct"):
        aligned = MCANConfig(alignment=AlignmentConfig.paper(method))
        assert size(aligned) == pytest.approx(43.4e6, rel=0.01)


def test_the_number_of_parameters_is_that_of_the_architecture() -> None:
    def dense(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    norm = 2 * 8
    attention, mlp = 4 * dense(8, 8) + norm, dense(8, 12) + dense(12, 8) + norm
    lstm = 4 * (7 * 8 + dense(8, 8))
    reduction = dense(8, 9) + dense(9, 1) + dense(8, 10)
    expected = 11 * 7 + lstm + dense(6, 8) + 2 * (attention + mlp) + 2 * (2 * attention + mlp)
    expected += 2 * reduction + 2 * 10 + dense(10, 5)
    assert size(dataclasses.replace(CONFIG, layers=2)) == expected


def test_the_larger_size_is_larger() -> None:
    assert MCANConfig.large().layers == 6
    assert size(MCANConfig.large()) > 4 * size(MCANConfig())


def test_padding_changes_nothing() -> None:
    _, params = build()

    def apply(*inputs):
        return program()({"params": params}, *inputs)

    words = QUESTION != 0
    whole = apply(QUESTION, IMAGE, words, IMAGE_MASK)
    garbage = np.where(IMAGE_MASK[..., None], IMAGE, 1e3).astype(np.float32)
    other_words = np.where(words, QUESTION, 9)
    np.testing.assert_allclose(apply(other_words, garbage, words, IMAGE_MASK), whole, atol=1e-5)
    sliced = apply(QUESTION[:1, :3], IMAGE[:1, :3])
    np.testing.assert_allclose(sliced, whole[:1], atol=1e-5)
    no_mask = apply(QUESTION, IMAGE, words, np.ones_like(IMAGE_MASK))
    assert np.abs(no_mask - whole)[0].max() > 1e-4


def test_the_mask_is_by_default_that_of_words_and_of_all_regions() -> None:
    _, params = build()
    default = program()({"params": params}, QUESTION, IMAGE)
    told = program()({"params": params}, QUESTION, IMAGE, QUESTION != 0, np.ones((2, 4), bool))
    np.testing.assert_allclose(default, told, atol=1e-6)


def test_a_question_without_words_and_an_image_without_regions_stay_finite() -> None:
    model, params = build(alignment=AlignmentConfig("mmd"))
    nothing = np.zeros_like(QUESTION), IMAGE, None, np.zeros((2, 4), bool)

    def loss(params):
        logits, sown = model.apply({"params": params}, *nothing, mutable=["alignment"])
        return jnp.sum(jnp.square(logits)) + alignment_loss(sown)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_words_order_matters_and_regions_order_only_with_positions() -> None:
    order = np.array([2, 0, 3, 1])
    for positions, moves in ((4, True), (0, False)):
        changes = {"region_positions": positions} if positions else {}
        _, params = build(**changes)
        apply = functools.partial(program(**changes), {"params": params})
        expected = apply(QUESTION, IMAGE)
        moved = np.abs(apply(QUESTION, IMAGE[:, order]) - expected).max()
        assert bool(moved > 1e-4) is moves
    assert np.abs(apply(QUESTION[:, ::-1], IMAGE) - expected).max() > 1e-4


def test_an_aligned_model_starts_from_the_plain_ones_parameters() -> None:
    (plain, _), (aligned, params) = build(), build(alignment=AlignmentConfig("ct"))
    assert "alignment" in params["decoder_0"]["guided_attention"]
    assert initial_program(aligned, QUESTION, IMAGE) == initial_program(plain, QUESTION, IMAGE)


@pytest.mark.parametrize(
    "method",
    # With and without networks; at inference the methods have nothing else of their own.
    ["ct", "mmd", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("gan", "ot"))],
)
def test_alignment_leaves_the_outputs_and_the_plain_parameters_alone(method: str) -> None:
    (_, plain_params), (_, params) = build(), build(alignment=AlignmentConfig(method))
    stripped = strip_alignment(params)
    assert jax.tree.structure(stripped) == jax.tree.structure(plain_params)
    assert (method in ("gan", "ct")) is (jax.tree.structure(params) != jax.tree.structure(stripped))
    assert inference(AlignmentConfig(method)) == inference(None)


@functools.cache
def inference(alignment):
    model, params = build(alignment=alignment)
    return inference_program(model, params, QUESTION, IMAGE, QUESTION != 0, IMAGE_MASK)


@functools.cache
def sowing(layers):
    """What aligned layers sow, as a function of the inputs."""
    model, params = build(layers=layers, alignment=AlignmentConfig("mmd"))
    apply = functools.partial(model.apply, mutable=["alignment", "alignment_clouds"])
    return jax.jit(lambda *inputs: apply({"params": params}, *inputs)[1])


@pytest.fixture(scope="module")
def sown():
    """As one aligned layer does it."""
    return sowing(1)


def test_every_attention_is_aligned_the_guided_ones_too(sown) -> None:
    expected = {f"encoder_{layer}/attention" for layer in range(2)}
    for layer in range(2):
        expected |= {f"decoder_{layer}/attention", f"decoder_{layer}/guided_attention"}
    two = jax.eval_shape(sowing(2), QUESTION, IMAGE, None, IMAGE_MASK)
    assert set(jax.eval_shape(alignment_table, two)) == expected

    # Masked equals sliced, in all of them.
    whole = sown(QUESTION, IMAGE, None, IMAGE_MASK)
    sliced = alignment_table(sown(QUESTION[:1, :3], IMAGE[:1, :3]))
    masked = alignment_table(whole, sample_mask=np.array([True, False]))
    assert len(sliced) == 3
    for name, heads in sliced.items():
        np.testing.assert_allclose(masked[name], heads, atol=1e-5)


def test_guided_attention_aligns_regions_with_words(sown) -> None:
    clouds = sown(QUESTION, IMAGE, None, IMAGE_MASK)["alignment_clouds"]
    clouds = clouds["decoder_0"]["guided_attention"]["alignment"]
    assert clouds["query"][0].shape == (2, 4, 2, 4)  # 4 regions
    assert clouds["key"][0].shape == (2, 5, 2, 4)  # 5 words
    np.testing.assert_array_equal(clouds["query_mask"][0], IMAGE_MASK)
    np.testing.assert_array_equal(clouds["key_mask"][0], QUESTION != 0)


def test_dropout_needs_its_key_and_changes_the_logits() -> None:
    model, params = build()
    apply = jax.jit(
        lambda key: model.apply(
            {"params": params}, QUESTION, IMAGE, deterministic=False, rngs={"dropout": key}
        )
    )
    first, second = (apply(jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(first, apply(jax.random.key(0)))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(
            lambda: model.apply({"params": params}, QUESTION, IMAGE, deterministic=False)
        )


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters() -> None:
    _, params = build()
    logits, exact = (
        program(**changes)({"params": params}, QUESTION, IMAGE)
        for changes in ({"dtype": "bfloat16"}, {})
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.1)
    assert (logits != exact).any()
    half = MCAN(dataclasses.replace(CONFIG, dtype="bfloat16"))
    fresh = jax.eval_shape(half.init, jax.random.key(0), QUESTION, IMAGE)["params"]
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"region_positions": -1}, "region_positions is -1"),
        ({"heads": 3}, "3 heads do not divide"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dtype": "int8"}, "dtype must be one of float32, .*got 'int8'"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        ({}, (QUESTION[0], IMAGE), "question must be"),
        ({}, (QUESTION, IMAGE[:1]), "image must be"),
        ({}, (QUESTION, IMAGE[..., :3]), "3 features per region"),
        ({}, (QUESTION, IMAGE, QUESTION[:, :2] != 0), "question_mask must be"),
        ({}, (QUESTION, IMAGE, None, IMAGE_MASK[:, :2]), "image_mask must be"),
        ({"region_positions": 4}, (QUESTION, IMAGE.repeat(2, axis=1)), "image has 8 regions"),
    ],
)
def test_bad_inputs_are_named(changes: dict, inputs: tuple, message: str) -> None:
    model, params = build(**changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.apply({"params": params}, *inputs))
