"""Models of other libraries, unmodified, tiny and random: every attention of theirs is found.

Those that are not installed are skipped; `.ci/public-models.txt` has them all.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from align_jax import (
    AlignmentConfig,
    aligned,
    aligned_function,
    alignment_loss,
    alignment_table,
    strip_alignment,
)

pytestmark = pytest.mark.slow
os.environ.setdefault("KERAS_BACKEND", "jax")
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 7, 16)), jnp.float32)
IDS = jnp.asarray(RNG.integers(3, 50, (2, 7)))
VALID = jnp.arange(7) < jnp.array([[7], [5]])
PLACES = jnp.broadcast_to(jnp.arange(7), (2, 7))
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "vocab_size": 99, "max_position_embeddings": 32}  # fmt: skip


@pytest.fixture
def transformers(monkeypatch):
    """The last major version with Flax models; it knows `jnp.clip` by its old names."""
    found = pytest.importorskip("transformers")
    if not hasattr(found, "FlaxBertModel"):
        pytest.skip("transformers 5 has no Flax models")
    clip = jnp.clip

    def clipped(array, low=None, high=None, a_min=None, a_max=None):
        return clip(array, a_min if low is None else low, a_max if high is None else high)

    monkeypatch.setattr(jnp, "clip", clipped)
    return found


def check_module(model, *arguments, names, **keywords):
    """Converts it, trains a step's worth, evaluates it, and takes the networks out again."""
    converted = aligned(model, AlignmentConfig("ct"))
    variables = converted.init(jax.random.key(0), *arguments, **keywords)
    original = jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments, **keywords))
    plain = {**variables, "params": strip_alignment(variables["params"])}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(plain["params"])]
    assert paths == [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(original["params"])
    ]

    @jax.jit
    def run(variables, plain):
        def loss(params):
            trained = {**variables, "params": params}
            _, sown = converted.apply(trained, *arguments, **keywords, mutable=["alignment"])
            return alignment_loss(sown), alignment_table(sown)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (value, table), gradient = run(variables, plain)
    assert sorted(table) == names
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))
    evaluate = jax.jit(lambda v: jax.tree.leaves(converted.apply(v, *arguments, **keywords)))
    expected = jax.jit(lambda v: jax.tree.leaves(model.apply(v, *arguments, **keywords)))
    for a, b in zip(evaluate(plain), expected(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def check_function(function, parameters, *data, names):
    """The same for a function of parameters and data."""
    converted = aligned_function(function, AlignmentConfig("ct"))
    networks = converted.init(jax.random.key(0), parameters, *data)

    @jax.jit
    def run(parameters, networks):
        def loss(parameters, networks):
            outputs, sown = converted.apply(networks, parameters, *data)
            return alignment_loss(sown), (outputs, alignment_table(sown))

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, networks)

    (value, (outputs, table)), gradient = run(parameters, networks)
    assert sorted(table) == names
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))
    np.testing.assert_allclose(outputs, function(parameters, *data), rtol=1e-4, atol=1e-5)


def test_bert(transformers):
    model = transformers.FlaxBertForSequenceClassification(
        transformers.BertConfig(**TINY), _do_init=False
    )
    arguments = IDS, VALID.astype(jnp.int32), jnp.zeros_like(IDS), PLACES, None
    names = [f"bert/encoder/layer/{i}/attention/self" for i in range(2)]
    check_module(model.module, *arguments, names=names)


def test_t5_with_remat(transformers):
    config = transformers.T5Config(
        vocab_size=99, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    model = transformers.FlaxT5ForConditionalGeneration(
        config, _do_init=False, gradient_checkpointing=True
    )
    arguments = IDS, VALID.astype(jnp.int32), IDS[:, :5], jnp.ones((2, 5), jnp.int32)
    names = [
        *(f"decoder/block/{i}/layer/{n}" for i in range(2)
          for n in ("0/SelfAttention", "1/EncDecAttention")),
        *(f"encoder/block/{i}/layer/0/SelfAttention" for i in range(2)),
    ]  # fmt: skip
    check_module(model.module, *arguments, names=names)


def test_llama(transformers):
    config = transformers.LlamaConfig(num_key_value_heads=1, **TINY)
    model = transformers.FlaxLlamaForCausalLM(config, _do_init=False)
    names = [f"model/layers/{i}/self_attn" for i in range(2)]
    check_module(model.module, IDS, VALID.astype(jnp.int32), PLACES, names=names)


def test_gpt2(transformers):
    config = transformers.GPT2Config(
        vocab_size=99, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.FlaxGPT2LMHeadModel(config, _do_init=False)
    names = [f"transformer/h/{i}/attn" for i in range(2)]
    check_module(model.module, IDS, VALID.astype(jnp.int32), PLACES, names=names)


def test_gemma():
    pytest.importorskip("gemma")
    from gemma import gm
    from gemma.gm.nn import _config, _modules

    kinds = _modules.AttentionType
    config = _config.TransformerConfig(
        num_embed=99, embed_dim=16, hidden_dim=32, num_heads=4, head_dim=8, num_kv_heads=2,
        final_logit_softcap=None, use_post_attn_norm=True, use_post_ffw_norm=True,
        attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL), attn_logits_soft_cap=50.0,
        sliding_window_size=3, use_qk_norm=True,
    )  # fmt: skip
    model = gm.nn.Transformer(config=config, dtype=jnp.float32, tokens="t")
    check_module(model, IDS, names=["layer_0/attn", "layer_1/attn"])


def test_kauldron():
    modules = pytest.importorskip("kauldron.modules")
    from kauldron.modules import transformers as blocks

    model = blocks.PreNormBlock(
        attention_norm=nn.LayerNorm(),
        mlp_norm=nn.LayerNorm(),
        attention=modules.ImprovedMultiHeadDotProductAttention(num_heads=2, normalize_qk=True),
        mlp=blocks.TransformerMLP(hidden_size=32),
    )
    check_module(model, X, names=["attention"])


def test_haiku():
    haiku = pytest.importorskip("haiku")

    def forward(x, mask):
        for _ in range(2):
            x = x + haiku.MultiHeadAttention(2, 8, w_init_scale=1.0)(x, x, x, mask=mask)
        return x

    transformed = haiku.without_apply_rng(haiku.transform(forward))
    data = X, VALID[:, None, None, :]
    parameters = transformed.init(jax.random.key(0), *data)
    names = ["multi_head_attention", "multi_head_attention_1"]
    check_function(transformed.apply, parameters, *data, names=names)


def test_equinox():
    equinox = pytest.importorskip("equinox")

    class Model(equinox.Module):
        layers: list

        def __init__(self, key):
            keys = jax.random.split(key, 2)
            self.layers = [equinox.nn.MultiheadAttention(2, 16, key=key) for key in keys]

        def __call__(self, x, mask):
            for layer in self.layers:
                x = x + layer(x, x, x, mask=mask)
            return x

    arrays, rest = equinox.partition(Model(jax.random.key(0)), equinox.is_inexact_array)

    def apply(arrays, x, mask):
        return jax.vmap(equinox.combine(arrays, rest))(x, mask)

    data = X, VALID[:, None, :] & VALID[:, :, None]
    check_function(apply, arrays, *data, names=["layers/0", "layers/1"])


def test_keras():
    keras = pytest.importorskip("keras")
    inputs = hidden = keras.Input((7, 16))
    for _ in range(2):
        hidden = hidden + keras.layers.MultiHeadAttention(2, 8)(
            hidden, hidden, use_causal_mask=True
        )
    model = keras.Model(inputs, hidden)
    fixed = [variable.value for variable in model.non_trainable_variables]
    # Keras' list of parameters has no names; its variables do.
    parameters = {variable.path: variable.value for variable in model.trainable_variables}

    def apply(parameters, x):
        ordered = [parameters[variable.path] for variable in model.trainable_variables]
        return model.stateless_call(ordered, fixed, x)[0]

    found = sorted({variable.path.rsplit("/", 2)[0] for variable in model.trainable_variables})
    check_function(apply, parameters, X, names=found)
