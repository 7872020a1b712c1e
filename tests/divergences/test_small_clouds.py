"""Few tokens and features: XLA has once ended the process, which no test in it would survive."""

import os
import subprocess
import sys

import pytest

from tests.conftest import QUICK_FLAGS, ROOT

# Compiles the gradient for each divergence and number of queries, keys and features, and says which
# it is at.
PROGRAM = """
import itertools
import sys
import jax
import jax.numpy as jnp
from align_jax import divergences

def compiled(name, options, n, m, features):
    print(name, options, n, m, features, flush=True)
    function = getattr(divergences, name)
    shapes = [jax.ShapeDtypeStruct((2, x, 2, features), jnp.float32) for x in (n, m)]
    shapes *= 2 if name == "conditional_transport" else 1
    loss = lambda *x: function(*x, **options).sum()
    jax.jit(jax.grad(loss, tuple(range(len(shapes))))).lower(*shapes).compile()

for cases, sizes in eval(sys.argv[1]):
    for (name, options), size in itertools.product(cases, sizes):
        compiled(name, options, *size)
"""
FEW = [(n, m) for n in (1, 2, 3) for m in (1, 2, 3)]
MANY = [(n, m) for few in (1, 2, 3) for n, m in ((few, 40), (40, few))]
# Two and three are of one kind: one, such a number and many against each other.
KINDS = [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (1, 40), (40, 1), (2, 40), (40, 3)]
BLOCKWISE = {"implementation": "blockwise"}


def compile_all(*groups):
    """All sizes of each group for all of its cases, in one process."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS=QUICK_FLAGS)
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(groups)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = (child.stdout.splitlines() or ["nothing"])[-1]
    assert child.returncode == 0, f"ended at {last}: {child.stderr[-300:]}"
    cases, sizes = groups[-1]
    assert last == "{} {} {} {} {}".format(*cases[-1], *sizes[-1])


@pytest.mark.fault(
    "2 or 3 queries against any number of keys, or the other way round, on a CPU",
    "Gradients compile (XLA would end the process)",
)
def test_conditional_transport_between_few_tokens():
    sizes = [(2, 2, 10), (3, 2, 10), (2, 40, 10), (40, 3, 10), (5, 2, 2), (5, 3, 2)]
    compile_all(([("conditional_transport", BLOCKWISE)], sizes))


@pytest.mark.slow
def test_every_divergence_between_few_tokens():
    """Between 2 features; transport in blocks between 10 too, as many as its networks have."""
    transport = [("conditional_transport", BLOCKWISE)]
    squared = [("conditional_transport", BLOCKWISE | {"cost": "squared_euclidean"})]
    others = [
        ("conditional_transport", {"implementation": "dense"}),
        ("maximum_mean_discrepancy", {}),
        ("maximum_mean_discrepancy", {"implementation": "dense"}),
        ("energy_distance", {}),
        ("optimal_transport", {}),
    ]
    compile_all(
        (transport, [(n, m, features) for features in (2, 10) for n, m in FEW + MANY]),
        (squared, [(n, m, features) for features in (2, 10) for n, m in KINDS]),
        (others, [(n, m, 2) for n, m in KINDS]),
    )
