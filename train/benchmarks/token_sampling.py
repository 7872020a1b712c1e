"""What `AlignmentConfig(tokens=...)` does to the value: its bias and its spread over draws.

    python -m train.benchmarks.token_sampling

Needs align_jax and jax alone (and ott-jax for "ot"). Two normal clouds, the keys' shifted by half a
standard deviation, stand for a head's queries and keys; the networks are fresh. Each draw takes
other tokens. Of "gan", a mean over tokens, the mean over draws is the value of all tokens; the
others compare pairs, and fewer tokens look less alike (or, to a plan that chooses, farther apart).
"""

from __future__ import annotations

import jax
import numpy as np

from align_jax import AlignmentConfig
from align_jax.alignment import Alignment
from train import process
from train.benchmarks.turns import at_least, solvable

SHAPE = (4, 512, 4, 32)  # B N H D


def draws(method: str, tokens: int, count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """The mean divergence of each of `count` draws of so many tokens; 0 takes all of them."""
    rng = np.random.default_rng(0)
    query, key = (rng.normal(shift, size=shape).astype(np.float32) for shift in (0.0, 0.5))
    # So that a Gaussian kernel sees more than single points.
    config = AlignmentConfig(method, tokens=tokens, bandwidth=float(shape[-1] ** 0.5))
    module = Alignment(config)
    variables = jax.jit(module.init)(jax.random.key(0), query, key)

    @jax.jit
    def value(rng: jax.Array) -> jax.Array:
        rngs = {"alignment": rng}
        _, sown = module.apply(variables, query, key, mutable=["alignment"], rngs=rngs)
        return sown["alignment"]["divergence"][0].mean()

    return np.array([value(rng) for rng in jax.random.split(jax.random.key(1), count)])


def main() -> None:
    """Runs the command."""
    arguments = process.parser("train.benchmarks.token_sampling", __doc__)
    arguments.add_argument("--draws", type=at_least(2), default=50, help="(default: %(default)s)")
    count = arguments.parse_args().draws
    print(f"{SHAPE[1]} tokens; bias of the mean over {count} draws, and spread of a draw")
    for method in solvable(("gan", "ct", "mmd", "ot")):
        whole = draws(method, 0, 1)[0]
        print(f"{method}: {whole:.5f} with all tokens")
        for tokens in (32, 64, 128, 256):
            values = draws(method, tokens, count)
            error = values.std(ddof=1) / len(values) ** 0.5
            print(
                f"{tokens:6} tokens: bias {values.mean() / whole - 1:+7.2%} "
                f"± {abs(error / whole):.2%}, spread {values.std(ddof=1) / abs(whole):.2%}"
            )


if __name__ == "__main__":
    process.run(main)
