"""The Vision Transformer: structure, options, and that alignment leaves its outputs alone."""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import AlignmentConfig, alignment_table, strip_alignment
from align_jax.models import VisionTransformer, ViTConfig
from tests.models.parameters import inference_program, initial_program, random_parameters

CONFIG = ViTConfig(
    image_size=8, patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=24, num_classes=5
)
IMAGES = np.random.default_rng(1).uniform(size=(3, 8, 8, 1)).astype(np.float32)


@functools.cache
def build(**changes):
    model = VisionTransformer(dataclasses.replace(CONFIG, **changes))
    return model, {"params": random_parameters(model, IMAGES, scale=0.2)}


@functools.cache
def program(model, **options):
    """What a model computes, compiled once for all tests: to compile takes the most time."""
    return jax.jit(functools.partial(model.apply, **options))


def patches(images):
    """[B, 8, 8, 1] -> [B, 4 patches, 4, 4, 1], row by row."""
    cut = images.reshape(-1, 2, 4, 2, 4, 1).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, 4, 4, 4, 1)


def unpatched(cut):
    return cut.reshape(-1, 2, 2, 4, 4, 1).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 1)


def test_the_number_of_parameters_is_that_of_the_architecture() -> None:
    _, variables = build()
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    width, mlp = 16, 24
    norm = 2 * width
    layer = 2 * norm + 4 * (width * width + width) + (width * mlp + mlp) + (mlp * width + width)
    embedding = 4 * 4 * width + width + 4 * width
    assert count == embedding + 2 * layer + norm + width * 5 + 5


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_patches_moved_together_with_their_positions_change_nothing(pool: str) -> None:
    model, variables = build(pool=pool)
    order = np.array([2, 0, 3, 1])
    shuffled = jax.tree.map(lambda x: x, variables)
    positions = variables["params"]["position_embedding"]
    first = int(pool == "cls")
    tail = positions[:, first:][:, order]
    shuffled["params"]["position_embedding"] = np.concatenate([positions[:, :first], tail], axis=1)
    np.testing.assert_allclose(
        program(model)(variables, IMAGES),
        program(model)(shuffled, unpatched(patches(IMAGES)[:, order])),
        atol=1e-5,
    )


def test_positions_matter() -> None:
    model, variables = build()
    moved = unpatched(patches(IMAGES)[:, np.array([2, 0, 3, 1])])
    first, second = (program(model)(variables, images) for images in (IMAGES, moved))
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize(
    "method",
    # With and without networks; at inference the methods have nothing else of their own.
    ["ct", "mmd", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("gan", "ot"))],
)
def test_alignment_leaves_the_outputs_and_the_plain_parameters_alone(method: str) -> None:
    (_, plain_variables), (_, variables) = build(), build(alignment=AlignmentConfig(method))
    stripped = strip_alignment(variables["params"])
    assert jax.tree.structure(stripped) == jax.tree.structure(plain_variables["params"])
    assert inference(AlignmentConfig(method)) == inference(None)


@functools.cache
def inference(alignment):
    model, variables = build(alignment=alignment)
    return inference_program(model, variables["params"], IMAGES)


def test_an_aligned_model_starts_from_the_plain_ones_parameters() -> None:
    (plain, _), (aligned, variables) = build(), build(alignment=AlignmentConfig("ct"))
    assert "alignment" in variables["params"]["layer_0"]["attention"]
    assert initial_program(aligned, IMAGES) == initial_program(plain, IMAGES)


def test_every_layer_is_aligned_under_its_name() -> None:
    model, variables = build(alignment=AlignmentConfig("mmd"))
    _, sown = program(model, mutable=("alignment",))(variables, IMAGES)
    table = alignment_table(sown)
    assert list(table) == ["layer_0/attention", "layer_1/attention"]
    assert all(heads.shape == (2,) for heads in table.values())


def test_dropout_needs_its_key_and_acts_in_training_only() -> None:
    model, variables = build(dropout=0.5, attention_dropout=0.5)
    quiet = program(model)(variables, IMAGES)
    np.testing.assert_array_equal(quiet, program(build()[0])(variables, IMAGES))
    train = program(model, deterministic=False)
    noisy = [train(variables, IMAGES, rngs={"dropout": jax.random.key(k)}) for k in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(lambda: model.apply(variables, IMAGES, deterministic=False))


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters_and_logits() -> None:
    model, variables = build(dtype="bfloat16")
    fresh = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    logits = program(model)(variables, IMAGES)
    assert logits.dtype == jnp.float32
    exact, _ = build()
    np.testing.assert_allclose(logits, program(exact)(variables, IMAGES), atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size is 3, which does not divide image_size 8"),
        ({"heads": 3}, "hidden_size is 16, which 3 heads do not divide"),
        ({"layers": 0}, "layers is 0"),
        ({"layers": 2.0}, "layers is 2.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"pool": "max"}, "pool must be one of mean, cls, got 'max'"),
        ({"dtype": "float64"}, "dtype must be one of float32, .*got 'float64'"),
    ],
)
def test_bad_configurations_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 3), (3, 16, 16, 1)])
def test_images_of_another_size_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"8, 8, 1|float32\[3,8,8\]"):
        jax.eval_shape(VisionTransformer(CONFIG).init, jax.random.key(0), np.zeros(shape))


def test_normalised_queries_and_keys_are_what_is_aligned() -> None:
    model, variables = build(normalize_qk=True, alignment=AlignmentConfig("energy"))
    _, sown = program(model, mutable=("alignment_clouds",))(variables, IMAGES)
    for name in ("query", "key"):
        norm = variables["params"]["layer_0"]["attention"][f"{name}_ln"]["scale"]
        (x,) = sown["alignment_clouds"]["layer_0"]["attention"]["alignment"][name]
        assert norm.shape == (8,)
        np.testing.assert_allclose(np.std(x / norm, axis=-1), 1.0, atol=1e-3)
