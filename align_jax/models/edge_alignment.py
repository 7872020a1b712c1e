"""The alignment module for graphs whose transport runs along the edges."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from align_jax.alignment import Alignment
from align_jax.divergences.edge_conditional_transport import edge_conditional_transport


class EdgeAlignment(Alignment):
    """Sows conditional transport along edges, in time and memory linear in the edges.

    Networks, collections and parameters are those of :class:`align_jax.Alignment` with method "ct";
    only the plan differs (see :func:`edge_conditional_transport`). The graph is one sample: queries
    and keys are [1, N, H, D], over all of its nodes.

    Attributes:
        senders: the node whose key an edge offers, int [Z].
        receivers: the node whose query an edge serves, int [Z], ascending.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from align_jax import AlignmentConfig
        >>> config, edges = AlignmentConfig("ct"), (jnp.array([1, 0]), jnp.array([0, 1]))
        >>> module = EdgeAlignment(config, senders=edges[0], receivers=edges[1])
        >>> variables = module.init(jax.random.key(0), *[jnp.ones((1, 2, 1, 4))] * 2)
    """

    senders: Array = dataclasses.field(kw_only=True)
    receivers: Array = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        """Refuses what edges have no part in."""
        if (self.config.method, self.config.over) != ("ct", "tokens"):
            raise ValueError(
                f"Edges carry conditional transport over tokens alone: AlignmentConfig must have "
                f"method 'ct' and over 'tokens', got {self.config.method!r} and "
                f"{self.config.over!r}. Use Alignment for others."
            )
        super().__post_init__()

    def _sampled(
        self, query: Array, key: Array, query_mask: Array | None, key_mask: Array | None
    ) -> tuple[Array, Array, Array | None, Array | None]:
        return query, key, query_mask, key_mask  # the edges name nodes

    def _divergence(
        self,
        query: tuple[Array, ...],
        key: tuple[Array, ...],
        query_mask: Array | None,
        key_mask: Array | None,
        whole_heads: bool = False,
    ) -> tuple[Array, dict[str, Array]]:
        del query_mask, key_mask, whole_heads  # a node that takes no part has no edges
        (query_features,), (query_navigation,) = query
        (key_features,), (key_navigation,) = key
        value = edge_conditional_transport(
            query_features,
            key_features,
            query_navigation,
            key_navigation,
            self.senders,
            self.receivers,
            rho=self.config.rho,
            cost=self.config.cost,
        )
        return value[None], {}
