"""What finding the attentions of a model costs, beside attention that was written to be aligned.

    python -m train.benchmarks.conversion

Needs align_jax, jax, flax and optax alone. A Transformer of flax's own attention that `aligned`
converts, and the same with the drop-in attention, take the same training steps in turns: how long
tracing takes, and how long the compiled step, as ratios within each turn.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from align_jax import AlignmentConfig, MultiHeadDotProductAttention, aligned, alignment_loss
from align_jax.config import METHODS
from train import process
from train.benchmarks.turns import at_least, listed, parser, ratios, spread, timed_in_turns

SIZES = {"batch": 8, "tokens": 64, "width": 384, "layers": 6}


class Transformer(nn.Module):
    """Pre-norm layers with a classifier, of flax's attention or with the drop-in one."""

    attention: Callable[..., nn.Module]
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits [B, 2]."""
        width = x.shape[-1]
        for number in range(self.layers):
            attention = self.attention(num_heads=width // 32, name=f"attention_{number}")
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
        return nn.Dense(2)(x.mean(axis=1))


def steps(
    method: str, batch: int, tokens: int, width: int, layers: int
) -> tuple[dict[str, Callable[[Any], Any]], Any]:
    """For each way to align, a function of parameters that gives gradients; and the parameters."""
    config = AlignmentConfig(method)
    x = jax.random.normal(jax.random.key(0), (batch, tokens, width))
    mask = jnp.arange(tokens) < jnp.linspace(tokens // 2, tokens, batch)[:, None].astype(int)
    mask = mask[:, None, None]
    drop_in = functools.partial(MultiHeadDotProductAttention, alignment=config)
    models: dict[str, nn.Module] = {
        "drop-in": Transformer(drop_in, layers),
        "converted": aligned(Transformer(nn.MultiHeadDotProductAttention, layers), config),
    }

    def gradients_of(model: nn.Module) -> Callable[[Any], Any]:
        def loss(params: Any) -> jax.Array:
            outputs, sown = model.apply({"params": params}, x, mask, mutable=["alignment"])
            return jnp.mean(outputs**2) + alignment_loss(sown)

        return jax.value_and_grad(loss)

    params = jax.jit(models["drop-in"].init)(jax.random.key(1), x, mask)["params"]
    return {name: gradients_of(model) for name, model in models.items()}, params


def main() -> None:
    """Runs the command."""
    arguments = parser("train.benchmarks.conversion", __doc__)
    arguments.add_argument("--turns", type=at_least(1), default=10, help="(default: %(default)s)")
    arguments.add_argument("--methods", type=listed(known=METHODS), default=["gan", "ct", "energy"])
    options = arguments.parse_args()
    print(f"jax {jax.__version__}, {SIZES}, {options.turns} turns, CPU time")
    print("converted over drop-in, median [least, most]: tracing; compiled step")
    for method in options.methods:
        both, params = steps(method, **SIZES)
        tracing, running = {}, {}
        for name, function in both.items():
            # A new function each time: a trace is kept for those that are known.
            tracing[name] = lambda f=function, p=params: jax.jit(functools.partial(f)).trace(p)
            compiled = jax.jit(function).lower(params).compile()
            running[name] = lambda f=compiled, p=params: jax.block_until_ready(f(p))
        found = [
            spread(
                ratios(timed_in_turns(calls, options.turns, clock=time.process_time), "drop-in")[
                    "converted"
                ]
            )
            for calls in (tracing, running)
        ]
        print(f"{method:8} {'; '.join(found)}", flush=True)


if __name__ == "__main__":
    process.run(main)
