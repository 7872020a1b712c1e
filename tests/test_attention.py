"""The drop-in for flax's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from align_jax import (
    AlignmentConfig,
    MultiHeadDotProductAttention,
    alignment_loss,
    strip_alignment,
    token_masks,
)
from align_jax.attention import is_self_attention
from tests.cases import thorough

B, N, E, H = 3, 6, 16, 4
PADDING = np.arange(N)[None] < np.array([[6], [4], [1]])


def inputs(seed=0, tokens=N):
    return jax.random.normal(jax.random.key(seed), (B, tokens, E))


@pytest.mark.parametrize("method", thorough(("gan", "ot", "ct", "mmd", "none"), "gan", "ot", "mmd"))
@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.thorough), {"normalize_qk": True, "dropout_rate": 0.3}],
)
def test_equals_flax_bit_for_bit(method, options):
    original = nn.MultiHeadDotProductAttention(num_heads=H, **options)
    aligned = MultiHeadDotProductAttention(
        num_heads=H, alignment=AlignmentConfig(method), **options
    )
    x, memory = inputs(), inputs(1, 9)
    mask = nn.make_attention_mask(PADDING, jnp.ones((B, 9), bool))
    rngs = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    before, after = (
        jax.jit(functools.partial(module.init, deterministic=False))(rngs, x, memory, mask=mask)
        for module in (original, aligned)
    )
    plain = strip_alignment(after["params"])
    assert jax.tree.structure(plain) == jax.tree.structure(before["params"])
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(before["params"]), strict=True):
        np.testing.assert_array_equal(a, b)
    rngs = {"dropout": jax.random.key(3)}
    for deterministic in (True, False):

        def output(module, variables, deterministic=deterministic, **more):
            call = {"mask": mask, "deterministic": deterministic, "rngs": rngs, **more}
            return jax.jit(lambda given: module.apply(given, x, memory, **call))(variables)

        expected = output(original, before)
        np.testing.assert_array_equal(output(aligned, after), expected)
        # The original's parameters suffice, and sowing changes no output.
        np.testing.assert_array_equal(output(aligned, before), expected)
        sown = output(aligned, after, mutable=["alignment", "intermediates"])
        np.testing.assert_array_equal(sown[0], expected)


def test_without_alignment_it_is_flax_s_attention():
    attention = MultiHeadDotProductAttention(num_heads=H)
    variables = attention.init(jax.random.key(0), inputs())
    output, sown = attention.apply(variables, inputs(), mutable=["alignment"])
    assert not sown
    expected = nn.MultiHeadDotProductAttention(num_heads=H).apply(variables, inputs())
    np.testing.assert_array_equal(output, expected)


def test_aligns_what_the_scores_are_made_of():
    """Queries and keys after normalisation, as the attention weights see them."""
    seen = []

    def attention_fn(query, key, value, mask=None):
        seen.append((query, key))
        return nn.dot_product_attention(query, key, value, mask=mask)

    attention = MultiHeadDotProductAttention(
        num_heads=H, alignment=AlignmentConfig("none"), normalize_qk=True,
        attention_fn=attention_fn,
    )  # fmt: skip
    variables = attention.init(jax.random.key(0), inputs())
    _, state = attention.apply(variables, inputs(), mutable=["alignment_clouds"])
    clouds = state["alignment_clouds"]["alignment"]
    np.testing.assert_array_equal(clouds["query"][0], seen[-1][0])
    np.testing.assert_array_equal(clouds["key"][0], seen[-1][1])


@functools.partial(jax.jit, static_argnums=0)
def loss(attention, variables, *args, **kwargs):
    return alignment_loss(attention.apply(variables, *args, **kwargs, mutable=["alignment"])[1])


@pytest.mark.parametrize("method", thorough(("gan", "ct", "ot", "mmd"), "gan", "ot"))
def test_padding_takes_no_part(method):
    attention = MultiHeadDotProductAttention(num_heads=H, alignment=AlignmentConfig(method))
    x = inputs()
    variables = jax.jit(attention.init)(jax.random.key(0), x)
    per_sample = [loss(attention, variables, x[b : b + 1, : PADDING[b].sum()]) for b in range(B)]
    # A plan between one to six tokens is nearly an assignment: float32 keeps fewer digits of it.
    close = {"rtol": 1e-4 if method == "ot" else 1e-5}
    poisoned = np.where(PADDING[..., None], x, np.float32(1e3))
    both_sides = nn.make_attention_mask(PADDING, PADDING)
    keys_only = PADDING[:, None, None, :]
    causal = nn.combine_masks(keys_only, nn.make_causal_mask(PADDING))
    others = (keys_only, np.broadcast_to(keys_only, (B, H, N, N)), causal)
    # Which tokens a mask leaves does not depend on the method.
    for mask in (both_sides, *(others if method == "mmd" else ())):
        value = loss(attention, variables, poisoned, mask=mask)
        np.testing.assert_allclose(value, np.mean(per_sample), **close)
    if method == "mmd":
        given = loss(attention, variables, poisoned, query_mask=PADDING, key_mask=PADDING)
        np.testing.assert_allclose(given, np.mean(per_sample), **close)


def test_several_batch_axes_are_flattened():
    attention = MultiHeadDotProductAttention(num_heads=H, alignment=AlignmentConfig("mmd"))
    x = jax.random.normal(jax.random.key(0), (2, 3, N, E))
    variables = jax.jit(attention.init)(jax.random.key(0), x)
    apply = jax.jit(functools.partial(attention.apply, mutable=["alignment"]))
    nested = apply(variables, x, mask=np.ones((2, 3, 1, N, N), bool))[1]
    flat = apply(variables, x.reshape(6, N, E))[1]
    np.testing.assert_allclose(
        nested["alignment"]["alignment"]["divergence"][0],
        flat["alignment"]["alignment"]["divergence"][0],
        rtol=1e-6,
    )


def test_self_attention_takes_queries_and_keys_from_one_array():
    x, other = inputs(), inputs()
    assert is_self_attention(x)
    assert is_self_attention(x, x)
    assert is_self_attention(x, inputs_kv=x)
    assert not is_self_attention(x, other)
    assert not is_self_attention(x, inputs_kv=other)


CAUSAL = np.tril(np.ones((4, 4), bool))
STRICT = np.tril(np.ones((4, 4), bool), -1)


@pytest.mark.parametrize(
    ("mask", "self_attention", "queries", "keys"),
    [
        pytest.param(np.outer([1, 1, 1, 0], [1, 1, 1, 0]), True, "1110", "1110", id="padding"),
        pytest.param(np.array([[1, 1, 0, 0]]), True, "1100", "1100", id="key-padding-self"),
        pytest.param(np.array([[1, 1, 0, 0]]), False, "1111", "1100", id="key-padding-cross"),
        pytest.param(np.outer([1, 0, 1, 1], [1, 1, 0, 0]), False, "1011", "1100", id="cross"),
        pytest.param(CAUSAL, True, "1111", "1111", id="causal"),
        pytest.param(CAUSAL & [1, 1, 1, 0], True, "1110", "1110", id="causal-right-padding"),
        pytest.param(CAUSAL & [0, 1, 1, 1], True, "0111", "0111", id="causal-left-padding"),
        pytest.param(STRICT, True, "0111", "1110", id="arbitrary"),
        pytest.param(np.zeros((4, 4)), True, "0000", "0000", id="nothing"),
    ],
)
def test_token_masks(mask, self_attention, queries, keys):
    mask = jnp.asarray(mask)[None, None]
    derived = token_masks(mask, 4, 4, self_attention=self_attention)
    for actual, expected in zip(derived, (queries, keys), strict=True):
        assert actual.shape == (1, 4)
        assert actual[0].tolist() == [c == "1" for c in expected]


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_masks_of_fewer_axes_are_broadcast(axes):
    mask = CAUSAL[0].astype(bool) if axes == 1 else CAUSAL.astype(bool)
    expected = token_masks(jnp.asarray(mask)[(None,) * (4 - mask.ndim)], 4, 4, self_attention=True)
    derived = token_masks(
        jnp.asarray(mask)[(None,) * (axes - mask.ndim)], 4, 4, self_attention=True
    )
    for one, other in zip(derived, expected, strict=True):
        np.testing.assert_array_equal(jnp.broadcast_to(one, other.shape), other)


def test_a_plain_causal_mask_is_taken_as_flax_takes_it():
    x = inputs()
    mask = jnp.tril(jnp.ones((N, N), bool))
    ours = MultiHeadDotProductAttention(H, alignment=AlignmentConfig("mmd"))
    variables = jax.jit(ours.init)(jax.random.key(0), x, mask=mask)
    outputs, sown = ours.apply(variables, x, mask=mask, mutable=["alignment"])
    expected = nn.MultiHeadDotProductAttention(H).apply(variables, x, mask=mask)
    np.testing.assert_array_equal(outputs, expected)
    assert sown["alignment"]


def test_a_mask_that_differs_between_heads_counts_any_of_them():
    mask = np.zeros((1, 2, 4, 4), bool)
    mask[0, 0, :2, :2] = True
    mask[0, 1, 2, 0] = True
    queries, keys = token_masks(jnp.asarray(mask), 4, 4, self_attention=True)
    assert queries[0].tolist() == [True, True, True, False]
    assert keys[0].tolist() == [True, True, False, False]
