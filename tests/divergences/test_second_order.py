"""Derivatives of gradients, and in forward mode: those of every rule that is written by hand.

A rule that is right once may take for a constant what moves, and nothing would say so.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import alignment, divergences, gradient_reversal, numerics
from align_jax.models import flat_dot_general, layer_norm
from align_jax.segments import segment_softmax
from tests.cases import thorough

STEP = 1e-2


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def game(x, w):
    return jnp.sum(
        jnp.tanh(gradient_reversal.reverse_gradient(w * gradient_reversal.reverse_gradient(x))) ** 2
    )


def weighed_game(x, w):
    x, handle = gradient_reversal.weighed_gradient(x)
    y = jnp.tanh(x @ w)
    return jnp.sum(gradient_reversal.weigh(y, handle, jnp.exp(y)) ** 2)


def in_scan(function, *arrays):
    """As layers do it: JAX forgets there, after the first derivative, the rules of functions."""
    return jax.lax.map(lambda xs: function(*xs), jax.tree.map(lambda x: x[None], arrays))[0]


def transport(query, key, **options):
    return divergences.optimal_transport(query, key, threshold=1e-6, **options).sum()


def conditional(*clouds, implementation):
    return divergences.conditional_transport(*clouds, implementation=implementation).sum()


CLOUDS = (1, 4, 2, 3), (1, 5, 2, 3)
# The function of the arrays, their shapes, whether it has a derivative in forward mode.
CASES = {
    "ot-cosine": (functools.partial(transport, epsilon=0.2), CLOUDS, True),
    "ot-squared": (
        functools.partial(in_scan, functools.partial(
            transport, epsilon=0.5, cost="squared_euclidean")), CLOUDS, True,
    ),
    "ct-dense": (functools.partial(conditional, implementation="dense"), CLOUDS * 2, True),
    "ct-blockwise": (functools.partial(conditional, implementation="blockwise"), CLOUDS * 2, False),
    "mmd": (lambda *x: divergences.maximum_mean_discrepancy(*x).sum(), CLOUDS, True),
    "unit-vectors": (
        lambda x, w: jnp.sum((numerics.unit_vectors(x) * w) ** 2), ((4, 3),) * 2, True,
    ),
    "segments": (
        lambda x, w: jnp.sum(segment_softmax(x, np.array([0, 0, 1, 1, 1, 3]), 4) * w),
        ((6, 2),) * 2, True,
    ),
    "layer-norm": (
        lambda x, w: jnp.sum(jnp.tanh(layer_norm._standardized(x, 1e-6) * w)), ((4, 3),) * 2, True,
    ),
    "product": (
        lambda x, w: jnp.sum(jnp.tanh(flat_dot_general._product(x, w, None, None))),
        ((4, 3), (3, 5)), True,
    ),
    "drawn-samples": (
        lambda x, w: jnp.sum(jnp.tanh(alignment._one_of_each(x, jnp.array([1, 0]), 2) * w)),
        ((4, 3), (2, 3)), True,
    ),
    "reversed": (game, ((3,), (3,)), False),
    "weighed": (weighed_game, ((4, 3), (3,)), False),
    "weighed-in-scan": (functools.partial(in_scan, weighed_game), ((4, 3), (3,)), False),
}  # fmt: skip


@pytest.mark.fault(
    "The derivative of a gradient, or one in forward mode, of every rule written by hand",
    "That of finite differences, or refused",
)
@pytest.mark.parametrize(
    "case",
    # "ot-squared" has the derivatives of the plan, "unit-vectors" those of the cosine.
    thorough(CASES, "ot-cosine", "ct-dense"),
)
def test_derivatives_of_the_gradient_are_those_of_its_differences(case):
    function, shapes, forward_mode = CASES[case]
    function = jax.jit(function)  # traced once
    numbers = tuple(range(len(shapes)))
    x, v, u = (tuple(arrays(*shapes, seed=seed)) for seed in range(3))
    u = tuple(a / np.linalg.norm(a) for a in u)

    def dot(xs, ys):
        return sum(jnp.sum(x * y) for x, y in zip(xs, ys, strict=True))

    @jax.jit
    def slope(*x):
        return dot(jax.grad(function, numbers)(*x), v)

    @jax.jit
    def derivatives(*x):
        return dot(jax.grad(slope, numbers)(*x), u), jax.jvp(slope, x, u)[1]

    def difference(function):
        high, low = (
            function(*(a + sign * STEP * b for a, b in zip(x, u, strict=True))) for sign in (1, -1)
        )
        return (high - low) / (2 * STEP)

    np.testing.assert_allclose(derivatives(*x), difference(slope), rtol=1e-2, atol=5e-3)
    if forward_mode:
        _, tangent = jax.jit(lambda *x: jax.jvp(function, x, u))(*x)
        np.testing.assert_allclose(tangent, difference(function), rtol=1e-2, atol=5e-3)
    else:
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(function, x, u)


def test_products_in_bfloat16_have_the_second_derivative_of_others():
    """Steps by which rounded numbers move tell no differences."""
    x, v = arrays((4, 3), (3, 5)), arrays((4, 3), (3, 5), seed=1)

    def second(product):
        def slope(*x):
            gradients = jax.grad(lambda *x: jnp.sum(jnp.tanh(product(*x))), (0, 1))(*x)
            return sum(jnp.sum(a * b) for a, b in zip(gradients, v, strict=True))

        return jax.jit(jax.grad(slope, (0, 1)))(*x)

    rounded = second(lambda *x: flat_dot_general._bfloat16_product(*x, jnp.float32))
    exact = second(jnp.matmul)
    for a, b in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())
