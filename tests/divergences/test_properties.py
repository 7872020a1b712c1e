"""Whatever the clouds hold, as long as it is finite, values and gradients are finite."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_jax import AlignmentConfig, alignment_loss
from align_jax.alignment import Alignment
from align_jax.divergences import energy_distance, maximum_mean_discrepancy

# B, N, M, H, D and the dtype: few, because each is compiled once per method.
ONE_TOKEN, SEVERAL = (2, 1, 1, 2, 4), (2, 5, 7, 1, 8)
KINDS = [(ONE_TOKEN, "float32"), (SEVERAL, "float32"), (SEVERAL, "bfloat16")]
CONTENTS = ("normal", "equal tokens", "zeros", "one outlier", "same clouds", "large mean")
MASKS = ("all", "random", "one token", "none")

clouds = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "content": st.sampled_from(CONTENTS),
        "masks": st.tuples(st.sampled_from(MASKS), st.sampled_from(MASKS)),
        "exponent": st.integers(-30, 30),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def make(kind, content, masks, exponent, seed):
    """Queries, keys and their masks."""
    shape, dtype = kind
    rng = np.random.default_rng(seed)
    batch, queries, keys, heads, features = shape
    made = []
    for tokens, mask in zip((queries, keys), masks, strict=True):
        x = rng.normal(size=(batch, tokens, heads, features))
        if content == "equal tokens":
            x[:] = x[:1, :1]
        elif content == "zeros":
            x[:] = 0.0
        elif content == "one outlier":
            x[0, 0] *= 1e6
        elif content == "large mean":
            x = 1.0 + 1e-6 * x
        elif content == "same clouds" and made:
            x = np.resize(made[0][0], x.shape)
        valid = np.ones((batch, tokens), bool)
        if mask == "random":
            valid = rng.random((batch, tokens)) < 0.5
        elif mask == "one token":
            valid[:, 1:] = False
        elif mask == "none":
            valid[:] = False
        made.append((x, valid))
    scaled = [np.clip(x * 10.0**exponent, -3e38, 3e38) for x, _ in made]
    return [x.astype(jnp.dtype(dtype)) for x in scaled], [valid for _, valid in made]


@functools.cache
def compiled(method: str, paper: bool, shape: tuple[int, ...], dtype: str):
    """The parameters of the method's networks, and the loss with all its gradients."""
    batch, queries, keys, heads, features = shape
    module = Alignment((AlignmentConfig.paper if paper else AlignmentConfig)(method))
    arguments = [jnp.ones((batch, n, heads, features), dtype) for n in (queries, keys)]
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments).get("params", {})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), shapes)

    @jax.jit
    def measure(params, query, key, query_mask, key_mask):
        def loss(params, query, key):
            _, sown = module.apply(
                {"params": params},
                query,
                key,
                query_mask=query_mask,
                key_mask=key_mask,
                mutable=["alignment"],
            )
            return alignment_loss(sown), sown["alignment"]["divergence"]

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, query, key)

    return params, measure


@pytest.mark.fault(
    "Equal, zero, huge, tiny or masked tokens (60 random samples per method)",
    "Values and gradients are finite; empty samples move nothing",
)
@pytest.mark.parametrize(
    ("method", "paper"),
    [
        pytest.param("gan", False, marks=pytest.mark.thorough),
        ("ct", False),
        ("ot", False),
        pytest.param("gan", True, marks=pytest.mark.thorough),
        pytest.param("ct", True, marks=pytest.mark.thorough),
    ],
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=clouds)
def test_the_regulariser_stays_finite(method, paper, case) -> None:
    arrays, masks = make(**case)
    params, measure = compiled(method, paper, *case["kind"])
    (loss, (heads,)), gradients = measure(params, *arrays, *masks)
    assert np.isfinite(loss)
    assert np.isfinite(heads).all()
    if method != "gan":  # never a negative cost
        assert (np.asarray(heads) >= -1e-3 * (1.0 + np.abs(heads).max())).all()
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
    # A sample without queries or without keys has nothing to align, and moves nothing.
    empty = ~(np.asarray(masks[0]).any(1) & np.asarray(masks[1]).any(1))
    assert (np.asarray(heads)[empty] == 0.0).all()
    for gradient in gradients[1:]:
        assert (np.asarray(gradient, np.float32)[empty] == 0.0).all()


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_gradients(divergence, options, query, key, query_mask, key_mask):
    def total(query, key):
        values = divergence(query, key, query_mask=query_mask, key_mask=key_mask, **dict(options))
        return values.sum(), values

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(query, key)


@pytest.mark.parametrize(
    ("divergence", "options"),
    [
        (maximum_mean_discrepancy, (("bandwidth", 1.0),)),
        (maximum_mean_discrepancy, (("bandwidth", None),)),
        (energy_distance, ()),
    ],
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=clouds)
def test_what_needs_no_network_stays_finite_and_in_its_range(divergence, options, case) -> None:
    arrays, masks = make(**case)
    (_, values), gradients = with_gradients(divergence, options, *arrays, *masks)
    largest = 1.0 if divergence is energy_distance else 2.0
    assert (values >= -1e-4).all()
    assert (values <= largest + 1e-4).all()
    for leaf in gradients:
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
