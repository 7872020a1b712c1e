"""The mistakes that come naturally to a user of the library: taken as meant, or told what to do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import (
    Alignment,
    AlignmentConfig,
    MultiHeadDotProductAttention,
    aligned,
    aligned_function,
    alignment_loss,
    alignment_table,
    attention_report,
    game_optimizer,
    merge_parameters,
)
from align_jax.models import BertConfig, GATConfig

X = jnp.ones((2, 3, 4))
KEY = jax.random.key(0)
HEADS = {"divergence": (jnp.ones((2, 2)),), "valid": (jnp.ones(2, bool),)}


def test_a_methods_name_stands_for_its_configuration():
    def attend(params, x):
        return jax.nn.softmax(x @ params @ x.mT) @ x

    assert aligned(nn.SelfAttention(2), "ct").config == AlignmentConfig("ct")
    assert aligned_function(attend, "ot").config == AlignmentConfig("ot")
    assert BertConfig(alignment="gan").alignment == AlignmentConfig("gan")
    assert GATConfig(num_classes=3, alignment="mmd").alignment == AlignmentConfig("mmd")
    shapes = jax.eval_shape(MultiHeadDotProductAttention(2, alignment="gan").init, KEY, X)
    assert list(shapes["params"]["alignment"]) == ["discriminator"]


@pytest.mark.parametrize(("value", "error", "text"), [
    ("CT", ValueError, "Did you mean 'ct'?"),
    ("ctt", ValueError, "Did you mean 'ct'?"),
    (3, TypeError, r"name of a method \(gan, ot, ct, mmd, energy, none\), got 3, of type int"),
    (AlignmentConfig, TypeError, "of type type"),
])  # fmt: skip
def test_what_is_no_configuration_is_told_what_is(value, error, text):
    with pytest.raises(error, match=text):
        aligned(nn.SelfAttention(2), value)


@pytest.mark.parametrize("read", [alignment_loss, alignment_table])
def test_the_whole_result_of_apply_is_told_which_part_is_meant(read):
    sown = {"alignment": {"layer": HEADS}}
    with pytest.raises(TypeError, match=r"got a tuple of 2.*outputs, sown = model\.apply"):
        read((X, sown))
    read(sown)


def _aligned_variables():
    query = jnp.arange(4.0)
    plain = {"params": {"query": {"kernel": query}}}
    networks = {"critic": {"kernel": jnp.ones(2)}}
    own = {"kernel": jnp.zeros(4), "alignment": networks}
    return {"params": {"query": own}}, plain


def test_own_parameters_go_over_the_initialised_ones():
    initialised, plain = _aligned_variables()
    merged = merge_parameters(initialised, plain)
    np.testing.assert_array_equal(merged["params"]["query"]["kernel"], np.arange(4.0))
    np.testing.assert_array_equal(
        merged["params"]["query"]["alignment"]["critic"]["kernel"], np.ones(2)
    )
    # Trained networks are one's own as well; and nothing given is changed.
    trained = {"params": {"query": {**plain["params"]["query"], "alignment": {"critic": {
        "kernel": jnp.full(2, 5.0)}}}}}  # fmt: skip
    again = merge_parameters(initialised, trained)["params"]["query"]["alignment"]
    np.testing.assert_array_equal(again["critic"]["kernel"], np.full(2, 5.0))
    np.testing.assert_array_equal(initialised["params"]["query"]["kernel"], np.zeros(4))


@pytest.mark.parametrize(("own", "text"), [
    ({"query": {"kernel": jnp.zeros(4)}}, "lack params/query/kernel"),
    ({"params": {"query": {"kernel": jnp.zeros(3)}}}, r"query/kernel has shape \(3,\).*\(4,\)"),
    ({"params": {"query": {"kernel": jnp.zeros(4), "bias": jnp.zeros(4)}}},
     "hold, and the model does not, params/query/bias"),
])  # fmt: skip
def test_parameters_of_another_model_are_refused(own, text):
    with pytest.raises(ValueError, match=text):
        merge_parameters(_aligned_variables()[0], own)


def test_plain_parameters_are_told_how_to_get_networks():
    query = jnp.ones((2, 3, 2, 4))
    with pytest.raises(ValueError, match=r"no networks for 'gan'.*merge_parameters"):
        Alignment(AlignmentConfig("gan")).apply({}, query, query, mutable=["alignment"])
    energy = Alignment(AlignmentConfig("energy"))  # has none
    jax.eval_shape(lambda: energy.apply({}, query, query, mutable=["alignment"]))


def _attend(params, x):
    return jax.nn.softmax(x @ params @ x.mT) @ x


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda: alignment_loss({"alignment": HEADS}, np.array([0.5, 0.5])), TypeError, "got float"),
    (lambda: AlignmentConfig("ct", rho="0.5"), ValueError, r"rho must lie in \[0, 1\], got '0.5'"),
    (lambda: AlignmentConfig("ot", epsilon=[0.1]), ValueError, r"epsilon must be .*got \[0.1\]"),
    (lambda: AlignmentConfig("mmd", bandwidth=1e-25), ValueError, "1e-18 or more.* got 1e-25"),
    (lambda: AlignmentConfig("ct", layers=[b"a"]), ValueError, "layers holds b'a'"),
    (lambda: aligned_function(_attend, "ct", parameters="params"), TypeError, "got 'params'"),
    (lambda: aligned_function(_attend, "ct", parameters=True), TypeError, "got True"),
    (lambda: aligned_function(nn.Dense, "ct"), TypeError, "takes a function, got type"),
    (lambda: attention_report(nn.SelfAttention, X), TypeError, "got the class SelfAttention"),
    (lambda: game_optimizer(1e-3), TypeError, "takes an optimiser.*got 0.001"),
    (lambda: aligned(nn.SelfAttention(2), "mmd").init(KEY, X[:0]), ValueError, r"\(0, 3, 4\)"),
])  # fmt: skip
def test_a_value_of_another_kind_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
