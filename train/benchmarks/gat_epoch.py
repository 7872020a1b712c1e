"""The time of a GAT training epoch on Cora, beside PyTorch Geometric's.

Command:   python -m train.benchmarks.gat_epoch [--rounds=15] [--epochs=5] [--folder=...]
Needs:     Cora (see `train.data.planetoid`); for the comparison torch and torch_geometric, without
           which only this project's times are printed.

Both train the same network: 8 heads of 8, then 1 head of 7, dropout 0.6 on inputs and on attention
weights, Adam with L2. An epoch is forward, backward and update over the whole graph. The two take
turns in one process, round by round, so that whatever else the machine does meets both; the median
of the rounds' ratios is what counts.

PyTorch Geometric multiplies a dense feature matrix, as its own example for Cora does; this project
is timed with sparse features, as its config trains, and with dense ones.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from align_jax.models.gat import GAT, GATConfig
from train import process
from train.benchmarks.turns import timed_in_turns
from train.data.planetoid import Graph, Planetoid

LEARNING_RATE, L2 = 0.005, 5e-4


def align_jax_epochs(graph: Graph, dense: bool) -> Callable[[int], None]:
    """A function that trains our GAT for a number of epochs and waits for the result."""
    model = GAT(GATConfig(num_classes=graph.num_classes))
    features = dense_features(graph) if dense else graph.features
    inputs = jax.tree.map(jnp.asarray, (features, graph.senders, graph.receivers))
    labels, mask = jnp.asarray(graph.labels), jnp.asarray(graph.masks["train"])
    transform = optax.chain(optax.add_decayed_weights(L2), optax.adam(LEARNING_RATE))

    @jax.jit
    def step(params, opt_state, rng, inputs):
        rng, dropout = jax.random.split(rng)

        def loss(params):
            rngs = {"dropout": dropout}
            logits = model.apply({"params": params}, *inputs, deterministic=False, rngs=rngs)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses, where=mask)

        updates, opt_state = transform.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state, rng

    params = model.init(jax.random.key(0), *inputs)["params"]
    carry = params, transform.init(params), jax.random.key(1)

    def train(epochs: int) -> None:
        nonlocal carry
        for _ in range(epochs):
            carry = step(*carry, inputs)
        jax.block_until_ready(carry)

    return train


def pytorch_geometric_epochs(graph: Graph) -> Callable[[int], None] | None:
    """The same for PyTorch Geometric's GAT; None where it is not installed."""
    try:
        import torch
        from torch.nn import functional
        from torch_geometric.nn import GATConv
    except ImportError:
        return None

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The graph brings its self-loops, so neither library spends time on adding them.
            options = {"dropout": 0.6, "add_self_loops": False}
            self.first = GATConv(graph.features.shape[1], 8, heads=8, **options)
            self.second = GATConv(64, graph.num_classes, heads=1, concat=False, **options)

        def forward(self, features, edges):
            hidden = functional.dropout(features, 0.6, self.training)
            hidden = functional.elu(self.first(hidden, edges))
            return self.second(functional.dropout(hidden, 0.6, self.training), edges)

    torch.manual_seed(0)
    features = torch.from_numpy(dense_features(graph))
    edges = torch.from_numpy(np.stack([graph.senders, graph.receivers]).astype(np.int64))
    labels = torch.from_numpy(graph.labels.astype(np.int64))
    mask = torch.from_numpy(graph.masks["train"])
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=L2)

    def train(epochs: int) -> None:
        for _ in range(epochs):
            optimizer.zero_grad()
            functional.cross_entropy(network(features, edges)[mask], labels[mask]).backward()
            optimizer.step()

    return train


def dense_features(graph: Graph) -> np.ndarray:
    """The features as an array [N, F]."""
    dense = np.zeros(graph.features.shape, np.float32)
    dense[graph.features.rows, graph.features.columns] = graph.features.values
    return dense


def measure(
    contestants: dict[str, Callable[[int], None]], rounds: int, epochs: int
) -> dict[str, list[float]]:
    """Seconds per epoch of each contestant, round by round; an extra first round warms up."""
    turns = {name: functools.partial(train, epochs) for name, train in contestants.items()}
    times = timed_in_turns(turns, rounds)
    return {name: [seconds / epochs for seconds in found] for name, found in times.items()}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m train.benchmarks.gat_epoch", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=15, help="how often each takes its turn")
    parser.add_argument("--epochs", type=int, default=5, help="epochs per turn")
    parser.add_argument("--folder", default="", help="where Cora's files lie; else as for training")
    options = parser.parse_args()

    graph = Planetoid("cora", folder=options.folder).graph
    contestants = {
        "align_jax (sparse)": align_jax_epochs(graph, dense=False),
        "align_jax (dense)": align_jax_epochs(graph, dense=True),
    }
    other = pytorch_geometric_epochs(graph)
    if other:
        contestants["PyTorch Geometric"] = other
    else:
        print("torch or torch_geometric is not installed; only this project is timed.")

    times = measure(contestants, options.rounds, options.epochs)
    base = times["align_jax (sparse)"]
    print(f"{'':20} {'ms/epoch':>9} {'ratio to align_jax (sparse), median [min, max]':>50}")
    for name, values in times.items():
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"{name:20} {1e3 * statistics.median(values):9.1f} {spread:>50}")


if __name__ == "__main__":
    process.run(main)
