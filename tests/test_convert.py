"""Alignment of models that were written without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from align_jax import (
    AlignmentConfig,
    MultiHeadDotProductAttention,
    aligned,
    alignment_loss,
    alignment_table,
    strip_alignment,
)

X = jax.random.normal(jax.random.key(0), (3, 5, 8))
AXES = {"params": 0, "alignment": 0, "alignment_clouds": 0}


class Block(nn.Module):
    """Pre-norm self-attention."""

    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.SelfAttention(num_heads=2)(nn.LayerNorm()(x)), None


class SetupBlock(nn.Module):
    """Submodules made in setup."""

    def setup(self):
        self.attention = nn.MultiHeadDotProductAttention(num_heads=2)

    def __call__(self, x, _=None):
        return x + self.attention(x, x * 2), None


class Model(nn.Module):
    """Three layers, repeated in one of flax's ways."""

    kind: str

    @nn.compact
    def __call__(self, x):
        if self.kind == "scan":
            scan = nn.scan(Block, AXES, split_rngs={"params": True}, length=3)
            return scan()(x, None)[0]
        if self.kind == "vmap":
            axes = {"params": None, "alignment": 0}
            return nn.vmap(Block, variable_axes=axes, split_rngs={"params": False})()(x)[0]
        if self.kind == "shared":
            block = Block()
            for _ in range(3):
                x, _ = block(x)
            return x
        kinds = {"nested": Block, "setup": SetupBlock, "remat": nn.remat(Block),
                 "jit": nn.jit(Block)}  # fmt: skip
        for _ in range(3):
            x, _ = kinds[self.kind]()(x)
        return x

    def doubled(self, x):
        return 2 * self(x)


KINDS = ("nested", "setup", "scan", "vmap", "remat", "shared", "jit")
# What is mapped over is one attention of more samples.
ATTENTIONS = {kind: 1 if kind == "vmap" else 3 for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_converts_without_touching_the_model(kind):
    model = Model(kind)
    variables = model.init(jax.random.key(0), X)  # whose operations all kinds share
    # Its cached trace of the plain model must not get in the way.
    expected = jax.jit(model.apply)(variables, X)
    converted = aligned(model, AlignmentConfig("ct"))
    own = converted.init(jax.random.key(0), X)
    assert set(own) == {"params"}
    stripped = {"params": strip_alignment(own["params"])}
    assert jax.tree.structure(stripped) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(stripped), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, b)
    apply = jax.jit(converted.apply, static_argnames="method")
    for parameters in (own, variables):
        np.testing.assert_array_equal(apply(parameters, X), expected)
    if kind == "nested":  # how a method is found does not depend on what it calls
        np.testing.assert_array_equal(apply(variables, X, method="doubled"), 2 * expected)

    def loss(params):
        outputs, sown = converted.apply({"params": params}, X, mutable=["alignment"])
        return alignment_loss(sown), (outputs, alignment_table(sown))

    (value, (outputs, table)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        own["params"]
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    assert len(table) == ATTENTIONS[kind]
    np.testing.assert_allclose(value, np.mean(list(table.values())), rtol=1e-5)
    norms = {
        jax.tree_util.keystr(path): np.linalg.norm(leaf)
        for path, leaf in jax.tree.leaves_with_path(gradient)
    }
    for part in ("query", "key", "critic", "navigator"):
        assert any(norm > 0 for path, norm in norms.items() if part in path), part


def test_equals_the_drop_in():
    converted = aligned(nn.MultiHeadDotProductAttention(num_heads=2), AlignmentConfig("ct"))
    drop_in = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("ct"))
    variables = drop_in.init(jax.random.key(0), X)
    mask = jnp.ones((3, 1, 1, 5), bool).at[0, ..., 3:].set(False)
    values = [
        alignment_loss(module.apply(variables, X, mask=mask, mutable=["alignment"])[1])
        for module in (converted, drop_in)
    ]
    assert values[0] == values[1]
    unmasked = drop_in.apply(variables, X, mutable=["alignment"])[1]
    assert values[0] != alignment_loss(unmasked)


def test_cross_attention_is_told_from_self_attention():
    converted = aligned(nn.MultiHeadDotProductAttention(num_heads=2), AlignmentConfig("mmd"))
    drop_in = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("mmd"))
    variables = drop_in.init(jax.random.key(0), X)
    mask = jnp.ones((3, 1, 1, 5), bool).at[0, ..., 3:].set(False)
    memory = X + 1.0
    crossed = converted.apply(variables, X, memory, mask=mask, mutable=["alignment"])[1]
    expected = drop_in.apply(
        variables, X, memory, query_mask=jnp.ones((3, 5), bool), key_mask=mask[:, 0, 0],
        mutable=["alignment"],
    )[1]  # fmt: skip
    assert alignment_loss(crossed) == alignment_loss(expected)


def test_layers_leave_the_others_without_networks():
    converted = aligned(Model("nested"), AlignmentConfig("ct", layers=("Block_1/",)))
    variables = converted.init(jax.random.key(0), X)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables)]
    assert {path.split("'")[3] for path in paths if "alignment" in path} == {"Block_1"}
    table = alignment_table(converted.apply(variables, X, mutable=["alignment"])[1])
    assert list(table) == ["Block_1/SelfAttention_0"]


def test_a_converted_model_can_be_part_of_another():
    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, x):
            encoder = aligned(Model("nested", parent=None), AlignmentConfig("gan"))
            return nn.Dense(2)(encoder(x).mean(1))

    model = Classifier()
    variables = model.init(jax.random.key(0), X)
    _, sown = model.apply(variables, X, mutable=["alignment"])
    assert len(alignment_table(sown)) == 3


def test_bad_models_are_named():
    with pytest.raises(TypeError, match=r"takes a flax.linen or flax.nnx module, got function"):
        aligned(lambda x: x, AlignmentConfig())
    converted = aligned(Model("nested"), AlignmentConfig())
    with pytest.raises(ValueError, match="already aligned"):
        aligned(converted, AlignmentConfig())
    with pytest.raises(ValueError, match="The model Dense has no attention"):
        aligned(nn.Dense(3), AlignmentConfig()).init(jax.random.key(0), X)
    drop_in = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig())
    with pytest.raises(ValueError, match="already has an alignment of its own"):
        aligned(drop_in, AlignmentConfig()).init(jax.random.key(0), X)
    with pytest.raises(AttributeError, match="no_such_method"):
        converted.apply({}, X, method="no_such_method")
