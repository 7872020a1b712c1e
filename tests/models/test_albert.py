"""ALBERT: shared layers, factorised embeddings, alignment once per application."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import (
    AlignmentConfig,
    alignment_loss,
    alignment_sums,
    alignment_table,
    strip_alignment,
)
from align_jax.models.albert import AlbertConfig, AlbertEncoder
from align_jax.models.heads import SequenceClassifier
from align_jax.models.transformer import TransformerLayer
from tests.models.parameters import random_parameters

CONFIG = AlbertConfig(
    vocab_size=40, hidden_size=16, layers=2, heads=2, mlp_size=24, max_positions=16,
    embedding_size=6, initializer_range=0.3,
)  # fmt: skip
IDS = np.array([[2, 5, 9, 3, 0, 0], [2, 8, 3, 7, 7, 3]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def initialise(model):
    return random_parameters(model, IDS, MASK)


def test_the_papers_sizes() -> None:
    """ALBERT-base has 12M parameters, of which 3.8M are embeddings (Lan et al., Table 1)."""
    shapes = jax.eval_shape(lambda: AlbertEncoder(AlbertConfig()).init(jax.random.key(0), IDS))
    params = shapes["params"]
    assert params["embeddings"]["word"]["embedding"].shape == (30000, 128)
    assert params["embedding_projection"]["kernel"].shape == (128, 768)
    assert sum(x.size for x in jax.tree.leaves(params)) == 11_683_584
    assert (AlbertConfig().dropout, AlbertConfig().classifier_dropout) == (0.0, 0.1)


@pytest.mark.parametrize("remat", [False, True])
def test_one_layer_is_applied_again_and_again(remat) -> None:
    model = AlbertEncoder(dataclasses.replace(CONFIG, remat=remat), pooler=False)
    params = initialise(model)
    assert [name for name in params if name.startswith("layer")] == ["layer_0"]
    hidden, pooled = jax.jit(model.apply)({"params": params}, IDS, MASK)
    assert pooled is None

    @jax.jit
    def again(params):
        once = AlbertEncoder(dataclasses.replace(CONFIG, layers=1), pooler=False)
        expected, _ = once.apply({"params": params}, IDS, MASK)
        layer = TransformerLayer(CONFIG)
        for _ in range(CONFIG.layers - 1):
            expected = layer.apply({"params": params["layer_0"]}, expected, MASK == 1, True)
        return expected

    np.testing.assert_allclose(hidden, again(params), atol=1e-6)


def test_groups_take_turns_in_order() -> None:
    config = dataclasses.replace(CONFIG, layers=5, groups=2, group_layers=2)
    assert [config.group_of(x) for x in range(5)] == [0, 0, 0, 1, 1]
    params = initialise(AlbertEncoder(config))
    assert [x for x in sorted(params) if x.startswith("layer")] == [f"layer_{n}" for n in range(4)]


@pytest.mark.parametrize(
    ("method", "remat"),
    [
        ("ct", True),  # MMD is below, in a loop and in a scan
        # The model itself does the same for every method.
        pytest.param("gan", False, marks=pytest.mark.thorough),
        pytest.param("ot", True, marks=pytest.mark.thorough),
    ],
)
def test_alignment_is_sown_once_per_application(method, remat) -> None:
    if method == "ot":
        pytest.importorskip("ott", reason="optimal transport needs ott-jax")
    config = dataclasses.replace(CONFIG, alignment=AlignmentConfig(method), remat=remat)
    model = SequenceClassifier(config)
    params = initialise(model)

    def loss(params):
        _, sown = model.apply({"params": params}, IDS, MASK, mutable=["alignment"])
        return alignment_loss(sown), sown

    (value, sown), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    table = alignment_table(sown)
    assert list(table) == [f"encoder/layer_0/attention#{n}" for n in range(CONFIG.layers)]
    assert alignment_sums(sown).count.tolist() == [2.0] * CONFIG.layers
    assert float(value) == pytest.approx(np.mean([x.mean() for x in table.values()]), rel=1e-5)
    query = gradient["encoder"]["layer_0"]["attention"]["query"]["kernel"]
    assert np.isfinite(query).all()
    assert query.any()


@pytest.mark.thorough
def test_a_scan_over_applications_is_the_loop() -> None:
    """Same parameters, values, gradients and reports."""
    results = []
    for scan_layers in (False, True):
        config = dataclasses.replace(
            CONFIG, alignment=AlignmentConfig("mmd"), scan_layers=scan_layers, remat=True
        )
        model = SequenceClassifier(config)
        params = initialise(model)

        def loss(params, model=model):
            logits, sown = model.apply({"params": params}, IDS, MASK, mutable=["alignment"])
            reports = alignment_table(sown), alignment_sums(sown).count
            return jnp.sum(logits**2) + alignment_loss(sown), reports

        found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        (_, (table, count)), gradient = found
        assert list(table) == [f"encoder/layer_0/attention#{n}" for n in range(CONFIG.layers)]
        assert count.tolist() == [2.0] * CONFIG.layers
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
        results.append(found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *results)


def test_a_scan_starts_from_the_loops_parameters() -> None:
    looped, scanned = (
        jax.jit(functools.partial(AlbertEncoder(config).init, mutable=["params"]))(
            jax.random.key(0), IDS
        )
        for config in (CONFIG, dataclasses.replace(CONFIG, scan_layers=True))
    )
    jax.tree.map(np.testing.assert_array_equal, looped, scanned)


def test_padding_takes_no_part_and_stripping_is_exact() -> None:
    model = SequenceClassifier(dataclasses.replace(CONFIG, alignment=AlignmentConfig("ct")))
    params = initialise(model)

    apply = jax.jit(functools.partial(model.apply, mutable=["alignment"]))

    def table(ids):
        _, sown = apply({"params": params}, ids, MASK)
        return alignment_table(sown)

    expected, other = table(IDS), table(np.where(MASK == 1, IDS, 31))
    for name in expected:
        np.testing.assert_array_equal(other[name], expected[name])
    np.testing.assert_array_equal(
        jax.jit(model.apply)({"params": params}, IDS, MASK),
        jax.jit(SequenceClassifier(CONFIG).apply)({"params": strip_alignment(params)}, IDS, MASK),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 5}, "groups is 5, more than the 2 layers"),
        ({"groups": 2, "scan_layers": True}, "scan_layers is True with groups = 2 and group_lay"),
        ({"embedding_size": 0}, "AlbertConfig.embedding_size is 0"),
        ({"group_layers": 1.5}, "AlbertConfig.group_layers is 1.5"),
    ],
)
def test_bad_configurations(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
