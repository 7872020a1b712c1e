"""Transport along edges: against the dense form on a complete graph, and a loop on a sparse one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from align_jax.divergences import conditional_transport
from align_jax.divergences.edge_conditional_transport import edge_conditional_transport

NODES, HEADS = 5, 2

jitted = functools.partial(jax.jit, static_argnames="rho")
dense_transport = jitted(conditional_transport)
edge_transport = jitted(edge_conditional_transport)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(NODES, HEADS, 3)) for _ in range(2)]
    navigation = [rng.normal(size=(NODES, HEADS, 4)) for _ in range(2)]
    return [x.astype(np.float32) for x in (*features, *navigation)]


def complete_graph():
    receivers, senders = np.divmod(np.arange(NODES**2), NODES)
    return senders, receivers


def sparse_graph():
    # Node 3 sends to none, node 4 receives from none.
    edges = np.array([(0, 0), (0, 1), (0, 4), (1, 1), (2, 0), (2, 2), (3, 4)])
    return edges[:, 1], edges[:, 0]


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_equals_dense_transport_on_a_complete_graph(arrays, rho):
    (dense,) = np.asarray(dense_transport(*(x[None] for x in arrays), rho=rho))
    edges = edge_transport(*arrays, *complete_graph(), rho=rho)
    np.testing.assert_allclose(edges, dense, rtol=1e-5)


def test_equals_a_loop_over_neighbourhoods(arrays):
    query, key, query_navigation, key_navigation = (np.asarray(x, np.float64) for x in arrays)
    senders, receivers = sparse_graph()

    def mean_cost(head, from_nodes):
        values = []
        for node in sorted(set(from_nodes.tolist())):
            edges = np.flatnonzero(from_nodes == node)
            scores = [
                query_navigation[receivers[e], head] @ key_navigation[senders[e], head]
                for e in edges
            ]
            costs = [
                1 - query[receivers[e], head] @ key[senders[e], head]
                / np.linalg.norm(query[receivers[e], head]) / np.linalg.norm(key[senders[e], head])
                for e in edges
            ]  # fmt: skip
            plan = np.exp(scores) / np.sum(np.exp(scores))
            values.append(plan @ costs)
        return np.mean(values)

    expected = [
        0.3 * mean_cost(head, receivers) + 0.7 * mean_cost(head, senders) for head in range(HEADS)
    ]
    value = edge_transport(*arrays, senders, receivers, rho=0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_does_not_depend_on_the_numbering_of_the_nodes(arrays):
    senders, receivers = sparse_graph()
    new = np.array([3, 0, 4, 1, 2])
    order = np.argsort(new[receivers], kind="stable")
    moved = [x[np.argsort(new)] for x in arrays]
    value = edge_transport(*moved, new[senders][order], new[receivers][order])
    expected = edge_transport(*arrays, senders, receivers)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@jax.jit
def total(*arrays):
    return edge_conditional_transport(*arrays, *sparse_graph()).sum()


def test_gradients(arrays):
    check_grads(total, arrays, order=1, modes=["rev"], rtol=2e-2, atol=2e-3)


def test_zero_features_give_finite_values_and_gradients(arrays):
    arrays = [np.zeros_like(x) for x in arrays]
    result, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))(*arrays)
    np.testing.assert_allclose(result, HEADS)  # the cosine against a zero vector counts as 0
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_inputs_give_float32(arrays):
    value = jax.eval_shape(
        edge_transport, *(x.astype(jnp.bfloat16) for x in arrays), *sparse_graph()
    )
    assert value.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 1.5}, "rho must lie in"),
        ({"senders": jnp.zeros(3, int)}, "two lists of the same length"),
        ({"senders": jnp.zeros(0, int), "receivers": jnp.zeros(0, int)}, "at least one edge"),
        ({"receivers": sparse_graph()[1][::-1]}, "receivers are not sorted"),
        ({"key_features": jnp.ones((4, HEADS, 3))}, "the same shape"),
        ({"key_navigation": jnp.ones((NODES, HEADS, 2))}, "differ in axis 2"),
        ({"query_features": jnp.ones((NODES, 3))}, "must have shape"),
    ],
)
def test_what_does_not_fit_is_an_error(arrays, change, message):
    names = ("query_features", "key_features", "query_navigation", "key_navigation")
    senders, receivers = sparse_graph()
    arguments = dict(zip(names, arrays, strict=True)) | {"senders": senders, "receivers": receivers}
    with pytest.raises(ValueError, match=message):
        edge_conditional_transport(**(arguments | change))
