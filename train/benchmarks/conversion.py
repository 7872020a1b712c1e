"""What finding the attentions of a model costs, beside attention that was written to be aligned.

    python -m train.benchmarks.conversion

Needs align_jax, jax, flax and optax alone. A Transformer of flax's own attention that `aligned`
converts, and the same with the drop-in attention, take the same training steps in turns: how long
tracing takes, and how long the compiled step, as ratios of medians.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from align_jax import AlignmentConfig, MultiHeadDotProductAttention, aligned, alignment_loss
from train.benchmarks.turns import timed_in_turns


class Transformer(nn.Module):
    """Pre-norm layers with a classifier.

    Attributes:
        alignment: of the drop-in attention; None for flax's.
        layers: how many.
        heads: of each.
    """

    alignment: AlignmentConfig | None = None
    layers: int = 6
    heads: int = 12

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits [B, 2]."""
        width = x.shape[-1]
        for number in range(self.layers):
            options: dict[str, Any] = {"num_heads": self.heads, "name": f"attention_{number}"}
            if self.alignment is None:
                attention: nn.Module = nn.MultiHeadDotProductAttention(**options)
            else:
                attention = MultiHeadDotProductAttention(alignment=self.alignment, **options)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
        return nn.Dense(2)(x.mean(axis=1))


def steps(
    method: str, batch: int, tokens: int, width: int, layers: int
) -> dict[str, tuple[Callable[..., Any], Any]]:
    """For each way to align, a function of parameters that gives gradients, and its parameters."""
    config = AlignmentConfig(method)
    x = jax.random.normal(jax.random.key(0), (batch, tokens, width))
    mask = jnp.arange(tokens) < jnp.linspace(tokens // 2, tokens, batch)[:, None].astype(int)
    mask = mask[:, None, None]
    models: dict[str, nn.Module] = {
        "drop-in": Transformer(config, layers, width // 32),
        "converted": aligned(Transformer(None, layers, width // 32), config),
    }
    params = jax.jit(models["drop-in"].init)(jax.random.key(1), x, mask)["params"]

    def of(model: nn.Module) -> Callable[[Any], Any]:
        def loss(params: Any) -> jax.Array:
            outputs, sown = model.apply({"params": params}, x, mask, mutable=["alignment"])
            return jnp.mean(outputs**2) + alignment_loss(sown)

        return jax.value_and_grad(loss)

    return {name: (of(model), params) for name, model in models.items()}


def measure(
    method: str, turns: int, batch: int, tokens: int, width: int, layers: int
) -> tuple[float, float]:
    """Times of tracing and of a compiled step, converted over drop-in."""
    both = steps(method, batch, tokens, width, layers)
    tracing = {
        # A new function each time: a trace is kept for those that are known.
        name: lambda f=function, p=params: jax.jit(functools.partial(f)).trace(p)
        for name, (function, params) in both.items()
    }
    running = {}
    for name, (function, params) in both.items():
        compiled = jax.jit(function).lower(params).compile()
        running[name] = lambda f=compiled, p=params: jax.block_until_ready(f(p))
    ratios = []
    for calls in (tracing, running):
        seconds = timed_in_turns(calls, turns, clock=time.process_time)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ratios.append(medians["converted"] / medians["drop-in"])
    return ratios[0], ratios[1]


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.benchmarks.conversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--methods", default="gan,ct,energy", help="(default: %(default)s)")
    options = parser.parse_args()
    sizes = {"batch": 8, "tokens": 64, "width": 384, "layers": 6}
    print(f"jax {jax.__version__}, {sizes}, {options.turns} turns, CPU time")
    print("converted over drop-in: tracing, compiled step")
    for method in options.methods.split(","):
        tracing, step = measure(method, options.turns, **sizes)
        print(f"{method:8} {tracing:.2f} {step:.2f}", flush=True)


if __name__ == "__main__":
    main()
