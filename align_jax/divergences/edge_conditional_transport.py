"""Conditional transport along the edges of a graph: AA-CT where not every query meets every key.

Graph attention scores an edge, not every pair of nodes. Transport between the whole clouds asks
what attention never asks: where a query would go among all keys of the graph. Along the edges, each
query chooses among the keys of its senders alone, and each key among the queries of its receivers;
time and memory grow with the edges. On a complete graph the two agree.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from align_jax import numerics
from align_jax.segments import check_edges, segment_softmax


def edge_conditional_transport(
    query_features: Float[Array, "N H F"],
    key_features: Float[Array, "N H F"],
    query_navigation: Float[Array, "N H G"],
    key_navigation: Float[Array, "N H G"],
    senders: Int[Array, "Z"],
    receivers: Int[Array, "Z"],
    *,
    rho: float = 0.5,
) -> Float[Array, "H"]:
    """The cost of carrying each node's query to the keys of its senders, and each key back.

    As :func:`align_jax.divergences.conditional_transport`, with both softmaxes restricted to the
    edges: over a receiver's senders for its query, over a sender's receivers for its key.

    Args:
        query_features, key_features: the critic's features of every node's query and key.
        query_navigation, key_navigation: the navigator's outputs for them.
        senders: the node whose key an edge offers, [Z].
        receivers: the node whose query an edge serves, [Z], ascending: the sums over a node's
            edges rely on it. Where edges are traced, neither this is checked nor that their nodes
            exist: the value is then of no meaning.
        rho: weight of the query-to-key direction, in [0, 1].

    Returns:
        One value per head, in [0, 2]: of each direction the mean over the nodes with an edge in it.

    Raises:
        ValueError: a wrong rank, an empty axis, shapes that do not fit together, rho outside
            [0, 1], an edge of a node that does not exist, or receivers out of order.
        TypeError: vectors that are not floating point, edges that are no integers.

    Example:
        >>> same = jnp.ones((2, 1, 3))
        >>> edges = jnp.array([0, 1]), jnp.array([0, 1])
        >>> edge_conditional_transport(same, -same, same, same, *edges).tolist()
        [2.0]
    """
    pairs = {"features": (query_features, key_features)}
    pairs["navigation"] = query_navigation, key_navigation
    for kind, (query, key) in pairs.items():
        names = (f"query_{kind}", f"key_{kind}")
        numerics.check_clouds(query, key, None, None, names=names, axes="N H F")
        if query.shape != key.shape or query.shape[:2] != query_features.shape[:2]:
            raise ValueError(
                f"{names[0]} and {names[1]} have shapes {query.shape} and {key.shape}; expected "
                f"the same shape, with {query_features.shape[:2]} (nodes, heads) in front."
            )
    numerics.check_fraction("rho", rho)
    check_edges(senders, receivers, len(query_features))

    num_nodes = len(query_features)
    clouds = [numerics.prepare(x, None)[0] for pair in pairs.values() for x in pair]
    clouds[:2] = map(numerics.unit_vectors, clouds[:2])
    # A compiler that fuses what comes before into the gathers does it once per edge, not per node.
    query, key, query_navigation, key_navigation = jax.lax.optimization_barrier(tuple(clouds))
    scores = jnp.sum(query_navigation[receivers] * key_navigation[senders], axis=-1)
    costs = 1.0 - jnp.sum(query[receivers] * key[senders], axis=-1)

    forward = _mean_cost(scores, costs, receivers, num_nodes, indices_are_sorted=True)
    backward = _mean_cost(scores, costs, senders, num_nodes, indices_are_sorted=False)
    return rho * forward + (1.0 - rho) * backward


def _mean_cost(
    scores: Float[Array, "Z H"],
    costs: Float[Array, "Z H"],
    nodes: Int[Array, "Z"],
    num_nodes: int,
    *,
    indices_are_sorted: bool,
) -> Float[Array, "H"]:
    """Each node's expected cost over its edges, averaged over the nodes that have any."""
    plan = segment_softmax(scores, nodes, num_nodes, indices_are_sorted=indices_are_sorted)
    has_edge = jnp.zeros(num_nodes, bool).at[nodes].set(True)
    # Each node's plan sums to 1, so the sum over all edges is the sum of the nodes' expectations.
    return jnp.sum(plan * costs, axis=0) / jnp.sum(has_edge).astype(jnp.float32)
