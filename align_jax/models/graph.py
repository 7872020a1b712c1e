"""What graph models share: sparse node features, and the checks that a graph must pass.

Shapes in letters: N nodes, Z edges (self-loops included), F features, P stored feature values. An
edge carries a message from its sender to its receiver. Edges are sorted by receiver, so that a
neighbourhood is one contiguous run.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from align_jax.numerics import concrete
from align_jax.segments import check_segments


class SparseFeatures(flax.struct.PyTreeNode):
    """Node features `[N, F]` of which only the non-zero values are stored, row by row.

    Bags of words are some 1% non-zero. Dropping a zero leaves a zero, so dropout over the stored
    values alone has the same distribution as dropout over the whole matrix, for a hundredth of the
    random numbers.

    Attributes:
        values: the stored values, [P].
        rows: the node each belongs to, [P], ascending.
        columns: the feature each belongs to, [P].
        shape: (N, F).

    Example:
        >>> SparseFeatures.from_dense(np.array([[0.0, 2.0], [1.0, 0.0]])).values.tolist()
        [2.0, 1.0]
    """

    values: Float[Array, "P"]
    rows: Int[Array, "P"]
    columns: Int[Array, "P"]
    shape: tuple[int, int] = flax.struct.field(pytree_node=False)

    @classmethod
    def from_dense(cls, features: Any) -> SparseFeatures:
        """Collects the non-zero values of a host array [N, F]."""
        features = np.asarray(features, np.float32)
        rows, columns = np.nonzero(features)
        return cls(
            values=jnp.asarray(features[rows, columns]),
            rows=jnp.asarray(rows, jnp.int32),
            columns=jnp.asarray(columns, jnp.int32),
            shape=features.shape,
        )

    def check_places(self) -> None:
        """Refuses places out of range or order, which would be read as others; not traced ones."""
        places = {"rows": self.rows, "columns": self.columns}
        for (name, traced), size in zip(places.items(), self.shape, strict=True):
            if traced.shape != self.values.shape:
                raise ValueError(
                    f"features have {name} of shape {traced.shape} for values of shape "
                    f"{self.values.shape}; expected one entry per value."
                )
            indices = concrete(traced)
            if indices is None:
                continue
            outside = indices[(indices < 0) | (indices >= size)]
            if outside.size:
                raise ValueError(
                    f"features have {name} that hold {int(outside[0])}; expected 0 to {size - 1}."
                )
            if name == "rows" and (np.diff(indices) < 0).any():
                raise ValueError("features have rows out of order; sort the values by their rows.")

    def matmul(self, kernel: Float[Array, "F K"]) -> Float[Array, "N K"]:
        """The product with a dense matrix, as a sum over each node's stored values."""
        products = self.values[:, None] * kernel[self.columns]
        return jax.ops.segment_sum(
            products, self.rows, num_segments=self.shape[0], indices_are_sorted=True
        )


def validate_graph(
    features: Any,
    senders: Any,
    receivers: Any,
    *,
    num_features: int | None = None,
    masks: dict[str, Any] | None = None,
) -> None:
    """Checks a graph on the host: under jit, a node that does not exist silently reads another row.

    Isolated nodes are fine: with a self-loop such a node attends to itself, and without one it
    receives the bias alone.

    Args:
        features: node features, an array [N, F] or `SparseFeatures`.
        senders: each edge's sender, integers [Z].
        receivers: each edge's receiver, integers [Z], ascending.
        num_features: the width that the model expects; None takes any.
        masks: bool arrays [N] by name, such as {"train": ..., "validation": ..., "test": ...};
            none may be empty and no two may overlap.

    Raises:
        ValueError: features of a wrong rank or width, or with NaN or infinity; no edges; senders
            and receivers of different lengths; a node that does not exist; receivers out of order;
            an empty mask or two that overlap.
        TypeError: indices that are not integers, or masks that are not bool.

    Example:
        >>> validate_graph(np.ones((2, 3)), senders=[0, 1], receivers=[0, 1], num_features=3)
    """
    _validate_features(features, num_features)
    num_nodes = features.shape[0]
    _validate_edges(np.asarray(senders), np.asarray(receivers), num_nodes)
    _validate_masks({name: np.asarray(mask) for name, mask in (masks or {}).items()}, num_nodes)


def _validate_features(features: Any, num_features: int | None) -> None:
    if len(features.shape) != 2 or 0 in features.shape:
        raise ValueError(
            f"features have shape {features.shape}; expected [N, F] with at least one node and one "
            f"feature."
        )
    if num_features not in (None, features.shape[1]):
        raise ValueError(
            f"features have {features.shape[1]} columns; expected {num_features}. Use the features "
            f"the model was built for, or build the model for these."
        )
    sparse = isinstance(features, SparseFeatures)
    if sparse:
        features.check_places()
    bad = np.argwhere(~np.isfinite(np.asarray(features.values if sparse else features)))
    if bad.size:
        first = bad[0]
        node, column = (features.rows[first[0]], features.columns[first[0]]) if sparse else first
        raise ValueError(
            f"features hold {len(bad)} values that are NaN or infinite, the first at node "
            f"{int(node)}, column {int(column)}. Replace or remove them."
        )


def _validate_edges(senders: np.ndarray, receivers: np.ndarray, num_nodes: int) -> None:
    if senders.ndim != 1 or senders.shape != receivers.shape:
        raise ValueError(
            f"senders and receivers have shapes {senders.shape} and {receivers.shape}; expected "
            f"two lists of the same length, one entry per edge."
        )
    if not senders.size:
        raise ValueError(
            "the graph has no edges, so no node has anything to attend to. Add self-loops (one "
            "edge from each node to itself) if that is meant."
        )
    for name, nodes in (("senders", senders), ("receivers", receivers)):
        if not np.issubdtype(nodes.dtype, np.integer):
            raise TypeError(f"{name} are {nodes.dtype}; expected integers.")
        outside = np.flatnonzero((nodes < 0) | (nodes >= num_nodes))
        if outside.size:
            edge = outside[0]
            raise ValueError(
                f"edge {edge} joins node {senders[edge]} to node {receivers[edge]}, but the graph "
                f"has nodes 0 to {num_nodes - 1}: {name} hold {outside.size} nodes that do not "
                f"exist. Remove those edges or add the nodes' features."
            )
    check_segments("receivers", receivers, num_nodes, ascending=True)


def _validate_masks(masks: dict[str, np.ndarray], num_nodes: int) -> None:
    seen: dict[str, Bool[np.ndarray, "N"]] = {}
    for name, mask in masks.items():
        if mask.dtype != np.bool_:
            raise TypeError(f"mask {name!r} is {mask.dtype}; expected bool.")
        if mask.shape != (num_nodes,):
            raise ValueError(f"mask {name!r} has shape {mask.shape}; expected ({num_nodes},).")
        if not mask.any():
            raise ValueError(f"mask {name!r} is empty: it selects none of the {num_nodes} nodes.")
        for other, taken in seen.items():
            both = np.flatnonzero(mask & taken)
            if both.size:
                raise ValueError(
                    f"masks {other!r} and {name!r} overlap in {both.size} nodes, the first of them "
                    f"{both[0]}. A node belongs to one split."
                )
        seen[name] = mask
