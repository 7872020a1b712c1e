"""Where a program runs decides its form: mesh or not, and the platform that it is lowered for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export
from jax.sharding import AxisType, Mesh

from align_jax import divergences, networks, placement
from align_jax.models.flat_dot_general import flat_dot_general

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@pytest.mark.parametrize(
    ("devices", "kind", "expected"),
    [(4, AxisType.Auto, True), (1, AxisType.Auto, False), (4, AxisType.Manual, False)],
)
def test_spread_by_compiler(devices, kind, expected) -> None:
    if jax.local_device_count() < devices:
        pytest.skip(f"needs {devices} (faked) devices")
    mesh = Mesh(np.asarray(jax.local_devices()[:devices]).reshape(-1, 1), ("data", "model"),
                axis_types=(kind, kind))  # fmt: skip
    assert not placement.spread_by_compiler()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert placement.spread_by_compiler() is expected


@pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")
@pytest.mark.parametrize(("shape", "whole", "expected"), [
    ((4, 3, 2, 5), False, (2, 3, 1, 5)),
    ((3, 3, 2, 5), False, (3, 3, 1, 5)),  # three samples are whole on both
    ((4, 3, 5, 2), False, (2, 3, 5, 2)),
    ((4, 3, 2, 5), True, (2, 3, 2, 5)),
])  # fmt: skip
def test_each_device_has_its_samples_and_heads(shape, whole, expected) -> None:
    seen = []

    def mean(clouds, mask):
        (cloud,) = clouds
        seen.append((cloud.shape, mask.shape))
        return {"mean": jnp.where(mask[..., None, None], cloud, 0.0).mean(axis=(1, 3))}

    cloud = jax.random.normal(jax.random.key(0), shape)
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, shape[:2])
    weights = jax.random.normal(jax.random.key(2), (shape[0], shape[2]))

    @jax.jit
    def gradient(cloud, mask):
        def loss(cloud):
            found = placement.on_each_device(mean, (cloud,), mask, whole_heads=whole)
            return (weights * found["mean"]).sum()

        return jax.value_and_grad(loss)(cloud)

    alone = gradient(cloud, mask)
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    with jax.set_mesh(mesh), placement.cut_along(samples="data", heads="model"):
        spread = gradient(cloud, mask)
    assert seen == [(shape, shape[:2]), (expected, expected[:2])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), spread, alone)


@pytest.mark.parametrize("words", ["data", "rows"])
def test_without_a_mesh_that_has_the_axis_words_are_looked_up_as_ever(words) -> None:
    table, ids = jnp.arange(32.0).reshape(4, 8), jnp.array([[0, 3], [2, 2]])
    axes = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axes, devices=jax.devices()[:2])

    def look_up(ids):
        with placement.cut_along(samples="data", words=words):
            return placement.look_up(lambda x: table[x], ids, 8)

    np.testing.assert_array_equal(jax.jit(look_up)(ids), table[ids])
    mapped = jax.shard_map(
        look_up, mesh=mesh, in_specs=jax.sharding.PartitionSpec("data"),
        out_specs=jax.sharding.PartitionSpec("data"),
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(mapped)(ids), table[ids])


# Each is a function, its arguments, and what the lowered program has on a CPU and nowhere else.


def _blocks():
    """Two heads of a sample in a block, of the four that an accelerator takes together."""
    clouds = [jnp.ones((2, 256, 2, features)) for features in (4, 4, 3, 3)]
    return _gradient(divergences.conditional_transport), clouds, "tensor<2x256x256xf32>"


def _blocks_of_mmd():
    clouds = [jnp.ones((2, 256, 2, 4))] * 2
    kernel = functools.partial(divergences.maximum_mean_discrepancy, implementation="blockwise")
    return _gradient(kernel), clouds, "tensor<2x256x256xf32>"


def _groups_of_sinkhorn():
    clouds = [jnp.ones((2, 256, 2, 4))] * 2
    return divergences.optimal_transport, clouds, "tensor<2x256x256xf32>"


class _Inside(nn.Module):
    """A network inside a parent."""

    each_head: bool

    @nn.compact
    def __call__(self, x):
        apply = networks.for_each_head if self.each_head else networks.in_chunks
        return apply(networks.Discriminator(), x)


def _chunks(each_head):
    x = jnp.ones((2, networks.CHUNK_SIZE // 8, 2, 4))  # two chunks, one for each of two heads
    model = _Inside(each_head)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return _gradient(model.apply), [params, x], "stablehlo.while"


def _dense(dtype):
    def layer(kernel, x):
        return flat_dot_general(x, kernel, (((2,), (0,)), ((), ())))

    arrays = [jnp.ones((4, 3), dtype), jnp.ones((2, 5, 4), dtype)]
    of = layer if dtype == jnp.bfloat16 else _gradient(layer)  # JAX exports no prescribed layout
    return of, arrays, "stablehlo.optimization_barrier"


def _gradient(function):
    return jax.grad(lambda first, *others: jnp.sum(function(first, *others)))


CHOICES = {
    "blocks of transport": _blocks,
    "blocks of pairs": _blocks_of_mmd,
    "groups of heads": _groups_of_sinkhorn,
    "chunks of vectors": functools.partial(_chunks, False),
    "chunks of each head": functools.partial(_chunks, True),
    "a kernel's gradient": functools.partial(_dense, jnp.float32),
    "products of bfloat16": functools.partial(_dense, jnp.bfloat16),
}


@pytest.mark.parametrize(("tokens", "dense"), [(32, "cpu cuda tpu"), (33, "tpu"), (129, "")])
def test_auto_takes_all_pairs_of_few_tokens(tokens, dense) -> None:
    """Of dense pairs the heads stay an axis of their own."""
    transport = jax.jit(divergences.conditional_transport)
    clouds = [jnp.ones((3, tokens, 2, features)) for features in (4, 4, 3, 3)]
    mark = f"tensor<3x2x{tokens}x{tokens}xf32>"
    lowered = {
        platform: export.export(transport, platforms=[platform])(*clouds).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert " ".join(name for name, program in lowered.items() if mark in program) == dense


def test_a_choice_leaves_nothing_of_the_other_form_in_a_gradient() -> None:
    clouds = [jnp.ones((3, 33, 2, features)) for features in (4, 4, 3, 3)]
    gradient = jax.jit(_gradient(divergences.conditional_transport))
    assert "f32[3,2,33,33]" not in gradient.lower(*clouds).compile().as_text()
    dense = functools.partial(divergences.conditional_transport, implementation="dense")
    assert "f32[3,2,33,33]" in jax.jit(_gradient(dense)).lower(*clouds).compile().as_text()


@pytest.mark.fault(
    "A program is exported for a TPU or a GPU on a machine that knows the CPU alone",
    "It has the form that suits what it is exported for",
)
@pytest.mark.parametrize("choice", CHOICES)
def test_the_platform_that_is_lowered_for_decides(choice) -> None:
    function, arguments, mark = CHOICES[choice]()
    platforms = PLATFORMS if choice == "chunks of vectors" else ("cpu", "tpu")
    function = jax.jit(function)  # traced once

    def has_mark(*platforms: str) -> bool:
        program = export.export(function, platforms=platforms)(*arguments)
        return mark in program.mlir_module()

    assert [platform for platform in platforms if has_mark(platform)] == ["cpu"]
    assert has_mark(*PLATFORMS)
