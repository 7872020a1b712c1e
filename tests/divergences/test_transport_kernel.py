"""The fused kernels against the dense oracle, interpreted; and that GPU and TPU take them."""

import contextlib
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, PartitionSpec

from align_jax import AlignmentConfig, divergences
from align_jax.alignment import Alignment
from align_jax.divergences import transport_kernel

# Two and three of the interpreter's blocks, the last ones incomplete.
B, N, M, H = 2, 19, 37, 2


def arrays(queries=N, keys=M, scale=1.0, features=4):
    rng = np.random.default_rng(0)
    shapes = [(B, n, H, f) for f in (features, 3) for n in (queries, keys)]
    clouds = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return [*clouds[:2], *(np.float32(scale) * x for x in clouds[2:])]


@functools.cache
def value_and_gradient(implementation, **options):
    """Of a sum with a weight for each sample and head; one program for all tests of a shape."""

    def loss(clouds, masks=(None, None)):
        value = divergences.conditional_transport(
            *clouds,
            query_mask=masks[0],
            key_mask=masks[1],
            implementation=implementation,
            **options,
        )
        return jnp.sum(value * np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)), value

    return jax.jit(jax.grad(loss, has_aux=True))


def assert_close(actual, expected, tolerance=1e-5):
    """A leaf may be 0 because terms as large as the other leaves cancel: their rounding remains."""
    largest = max(np.abs(y).max() for y in jax.tree.leaves(expected))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, atol=tolerance * max(np.abs(y).max(), 0.1 * largest))


def mask_shapes():
    queries, keys = np.arange(N), np.arange(M)
    ragged = queries % 3 != np.array([[0], [1]]), keys % 4 != np.array([[2], [0]])
    cut = queries < np.array([[N], [3]]), keys < np.array([[20], [1]])
    no_queries = queries < np.array([[N], [0]]), cut[1]
    no_keys = cut[0], keys < np.array([[0], [M]])
    nothing = np.zeros((B, N), bool), np.zeros((B, M), bool)
    full = np.ones((B, N), bool), np.ones((B, M), bool)
    return full, ragged, cut, no_queries, no_keys, nothing


@pytest.mark.parametrize(
    ("cost", "rho"), [("cosine", 0.0), ("squared_euclidean", 0.5), ("cosine", 1.0)]
)
def test_equals_dense(cost, rho):
    fused, dense = (value_and_gradient(x, cost=cost, rho=rho) for x in ("fused", "dense"))
    for masks in mask_shapes():
        assert_close(fused(arrays(), masks), dense(arrays(), masks))


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_equals_dense_in_the_blocks_of_a_device(device, monkeypatch):
    """More features than the hardware's least, one and several blocks, of GPU's and TPU's sizes."""
    target = transport_kernel.TARGETS[device]._replace(options={"interpret": True})
    monkeypatch.setitem(transport_kernel.TARGETS, "cpu", target)
    clouds = arrays(queries=9, keys=300, features=20)
    fused = value_and_gradient.__wrapped__("fused")  # of its own, for it depends on TARGETS
    assert_close(fused(clouds), value_and_gradient("dense")(clouds))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (16, 33)])
def test_equals_dense_at_the_edges_of_blocks(queries, keys):
    clouds = arrays(queries, keys)
    assert_close(value_and_gradient("fused")(clouds), value_and_gradient("dense")(clouds))


def test_large_and_huge_scores():
    """Exact where float32 still tells scores apart; finite, and the same number, far beyond."""
    full = mask_shapes()[0]
    fused, dense = value_and_gradient("fused"), value_and_gradient("dense")
    assert_close(fused(arrays(scale=10.0), full), dense(arrays(scale=10.0), full), 1e-4)
    for scale in (1e4, 1e15):
        gradient, value = fused(arrays(scale=scale), full)
        assert_close(value, dense(arrays(scale=scale), full)[1])
        assert all(np.isfinite(x).all() for x in gradient)


def test_scores_far_below_zero_outweigh_padding():
    """Zeros fill up the last block, and no token of the other cloud scores as high as 0."""
    clouds = arrays()
    clouds[2], clouds[3] = 20.0 + 0 * clouds[2], clouds[3] / 10 - 20.0
    masks = mask_shapes()[1]
    fused, dense = value_and_gradient("fused"), value_and_gradient("dense")
    assert_close(fused(clouds, masks), dense(clouds, masks), 1e-3)


def test_under_vmap_pmap_and_remat():
    clouds = arrays()
    transport = functools.partial(divergences.conditional_transport, implementation="fused")

    def gradient(*clouds):
        loss = jax.checkpoint(lambda *x: transport(*x).sum())
        return jax.grad(loss, argnums=(0, 1, 2, 3))(*clouds)

    expected = jax.jit(
        jax.grad(lambda x: divergences.conditional_transport(*x, implementation="dense").sum())
    )(clouds)
    single = [x[:, None] for x in clouds]
    for mapped in (
        jax.jit(jax.vmap(gradient)),
        jax.pmap(gradient),
    ):
        assert_close([np.asarray(x)[:, 0] for x in mapped(*single)], expected)


def test_a_mesh_cuts_it_in_shard_map_only():
    mesh = jax.make_mesh((B,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:B])
    transport = functools.partial(divergences.conditional_transport, implementation="fused")
    with jax.sharding.use_mesh(mesh) if not hasattr(jax, "set_mesh") else jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=r"'fused' .*Use 'blockwise', or .*shard_map"):
            jax.jit(transport)(*arrays())
        cut = PartitionSpec("data")
        mapped = jax.shard_map(transport, in_specs=cut, out_specs=cut, check_vma=False)
        value = jax.jit(mapped)(*arrays())
    _, expected = value_and_gradient("dense")(arrays())
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("platform", "call", "device"),
    [
        ("tpu", "tpu_custom_call", None),
        ("cuda", "xla.gpu.triton", "NVIDIA H100 80GB HBM3"),
        ("rocm", "xla.gpu.triton", "gfx942"),
    ],
)
def test_lowers_for_accelerators(platform, call, device):
    """Pallas translates all kernels, two forward and two backward, for hardware that is not here.

    That XLA compiles what comes out takes libtpu, or XLA's plugin for CUDA.
    """
    with described(device):
        lowered = value_and_gradient("fused").trace(arrays()).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count(call) == 4


def described(device):
    """What jax 0.12 must know of a GPU that is not here; those before it ask for nothing."""
    fields = inspect.signature(jax.sharding.AbstractDevice).parameters
    if device is None or "platform" not in fields:
        return contextlib.nullcontext()
    gpu = jax.sharding.AbstractDevice(device, None, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=gpu)
    return jax.sharding.use_abstract_mesh(mesh)


def test_exports_for_a_tpu():
    exported = export.export(value_and_gradient("fused"), platforms=["tpu"])(arrays())
    assert exported.mlir_module().count("tpu_custom_call") == 4


def test_auto_chooses_by_platform_and_length(monkeypatch):
    def program(queries, keys):
        value = functools.partial(divergences.conditional_transport, implementation="auto")
        return str(jax.make_jaxpr(value)(*arrays(queries, keys)))

    assert "scan" not in program(32, 16)  # dense: no loop over heads
    assert "scan" in program(33, 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" in program(32, 16)


def test_the_alignment_module_passes_the_choice_on():
    query, key = arrays()[:2]
    aligned = Alignment(AlignmentConfig("ct", implementation="fused"))
    variables = jax.eval_shape(aligned.init, jax.random.key(0), query, key)
    program = jax.make_jaxpr(lambda v: aligned.apply(v, query, key, mutable=["alignment"]))
    assert "pallas_call" in str(program(variables))


@pytest.mark.parametrize("implementation", ["fused", "auto"])
def test_maximum_mean_discrepancy_has_no_kernel(implementation):
    query, key = arrays()[2:]
    with pytest.raises(
        ValueError, match=f"must be one of dense, blockwise, got '{implementation}'"
    ):
        divergences.maximum_mean_discrepancy(query, key, implementation=implementation)
