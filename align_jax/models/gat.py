"""Graph attention networks over an edge list, with alignment between the two sides of the score.

Sources: "Graph Attention Networks" (Velickovic et al., ICLR 2018, arXiv 1710.10903); the second
score from "How Attentive are Graph Attention Networks?" (Brody et al., ICLR 2022, arXiv
2105.14491); alignment from "Alignment Attention by Matching Key and Query Distributions" (Zhang et
al., NeurIPS 2021, arXiv 2110.12567), section 4.

Graph attention has no queries and keys of its own. A head scores the edge from sender j to receiver
i by LeakyReLU(a_src . W h_i + a_dst . W h_j). We read the two terms as the two sides that meet in
attention: q_i = a_src * W h_i and k_j = a_dst * W h_j, element by element, so that a score is the
sum of the entries of q_i and k_j. These are what is aligned. The paper does not spell its choice
out; this reading is ours. With the second score, LeakyReLU acts on q_i + k_j itself, and the two
sides are the two projections W_q h_i and W_k h_j.

There is no dense adjacency: time and memory grow with the number of edges. Self-loops are edges
like any other; whoever prepares the graph adds them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from align_jax.alignment import Alignment
from align_jax.config import PLAIN, AlignmentConfig
from align_jax.divergences.edge_conditional_transport import edge_conditional_transport
from align_jax.models.graph import SparseFeatures
from align_jax.models.settings import check_counts, check_probabilities, name_alignment
from align_jax.numerics import check_choice
from align_jax.segments import check_edges, segment_softmax

SCORES = ("gat", "gatv2")
ALIGNMENT_OVER = ("auto", "nodes", "edges")


@dataclasses.dataclass(frozen=True)
class GATConfig:
    """Sizes and options of :class:`GAT`; the defaults are the paper's for Cora and Citeseer.

    Attributes:
        num_classes: number of logits per node.
        hidden_features: features per head in all layers but the last (D).
        num_heads: heads in all layers but the last (H); their outputs are concatenated.
        num_output_heads: heads of the last layer; their outputs are averaged.
        num_layers: number of layers (L).
        input_dropout: probability of dropping an entry of a layer's input.
        attention_dropout: probability of dropping an attention weight.
        message_dropout: probability of dropping an entry of the projected features that the weights
            gather; the score sees them whole. The released code of Graph Attention Networks does
            this, with the probability of the inputs.
        negative_slope: slope of the LeakyReLU in the score, for negative arguments.
        score: "gat", or "gatv2", whose ranking of the senders depends on the receiver.
        alignment: what to align in each layer; None aligns nothing.
        alignment_over: "nodes" compares all queries with all keys, in time quadratic
            in the nodes except for "gan" (fewer with `AlignmentConfig.tokens`), memory linear
            except for "ot"; "edges" lets transport run along the edges alone (method "ct" only), in
            time linear in the edges, all of which count; "auto" takes the edges where it can.

    Raises:
        ValueError: a size is out of range, a probability outside [0, 1), a choice unknown, or a
            method other than "ct" over edges.

    Example:
        >>> GATConfig(num_classes=7).num_heads
        8
    """

    num_classes: int
    hidden_features: int = 8
    num_heads: int = 8
    num_output_heads: int = 1
    num_layers: int = 2
    input_dropout: float = 0.6
    attention_dropout: float = 0.6
    message_dropout: float = 0.6
    negative_slope: float = 0.2
    score: str = "gat"
    alignment: AlignmentConfig | None = None
    alignment_over: str = "auto"

    def __post_init__(self) -> None:
        name_alignment(self)
        counts = ("num_classes", "hidden_features", "num_heads", "num_output_heads", "num_layers")
        check_counts(self, dict.fromkeys(counts, 1))
        check_probabilities(self, ("input_dropout", "attention_dropout", "message_dropout"))
        for name, choices in (("score", SCORES), ("alignment_over", ALIGNMENT_OVER)):
            check_choice(f"GATConfig.{name}", getattr(self, name), choices)
        aligned = self.aligned
        if self.alignment_over == "edges" and aligned.method != PLAIN and not self.along_edges:
            raise ValueError(
                f"GATConfig.alignment_over='edges' works with method 'ct' over 'tokens', got "
                f"{aligned.method!r} over {aligned.over!r}; use these, or alignment_over='nodes'."
            )

    @property
    def aligned(self) -> AlignmentConfig:
        """The alignment, of method "none" without one."""
        return self.alignment or AlignmentConfig(method=PLAIN)

    @property
    def along_edges(self) -> bool:
        """Whether transport runs along the edges, by `alignment_over` and the method."""
        can = self.aligned.method == "ct" and self.aligned.over == "tokens"
        return can and self.alignment_over != "nodes"


class GraphAttention(nn.Module):
    """One layer: every node gathers its senders' projected features, weighted by attention.

    Attributes:
        config: dropout, score and alignment.
        features: output features per head (D).
        num_heads: number of heads (H).
        concatenate: whether the heads' outputs stand side by side, [N, H * D], or are averaged,
            [N, D].
    """

    config: GATConfig
    features: int
    num_heads: int
    concatenate: bool

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "N F"] | SparseFeatures,
        senders: Int[Array, "Z"],
        receivers: Int[Array, "Z"],
        *,
        deterministic: bool,
    ) -> Float[Array, "N K"]:
        """Applies the layer; arguments as for :meth:`GAT.__call__`."""
        config = self.config
        num_nodes = inputs.shape[0]
        dropout = nn.Dropout(config.input_dropout, deterministic=deterministic)
        if isinstance(inputs, SparseFeatures):
            inputs = inputs.replace(values=dropout(inputs.values))
        else:
            inputs = dropout(inputs)
        messages = self._project(inputs, "kernel")
        query, key, logits = self._score(inputs, messages, senders, receivers)
        self._align(query, key, senders, receivers)

        weights = segment_softmax(logits, receivers, num_nodes, indices_are_sorted=True)
        self.sow("intermediates", "attention_weights", weights)
        weights = nn.Dropout(config.attention_dropout)(weights, deterministic=deterministic)
        messages = nn.Dropout(config.message_dropout)(messages, deterministic=deterministic)
        outputs = jax.ops.segment_sum(
            weights[..., None] * messages[senders],
            receivers,
            num_segments=num_nodes,
            indices_are_sorted=True,
        )
        outputs = outputs.reshape(num_nodes, -1) if self.concatenate else outputs.mean(axis=1)
        bias = self.param("bias", nn.initializers.zeros, outputs.shape[-1:], jnp.float32)
        return outputs + bias[None]

    def _project(self, inputs: Array | SparseFeatures, name: str) -> Float[Array, "N H D"]:
        # Glorot per head, as if each head had its own matrix [F, D].
        initializer = nn.initializers.glorot_uniform(in_axis=0, out_axis=2, batch_axis=1)
        shape = (inputs.shape[1], self.num_heads, self.features)
        kernel = self.param(name, initializer, shape, jnp.float32).reshape(shape[0], -1)
        if isinstance(inputs, SparseFeatures):
            projected = inputs.matmul(kernel)
        else:
            projected = inputs @ kernel
        return projected.reshape(-1, *shape[1:])

    def _score(
        self, inputs: Array | SparseFeatures, messages: Array, senders: Array, receivers: Array
    ) -> tuple[Float[Array, "N H D"], Float[Array, "N H D"], Float[Array, "Z H"]]:
        """The two sides of the score, and the score of every edge."""
        slope = self.config.negative_slope
        if self.config.score == "gatv2":
            query, key = self._project(inputs, "query_kernel"), messages
            sides = nn.leaky_relu(query[receivers] + key[senders], slope)
            return query, key, jnp.sum(sides * self._vector("attention"), axis=-1)
        query = messages * self._vector("attention_query")
        key = messages * self._vector("attention_key")
        # Summed per node before they meet on the edges: a score needs no [Z, H, D].
        logits = jnp.sum(query, axis=-1)[receivers] + jnp.sum(key, axis=-1)[senders]
        return query, key, nn.leaky_relu(logits, slope)

    def _vector(self, name: str) -> Float[Array, "1 H D"]:
        # Glorot for a map from D features to 1 score, per head.
        initializer = nn.initializers.glorot_uniform(in_axis=1, out_axis=2, batch_axis=0)
        shape = (self.num_heads, self.features, 1)
        return self.param(name, initializer, shape, jnp.float32)[None, ..., 0]

    def _align(self, query: Array, key: Array, senders: Array, receivers: Array) -> None:
        kind: Any = Alignment
        if self.config.along_edges:
            kind = functools.partial(EdgeAlignment, senders=senders, receivers=receivers)
        kind(self.config.aligned, name="alignment")(query[None], key[None])


class EdgeAlignment(Alignment):
    """Conditional transport along edges, in time and memory linear in the edges.

    As :class:`align_jax.Alignment` with method "ct" over tokens, but for the plan. The graph is one
    sample: queries and keys are [1, N, H, D], over all of its nodes.

    Attributes:
        senders: the node whose key an edge offers, int [Z].
        receivers: the node whose query an edge serves, int [Z], ascending.
    """

    senders: Array = dataclasses.field(kw_only=True)
    receivers: Array = dataclasses.field(kw_only=True)

    def _sampled(self, *clouds_and_valid: Any) -> Any:
        return *clouds_and_valid[:-1], None  # the edges name nodes

    def _divergence(self, query: Any, key: Any, *_: Any, **__: Any) -> tuple[Array, dict]:
        # Masks have no part in it: a node that takes no part has no edges.
        pairs = zip(query, key, strict=True)  # of features, and of navigation
        arrays = [*(x for pair in pairs for (x,) in pair), self.senders, self.receivers]
        value = edge_conditional_transport(*arrays, rho=self.config.rho)
        return value[None], {}


class GAT(nn.Module):
    """Node features and edges in, class logits per node out.

    Attributes:
        config: sizes and options.

    Example:
        >>> import jax
        >>> model = GAT(GATConfig(num_classes=3))
        >>> features = jnp.ones((4, 5))
        >>> senders, receivers = jnp.array([0, 1, 1, 2, 3]), jnp.array([0, 0, 1, 2, 3])
        >>> initialise = jax.jit(model.init_with_output)
        >>> logits, variables = initialise(jax.random.key(0), features, senders, receivers)
        >>> logits.shape
        (4, 3)
    """

    config: GATConfig

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "N F"] | SparseFeatures,
        senders: Int[Array, "Z"],
        receivers: Int[Array, "Z"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "N classes"]:
        """Classifies every node of a graph.

        Indices cannot be checked under jit, where those out of range give numbers of no meaning:
        call :func:`align_jax.models.graph.validate_graph` once when the graph is loaded.

        Args:
            features: node features, an array [N, F] or `SparseFeatures`.
            senders: the node each edge comes from, [Z].
            receivers: the node each edge goes to, [Z], ascending.
            deterministic: False in training: dropout is on and needs the "dropout" RNG.

        Returns:
            Logits [N, classes]. With "intermediates" mutable also `embeddings`, the last layer's
            input, and per layer `attention_weights` [Z, H].

        Raises:
            ValueError: features that are not [N, F], lists of edges that do not fit together, an
                edge of a node that does not exist, receivers out of order, or sparse values
                outside the matrix.
            TypeError: edges that are no integers.
        """
        if len(features.shape) != 2:
            raise ValueError(f"GAT got features of shape {features.shape}; expected [N, F].")
        check_edges(senders, receivers, features.shape[0])
        if isinstance(features, SparseFeatures):
            features.check_places()
        config = self.config
        last = config.num_layers - 1
        hidden_sizes = config.hidden_features, config.num_heads, True
        output_sizes = config.num_classes, config.num_output_heads, False
        hidden: Any = features
        for number in range(config.num_layers):
            if number == last:
                self.sow("intermediates", "embeddings", hidden)
            sizes = output_sizes if number == last else hidden_sizes
            layer = GraphAttention(config, *sizes, name=f"layer_{number}")
            hidden = layer(hidden, senders, receivers, deterministic=deterministic)
            hidden = hidden if number == last else nn.elu(hidden)
        return hidden
