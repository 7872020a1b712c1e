"""The product of flattened matrices against NumPy's, and in flax's dense layers."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from align_jax.models.flat_dot_general import flat_dot_general
from tests.models.parameters import random_parameters

# Shapes of inputs and kernel, the axes that are contracted, the axes of the batch.
PRODUCTS = {
    "a dense layer's": ((2, 5, 4), (4, 3), ((2,), (0,)), ((), ())),
    "to heads": ((2, 5, 4), (4, 3, 2), ((2,), (0,)), ((), ())),
    "from heads": ((2, 5, 3, 2), (3, 2, 4), ((2, 3), (0, 1)), ((), ())),
    "no axes but the contracted": ((4,), (4, 3), ((0,), (0,)), ((), ())),
    "no tokens": ((2, 0, 4), (4, 3), ((2,), (0,)), ((), ())),
    "another order": ((3, 2, 5), (2, 3, 4), ((1, 0), (0, 1)), ((), ())),
    "a kernel's last axis": ((2, 5, 4), (3, 4), ((2,), (1,)), ((), ())),
    "with a batch": ((2, 5, 4), (2, 4, 3), ((2,), (1,)), ((0,), (0,))),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_values_and_gradients(product) -> None:
    lhs_shape, rhs_shape, axes, batch = PRODUCTS[product]
    random = np.random.default_rng(0)
    lhs, rhs = random.normal(size=lhs_shape), random.normal(size=rhs_shape)

    def oracle(lhs, rhs):
        if batch[0]:
            return np.einsum("bik,bkj->bij", lhs, rhs)
        return np.tensordot(lhs, rhs, axes)

    expected = oracle(lhs, rhs)
    weight = random.normal(size=expected.shape)

    @jax.jit
    def results(lhs, rhs, weight):
        value, pullback = jax.vjp(lambda x, y: flat_dot_general(x, y, (axes, batch)), lhs, rhs)
        return value, pullback(weight)

    value, gradients = results(*(x.astype(np.float32) for x in (lhs, rhs, weight)))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    # The product is linear in each operand, so that its differences are exact.
    for which, gradient in enumerate(gradients):
        operands = [lhs, rhs]
        direction = random.normal(size=operands[which].shape)
        operands[which] = direction
        np.testing.assert_allclose(
            (np.asarray(gradient, np.float64) * direction).sum(),
            (weight * oracle(*operands)).sum(),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dense(3, dot_general=flat_dot_general), (2, 5, 4)),
        (nn.DenseGeneral((3, 2), dot_general=flat_dot_general), (2, 5, 4)),
        (nn.DenseGeneral(4, axis=(-2, -1), dot_general=flat_dot_general), (2, 5, 3, 2)),
    ],
)
def test_in_a_layer_every_product_is_of_two_matrices(layer, shape) -> None:
    """What it is for: the gradients too contract over one axis alone."""
    inputs = np.ones(shape, np.float32)
    params = {"params": random_parameters(layer, inputs)}

    def loss(params, inputs):
        return (layer.apply(params, inputs) ** 2).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, inputs).as_text()
    products = re.findall(r"dot_general .*?contracting_dims = \[(.*?)\] x \[(.*?)\]", text)
    assert len(products) == 3  # the layer's, and the gradients of inputs and kernel
    for axes in products:
        assert all(len(of_one.split(",")) == 1 for of_one in axes)


def test_derivatives_of_two_orders_in_both_modes() -> None:
    """Against finite differences."""
    random = np.random.default_rng(0)
    lhs, rhs = (random.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (4, 2)))
    check_grads(
        jax.jit(lambda lhs, rhs: jnp.sin(flat_dot_general(lhs, rhs, (((2,), (0,)), ((), ()))))),
        (lhs, rhs), order=2, modes=("fwd", "rev"), atol=2e-2, rtol=2e-2, eps=1e-2,
    )  # fmt: skip


def test_many_at_once() -> None:
    """Under vmap, its gradient too."""
    random = np.random.default_rng(0)
    lhs = random.normal(size=(3, 2, 5, 4)).astype(np.float32)
    rhs = random.normal(size=(3, 4, 6)).astype(np.float32)

    def gradient(dot_general):
        def loss(lhs, rhs):
            return (dot_general(lhs, rhs, (((2,), (0,)), ((), ()))) ** 3).sum()

        return jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(lhs, rhs)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        gradient(flat_dot_general), gradient(jax.lax.dot_general),
    )  # fmt: skip


def test_precision_and_dtype_are_passed_on() -> None:
    lhs, rhs = jnp.ones((2, 5, 4), jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16)
    numbers = (((2,), (0,)), ((), ()))
    wide = flat_dot_general(
        lhs, rhs, numbers, precision="highest", preferred_element_type=jnp.float32
    )
    assert wide.dtype == jnp.float32
    text = jax.jit(
        lambda lhs, rhs: flat_dot_general(lhs, rhs, numbers, precision="highest")
    ).lower(lhs, rhs).as_text()  # fmt: skip
    assert "HIGHEST" in text


BFLOAT16 = {
    "operands of bfloat16": (jnp.bfloat16, None),
    "asked for": (jnp.float32, jax.lax.DotAlgorithmPreset.BF16_BF16_F32),
    "asked for by name": (jnp.float32, "BF16_BF16_F32"),
}


@pytest.mark.parametrize("operands", BFLOAT16)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_bfloat16_are_summed_in_float32(operands, transposed) -> None:
    """Value and gradients are the exact products of rounded operands, rounded once more at most."""
    dtype, precision = BFLOAT16[operands]
    random = np.random.default_rng(0)
    rows, kernel, weight = (
        jnp.asarray(random.normal(size=shape), jnp.bfloat16)
        for shape in ((6, 500), (500, 4), (6, 4))
    )

    def product(rows, kernel):
        value = flat_dot_general(rows, kernel, (((1,), (0,)), ((), ())), precision)
        return value.T if transposed else value

    @jax.jit
    def results(rows, kernel, weight):
        value, pullback = jax.vjp(product, rows, kernel)
        return value, *pullback(weight.T if transposed else weight)

    found = results(*(x.astype(dtype) for x in (rows, kernel, weight)))
    rows, kernel, weight = (np.asarray(x, np.float64) for x in (rows, kernel, weight))
    value = rows @ kernel
    expected = (value.T if transposed else value, weight @ kernel.T, rows.T @ weight)
    for one, exact in zip(found, expected, strict=True):
        assert one.dtype == dtype
        tolerance = 2.0**-8 if dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(np.asarray(one, np.float64), exact, rtol=tolerance, atol=1e-4)


def test_jaxs_setting_asks_for_products_of_bfloat16() -> None:
    x = jnp.full((1, 1), 1.0 + 2.0**-10)

    def product():
        return float(flat_dot_general(x, jnp.ones((1, 1)), (((1,), (0,)), ((), ())))[0, 0])

    assert product() == 1.0 + 2.0**-10
    with jax.default_matmul_precision("BF16_BF16_F32"):
        assert product() == 1.0


def test_many_products_of_bfloat16_at_once() -> None:
    random = np.random.default_rng(0)
    lhs, rhs = (jnp.asarray(random.normal(size=s), jnp.bfloat16) for s in ((3, 5, 4), (3, 4, 6)))

    def loss(dot_general, lhs, rhs):
        return (dot_general(lhs, rhs, (((1,), (0,)), ((), ()))).astype(jnp.float32) ** 2).sum()

    ours, jaxs = (
        jax.jit(jax.vmap(jax.grad(functools.partial(loss, dot_general), argnums=(0, 1))))(lhs, rhs)
        for dot_general in (flat_dot_general, jax.lax.dot_general)
    )
    for one, other in zip(ours, jaxs, strict=True):
        np.testing.assert_allclose(
            one.astype(jnp.float32), other.astype(jnp.float32), rtol=0.05, atol=0.1
        )


@pytest.mark.parametrize("how", ["pmap", "mesh"])
def test_products_of_bfloat16_on_several_devices(how, monkeypatch) -> None:
    """A mesh's compiler cuts the arrays, and keeps to the ordinary product."""
    devices = 4
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(devices, 6, 8)), jnp.bfloat16)
    kernel = jnp.asarray(random.normal(size=(8, 3)), jnp.bfloat16)

    def gradient(rows):
        def loss(kernel):
            product = flat_dot_general(rows, kernel, (((rows.ndim - 1,), (0,)), ((), ())))
            return product.astype(jnp.float32).sum()

        return jax.grad(loss)(kernel)

    if how == "pmap":
        found = jax.pmap(gradient)(rows).astype(jnp.float32).sum(axis=0)
    else:
        path = "align_jax.models.flat_dot_general._bfloat16_product"
        monkeypatch.setattr(path, lambda *_: pytest.fail("the product that no mesh cuts"))
        mesh = jax.make_mesh((devices,), ("data",))
        with jax.set_mesh(mesh):
            rows = jax.device_put(rows, jax.NamedSharding(mesh, jax.P("data")))
            found = jax.jit(gradient)(rows).astype(jnp.float32)
    expected = np.asarray(rows, np.float32).sum(axis=(0, 1))
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 3, axis=1), rtol=0.02, atol=0.05)
