"""Attention kernels that cannot be looked into: traced, not run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import AlignmentConfig, aligned_function, alignment_table, attention_report

B, N, H, D = 2, 256, 4, 128
HALF = jax.ShapeDtypeStruct((B, H, N, D), jnp.bfloat16)  # heads before tokens
TOKENS_FIRST = jax.ShapeDtypeStruct((B, N, H, D), jnp.bfloat16)
MASK = jax.ShapeDtypeStruct((B, 1, 1, N), jnp.bool_)


def flash(_, q, k, mask):
    flash_attention = pytest.importorskip(
        "jax.experimental.pallas.ops.tpu.flash_attention"
    ).flash_attention
    bias = jnp.broadcast_to(jnp.where(mask, 0.0, -1e9), (B, H, N, N))
    return flash_attention(q, k, k, ab=bias, causal=True)


def splash(_, q, k, mask, *, make="make_splash_mha_single_device"):
    package = "jax.experimental.pallas.ops.tpu.splash_attention"
    kernels = pytest.importorskip(f"{package}.splash_attention_kernel")
    masks = pytest.importorskip(f"{package}.splash_attention_mask")
    kernel = getattr(kernels, make)(masks.MultiHeadMask([masks.CausalMask((N, N))] * H))
    return jax.vmap(kernel)(q, k, k)


def pallas_gpu(_, q, k, mask):
    return pytest.importorskip("jax.experimental.pallas.ops.gpu.attention").mha(q, k, k, None)


def cudnn(_, q, k, mask, **lengths):
    return jax.nn.dot_product_attention(q, k, k, mask=mask, implementation="cudnn", **lengths)


@pytest.fixture
def with_cudnn(monkeypatch):
    """As on a machine that has it."""
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    for name in vars(module):
        if name.startswith("check_"):
            monkeypatch.setattr(module, name, lambda *_, **__: None)


@pytest.mark.parametrize(
    ("kernel", "shape", "masked"),
    [(flash, HALF, True), (splash, HALF, False), (pallas_gpu, TOKENS_FIRST, False),
     (cudnn, TOKENS_FIRST, True)],
)  # fmt: skip
def test_known_kernels_are_sites(kernel, shape, masked, with_cudnn):
    report = attention_report(kernel, {}, shape, shape, MASK)
    assert not report.skipped + report.opaque
    (row,) = report.found
    assert (row.samples, row.queries, row.keys, row.heads, row.features) == (B, N, N, H, D)
    assert row.masked == masked
    converted = aligned_function(kernel, AlignmentConfig("ct"))
    networks = jax.eval_shape(converted.init, jax.random.key(0), {}, shape, shape, MASK)

    def table(networks, *data):
        return alignment_table(converted.apply(networks, {}, *data)[1])

    (heads,) = jax.eval_shape(table, networks, shape, shape, MASK).values()
    assert heads.shape == (H,)


def test_keys_without_heads():
    one = jax.ShapeDtypeStruct((B, N, D), jnp.bfloat16)
    kernel = functools.partial(splash, make="make_splash_mqa_single_device")
    (row,) = attention_report(kernel, {}, HALF, one, MASK).found
    assert (row.samples, row.queries, row.keys, row.heads) == (B, N, N, H)


def test_lengths_of_cudnn_are_refused(with_cudnn):
    lengths = np.full(B, N, np.int32)
    kernel = functools.partial(cudnn, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    report = attention_report(kernel, {}, TOKENS_FIRST, TOKENS_FIRST, MASK)
    assert not report.found
    assert "sequence lengths" in report.skipped[0].problem


def test_a_function_of_a_kernels_name_is_looked_into():
    @jax.jit
    def flash_attention(q, k, v):
        return jax.nn.softmax(q @ k.mT) @ v

    x = jax.ShapeDtypeStruct((B, 5, 3, 4), jnp.float32)
    (row,) = attention_report(lambda _, q: flash_attention(q, q, q), {}, x).found
    assert (row.queries, row.keys) == (3, 3)


def test_another_kernel_is_named_if_it_may_attend():
    pallas = pytest.importorskip("jax.experimental.pallas")

    def run(body, x):
        return pallas.pallas_call(body, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    def attends(x_ref, o_ref):
        x = x_ref[0]
        weights = jnp.exp(jnp.dot(x, x.T))
        o_ref[0] = jnp.dot(weights / weights.sum(1, keepdims=True), x)

    def scales(x_ref, o_ref):
        o_ref[...] = jnp.exp(x_ref[...])

    x = jax.ShapeDtypeStruct((1, 8, 128), jnp.float32)
    (row,) = attention_report(lambda _, x: run(attends, x), {}, x).opaque
    assert "cannot be looked into" in row.problem
    assert not attention_report(lambda _, x: run(scales, x), {}, x).opaque
