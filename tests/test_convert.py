"""Alignment of models that were written without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from align_jax import (
    AlignmentConfig,
    MultiHeadDotProductAttention,
    aligned,
    alignment_loss,
    alignment_table,
    attention_report,
    game_optimizer,
    label_parameters,
    strip_alignment,
)
from tests.cases import thorough
from tests.finder.programs import rotated

X = jax.random.normal(jax.random.key(0), (3, 5, 8))
LAYERS = 2
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
    """Layers, repeated in one of flax's ways."""

    kind: str

    @nn.compact
    def __call__(self, x):
        if self.kind == "scan":
            scan = nn.scan(Block, AXES, split_rngs={"params": True}, length=LAYERS)
            return scan()(x, None)[0]
        if self.kind == "vmap":
            axes = {"params": None, "alignment": 0}
            return nn.vmap(Block, variable_axes=axes, split_rngs={"params": False})()(x)[0]
        if self.kind == "shared":
            block = Block()
            for _ in range(LAYERS):
                x, _ = block(x)
            return x
        kinds = {"nested": Block, "setup": SetupBlock, "remat": nn.remat(Block),
                 "jit": nn.jit(Block)}  # fmt: skip
        for _ in range(LAYERS):
            x, _ = kinds[self.kind]()(x)
        return x

    def doubled(self, x):
        return 2 * self(x)


KINDS = ("nested", "setup", "scan", "vmap", "remat", "shared", "jit")
# What is mapped over is one attention of more samples.
ATTENTIONS = {kind: 1 if kind == "vmap" else LAYERS for kind in KINDS}


@pytest.mark.parametrize("kind", thorough(KINDS, "nested", "setup", "vmap", "remat", "jit"))
def test_converts_without_touching_the_model(kind):
    model = Model(kind)
    variables = model.init(jax.random.key(0), X)  # whose operations all kinds share
    # Its cached trace of the plain model must not get in the way.
    expected = jax.jit(model.apply)(variables, X)
    converted = aligned(model, AlignmentConfig("gan"))
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
    for part in ("query", "key", "discriminator"):
        assert any(norm > 0 for path, norm in norms.items() if part in path), part


@functools.partial(jax.jit, static_argnums=0)
def loss_of(module, variables, *inputs, **masks):
    return alignment_loss(module.apply(variables, *inputs, **masks, mutable=["alignment"])[1])


def test_equals_the_drop_in():
    converted = aligned(nn.MultiHeadDotProductAttention(num_heads=2), AlignmentConfig("ct"))
    drop_in = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("ct"))
    variables = jax.jit(drop_in.init)(jax.random.key(0), X)
    full = jnp.ones((3, 1, 1, 5), bool)
    masked = full.at[0, ..., 3:].set(False)
    value = loss_of(converted, variables, X, mask=masked)
    assert value == loss_of(drop_in, variables, X, mask=masked)
    assert value != loss_of(drop_in, variables, X, mask=full)


def test_cross_attention_is_told_from_self_attention():
    converted = aligned(nn.MultiHeadDotProductAttention(num_heads=2), AlignmentConfig("mmd"))
    drop_in = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("mmd"))
    variables = jax.jit(drop_in.init)(jax.random.key(0), X)
    mask = jnp.ones((3, 1, 1, 5), bool).at[0, ..., 3:].set(False)
    memory = X + 1.0
    masks = {"query_mask": jnp.ones((3, 5), bool), "key_mask": mask[:, 0, 0]}
    crossed = loss_of(converted, variables, X, memory, mask=mask)
    assert crossed == loss_of(drop_in, variables, X, memory, **masks)


def test_layers_leave_the_others_without_networks():
    converted = aligned(Model("nested"), AlignmentConfig("gan", layers=("Block_1/",)))
    variables = converted.init(jax.random.key(0), X)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables)]
    assert {path.split("'")[3] for path in paths if "alignment" in path} == {"Block_1"}
    _, sown = jax.jit(functools.partial(converted.apply, mutable=["alignment"]))(variables, X)
    assert list(alignment_table(sown)) == ["Block_1/SelfAttention_0"]


def test_a_converted_model_can_be_part_of_another():
    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, x):
            encoder = aligned(Model("nested", parent=None), AlignmentConfig("gan"))
            return nn.Dense(2)(encoder(x).mean(1))

    model = Classifier()
    variables = model.init(jax.random.key(0), X)
    _, sown = jax.jit(functools.partial(model.apply, mutable=["alignment"]))(variables, X)
    assert len(alignment_table(sown)) == LAYERS


class Own(nn.Module):
    """Attention that is none of flax's modules: rotated queries, grouped heads, causal, padded."""

    heads: int = 4

    @nn.compact
    def __call__(self, x, valid):
        q = nn.DenseGeneral((self.heads, 4), name="q_proj")(x)
        k, v = (nn.DenseGeneral((1, 4), name=name)(x) for name in ("k_proj", "v_proj"))
        q, k = rotated(q), rotated(k)
        k, v = (jnp.repeat(a, self.heads, axis=2) for a in (k, v))
        mask = nn.combine_masks(nn.make_causal_mask(valid), valid[:, None, None, :])
        outputs = nn.dot_product_attention(q, k, v, mask=mask)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="o_proj")(outputs)


class DecoderLayer(nn.Module):
    """Pre-norm, with a module called "model"."""

    @nn.compact
    def __call__(self, x, valid):
        x = x + Own(name="model")(nn.RMSNorm()(x), valid)
        return x + nn.Dense(8)(nn.silu(nn.Dense(16)(nn.RMSNorm()(x)))), None


class Decoder(nn.Module):
    """Two layers of a language model, scanned as people scan them: only "params" is carried."""

    @nn.compact
    def __call__(self, ids, valid):
        x = nn.Embed(11, 8)(ids)
        layers = nn.scan(
            nn.remat(DecoderLayer), {"params": 0}, split_rngs={"params": True}, length=2,
            in_axes=nn.broadcast,
        )  # fmt: skip
        x, _ = layers(name="layers")(x, valid)
        return nn.Dense(11)(nn.RMSNorm()(x))


@pytest.mark.thorough
def test_a_decoder_is_fine_tuned_with_alignment():
    ids = jax.random.randint(jax.random.key(1), (3, 6), 0, 11)
    valid = jnp.arange(6) < jnp.array([[6], [4], [3]])
    config = AlignmentConfig("ct")
    converted = aligned(Decoder(), config)
    params = jax.jit(converted.init)(jax.random.key(0), ids, valid)["params"]
    networks = params["layers"]["model"]["alignment"]
    assert all(leaf.shape[:2] == (2, 4) for leaf in jax.tree.leaves(networks))
    report = attention_report(Decoder(), ids, valid)
    assert str(report).splitlines()[1].split() == [
        "layers/model", "3", "6", "6", "4", "4", "self", "masked,", "2", "layers",
    ]  # fmt: skip
    optimizer = game_optimizer(optax.adam(1e-2))

    def loss(params):
        outputs, sown = converted.apply({"params": params}, ids, valid, mutable=["alignment"])
        task = optax.softmax_cross_entropy_with_integer_labels(outputs[:, :-1], ids[:, 1:])
        task = jnp.mean(task, where=valid[:, 1:])
        return task + config.default_weight * alignment_loss(sown), (task, sown)

    @jax.jit
    def step(params, state):
        (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, aux

    state, losses = optimizer.init(params), []
    for _ in range(8):
        params, state, (task, sown) = step(params, state)
        losses.append(float(task))
    assert losses[-1] < 0.7 * losses[0]
    assert alignment_table(sown)["layers/model#0"].shape == (4,)
    plain = jax.jit(Decoder().apply)({"params": strip_alignment(params)}, ids, valid)
    unmeasured = jax.jit(converted.apply)({"params": params}, ids, valid)
    np.testing.assert_array_equal(unmeasured, plain)


class Partly(nn.Module):
    """An attention that can be aligned, one inside a condition, and two in one module."""

    conditional: bool = True

    @nn.compact
    def __call__(self, x):
        if self.conditional:
            attention = nn.SelfAttention(num_heads=2, name="sometimes")
            if self.is_initializing():  # both branches must have made the parameters
                x = attention(x)
            else:
                x = nn.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: x, attention, x)
        q, k, r, s = (nn.DenseGeneral((2, 4), name=name)(x) for name in "qkrs")
        x = x + nn.DenseGeneral(8, axis=(-2, -1))(nn.dot_product_attention(q, k, k))
        return x + nn.DenseGeneral(8, axis=(-2, -1))(nn.dot_product_attention(r, s, s))


def test_none_is_left_out_without_a_word():
    config = AlignmentConfig("ct")
    with pytest.raises(ValueError, match=r"1 beside 2 that can:\n  sometimes: inside lax"):
        aligned(Partly(), config).init(jax.random.key(0), X)
    for named in ({"allow_missing": ("some",)}, {"allow_missing": True}):
        converted = aligned(Partly(), config, **named)
        shapes = jax.eval_shape(converted.init, jax.random.key(0), X)
        assert "critic" in shapes["params"]["alignment"]
    others = aligned(Partly(), AlignmentConfig("ct", layers=("^/$",)))
    shapes = jax.eval_shape(others.init, jax.random.key(0), X)
    assert "critic" in shapes["params"]["alignment_1"]
    variables = jax.jit(Partly().init)(jax.random.key(0), X)
    with pytest.raises(ValueError, match="sometimes"):  # nor without init
        aligned(Partly(), AlignmentConfig("mmd")).apply(variables, X, mutable=["alignment"])


def test_two_attentions_of_one_module_have_networks_of_their_own():
    converted = aligned(Partly(conditional=False), AlignmentConfig("gan"))
    variables = converted.init(jax.random.key(0), X)
    first, second = (variables["params"][name] for name in ("alignment", "alignment_1"))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert not np.array_equal(*(jax.tree.leaves(networks)[-1] for networks in (first, second)))
    plain = jax.eval_shape(Partly(conditional=False).init, jax.random.key(0), X)
    stripped = strip_alignment(variables["params"])
    assert jax.tree.structure(stripped) == jax.tree.structure(plain["params"])
    assert "alignment" in str(label_parameters(variables["params"])["alignment_1"])
    _, sown = jax.jit(functools.partial(converted.apply, mutable=["alignment"]))(variables, X)
    assert list(alignment_table(sown)) == ["", ":1"]


class Noisy(nn.Module):
    """Dropout, batch statistics and intermediates, which training changes."""

    @nn.compact
    def __call__(self, x, *, train, names=("a",)):
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.SelfAttention(num_heads=2, dropout_rate=0.5, deterministic=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        self.sow("intermediates", "mean", x.mean())
        return {"outputs": x, "names": names}


def test_training_changes_what_it_changes_in_the_plain_model():
    converted = aligned(Noisy(), AlignmentConfig("energy"))
    init = jax.jit(functools.partial(converted.init, train=False))
    variables = init(jax.random.key(0), X)
    changing = ("batch_stats", "intermediates")

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def trained(model, mutable):
        rngs = {"dropout": jax.random.key(3)}
        outputs, changes = model.apply(variables, X, train=True, rngs=rngs, mutable=mutable)
        assert outputs["names"] == ("a",)
        return outputs["outputs"], changes

    expected, changes = trained(Noisy(), changing)
    outputs, sown = trained(converted, (*changing, "alignment"))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(
        jax.tree.leaves({name: sown[name] for name in changing}),
        jax.tree.leaves(changes),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.isfinite(alignment_loss(sown))


class Siamese(nn.Module):
    """One encoder for two inputs."""

    def setup(self):
        self.encoder = aligned(Model("nested"), AlignmentConfig("gan"))

    def __call__(self, x, y):
        return self.encoder(x) + self.encoder(y)


def test_every_call_of_a_part_counts():
    model = Siamese()
    variables = model.init(jax.random.key(0), X, 2 * X)
    apply = jax.jit(functools.partial(model.apply, mutable=["alignment"]))
    _, sown = apply(variables, X, 2 * X)
    layers = [f"encoder/Block_{layer}/SelfAttention_0" for layer in range(LAYERS)]
    names = [f"{layer}#{call}" for layer in layers for call in range(2)]
    assert list(alignment_table(sown)) == names


def test_a_model_with_a_cache_is_read_at_init():
    model = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
    variables = aligned(model, AlignmentConfig("ct")).init(jax.random.key(0), X)
    assert set(variables["params"]["alignment"]) == {"critic", "navigator"}
    assert attention_report(model, X).found[0].queries == 5


class Hidden:
    """Holds an array where JAX does not see it."""

    def __init__(self, array):
        self.array = array


class Hiding(nn.Module):
    """Returns one."""

    @nn.compact
    def __call__(self, x):
        return Hidden(nn.SelfAttention(num_heads=2)(x))


class Holder(nn.Module):
    """Uses the embedding of another module."""

    embedding: nn.Module

    @nn.compact
    def __call__(self, ids):
        return nn.SelfAttention(num_heads=2)(self.embedding(ids))


class Sharing(nn.Module):
    """Shares its embedding with a part that is converted."""

    def setup(self):
        self.embedding = nn.Embed(9, 8)
        self.part = aligned(Holder(self.embedding), AlignmentConfig())

    def __call__(self, ids):
        return self.part(ids) + self.embedding(ids)


def test_bad_models_are_named():
    with pytest.raises(TypeError, match=r"takes a flax.linen or flax.nnx module, got function"):
        aligned(lambda x: x, AlignmentConfig())
    converted = aligned(Model("nested"), AlignmentConfig())
    with pytest.raises(ValueError, match="already aligned"):
        aligned(converted, AlignmentConfig())
    with pytest.raises(ValueError, match="The model Dense has no attention"):
        aligned(nn.Dense(3), AlignmentConfig()).init(jax.random.key(0), X)
    for method in ("ct", "energy"):
        drop_in = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig(method))
        with pytest.raises(ValueError, match="already has an alignment of its own"):
            aligned(drop_in, AlignmentConfig()).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="must be a tuple of regular expressions, got 'abc'"):
        aligned(Model("nested"), AlignmentConfig(), allow_missing="abc")
    with pytest.raises(ValueError, match=r"allow_missing holds '\[', no regular expression"):
        aligned(Model("nested"), AlignmentConfig(), allow_missing=("[",))
    with pytest.raises(
        ValueError, match=r"\('none',\) matches no attention of the model.* Block_0/"
    ):
        aligned(Model("nested"), AlignmentConfig(layers=("none",))).init(jax.random.key(0), X)
    with pytest.raises(TypeError, match="returns a Hidden, whose arrays JAX cannot see"):
        aligned(Hiding(), AlignmentConfig()).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="Holder.embedding belongs to Sharing"):
        Sharing().init(jax.random.key(0), jnp.zeros((2, 5), int))
    with pytest.raises(AttributeError, match="no_such_method"):
        converted.apply({}, X, method="no_such_method")


def test_an_embedding_of_a_constant_is_no_step_of_a_loop():
    """As BERT's token types, where the caller gives none: a row of zeros."""

    class Typed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x += nn.Embed(2, 8)(jnp.zeros((1, 1), int))
            return nn.SelfAttention(num_heads=2)(x)

    model = aligned(Typed(), AlignmentConfig("energy"))
    variables = model.init(jax.random.key(1), X)
    sown = model.apply(variables, X, mutable=["alignment"])[1]
    inputs = X + variables["params"]["Embed_0"]["embedding"][0]
    attention = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("energy"))
    params = {"params": variables["params"]["SelfAttention_0"]}
    expected = attention.apply(params, inputs, mutable=["alignment"])[1]
    np.testing.assert_allclose(alignment_loss(sown), alignment_loss(expected), rtol=1e-5)
