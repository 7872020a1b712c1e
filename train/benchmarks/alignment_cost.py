"""What alignment adds to a training step: time, memory and operations over the plain model's.

The models are BERTs of known shapes with random weights, on random tokens of random lengths: what
a step costs does not depend on what the numbers are.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import optax

from align_jax import AlignmentConfig, aligned, alignment_loss, networks
from align_jax.config import PLAIN
from align_jax.divergences import blocks
from align_jax.models.bert import BertConfig
from align_jax.models.heads import SequenceClassifier
from train.benchmarks.turns import ratios, spread, timed_in_turns

MIB = 2**20
INPUTS = "input_ids", "attention_mask", "token_type_ids"
FOUND = "aligned-"  # in front of a method
TRACINGS = 3  # of a step, the quickest of which counts

# Sizes of the encoder, and examples in a batch: on a CPU, elsewhere.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "minilm": ({"hidden_size": 384, "layers": 6, "mlp_size": 1536}, (32, 32)),
    "bert-base": ({}, (8, 32)),
}

HEADER = (
    f"{'model':>10} {'batch':>5} {'tokens':>6} {'method':>12} {'trace, s':>8} {'ms':>9} "
    f"{'over plain, median [min, max]':>30} {'MiB':>8} {'memory':>7} {'FLOPs':>6}"
)


class Cost(NamedTuple):
    """One method's training step on one shape."""

    model: str
    batch: int
    tokens: int
    # "none" is the plain model; "ct:32" draws 32 tokens of each text for it, "ct:32:8" those of one
    # text in 8; "aligned-ct" finds the attentions of the plain model (`align_jax.aligned`).
    method: str
    tracing: float  # seconds until the step is traced, the least of `TRACINGS`
    milliseconds: float  # median over the turns
    ratios: Sequence[float]  # its time over the plain model's, turn by turn
    memory: float  # MiB that the compiled step needs beside its arguments and results
    memory_ratio: float  # that over the plain model's
    # Floating-point operations over the plain model's, as XLA counts them; of a loop with an
    # unknown number of rounds (OT's iterations) it counts one.
    flops_ratio: float

    def row(self) -> str:
        """One line under `HEADER`."""
        return (
            f"{self.model:>10} {self.batch:5} {self.tokens:6} {self.method:>12} "
            f"{self.tracing:8.2f} {self.milliseconds:9.1f} {spread(self.ratios):>30} "
            f"{self.memory:8.1f} {self.memory_ratio:6.2f}x {self.flops_ratio:5.3f}x"
        )


def random_batch(batch: int, tokens: int) -> dict[str, np.ndarray]:
    """Tokens, mask and labels; lengths from half of the tokens to all."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(tokens // 2, tokens, batch, endpoint=True)
    return {
        "input_ids": rng.integers(1000, 30000, (batch, tokens)),
        "attention_mask": (np.arange(tokens) < lengths[:, None]).astype(np.int32),
        "token_type_ids": np.zeros((batch, tokens), np.int32),
        "label": rng.integers(0, 2, batch),
    }


class Step:
    """A compiled training step with AdamW that goes on from where the last call ended.

    Attributes:
        tracing: see `Cost`.
        memory: MiB beside arguments and results.
        flops: of one step, loops over blocks unrolled.
    """

    def __init__(self, name: str, method: str, batch: Mapping[str, np.ndarray]) -> None:
        method, *drawn = method.split(":")
        plain, found = method == PLAIN, method.startswith(FOUND)
        draws: dict[str, Any] = dict(zip(("tokens", "subsample"), map(int, drawn), strict=False))
        alignment = AlignmentConfig(method.removeprefix(FOUND), **draws)
        config = BertConfig(
            **MODELS[name][0],
            max_positions=batch["input_ids"].shape[1],
            dropout=0.0,
            attention_dropout=0.0,
            alignment=None if plain or found else alignment,
        )
        model: Any = SequenceClassifier(config)
        model = aligned(model, alignment) if found else model
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5))

        def loss(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            logits, sown = model.apply(
                {"params": params},
                *(batch[name] for name in INPUTS),
                rngs={"alignment": batch["key"]},
                mutable=[] if plain else ["alignment"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean() + (0.0 if plain else 0.01 * alignment_loss(sown))

        def step(params: Any, state: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
            gradients = jax.grad(loss)(params, batch)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self._batch = jax.device_put({**batch, "key": jax.random.key(1)})
        first = [self._batch[name][:1] for name in INPUTS]
        params = jax.jit(model.init)(jax.random.key(0), *first)["params"]
        self._carry = params, optimizer.init(params)
        arguments = (*self._carry, self._batch)
        # A new function each time: what one was traced to is remembered.
        traced = {"": lambda: jax.jit(functools.partial(step)).trace(*arguments)}
        self.tracing = min(timed_in_turns(traced, TRACINGS, warm_up=0, clock=time.process_time)[""])
        self._compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
        self.memory = temporary_memory(self._compiled)
        # XLA counts a loop's body once, so the count is of the form without loops.
        with (
            mock.patch.object(blocks, "BLOCK_SIZE", 2**60),
            mock.patch.object(blocks, "ACCELERATOR_BLOCK_SIZE", 2**60),
            mock.patch.object(networks, "CHUNK_SIZE", 2**60),
        ):
            whole = jax.jit(functools.partial(step)).lower(*arguments)
        self.flops = (whole.cost_analysis() or {}).get("flops", float("nan"))

    def __call__(self) -> None:
        """Takes one step and waits for it."""
        self._carry = self._compiled(*self._carry, self._batch)
        jax.block_until_ready(self._carry)


def measure(
    models: Iterable[str],
    lengths: Sequence[int],
    methods: Sequence[str],
    turns: int,
    batch: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Cost]:
    """Measures the methods on each shape, in turns within one process.

    Models are names in `MODELS`; the plain one comes first in any case. A batch of 0 takes the
    model's own number of examples.
    """
    for name in models:
        size = batch or MODELS[name][1][jax.default_backend() != "cpu"]
        for tokens in lengths:
            data = random_batch(size, tokens)
            steps = {m: Step(name, m, data) for m in dict.fromkeys([PLAIN, *methods])}
            seconds = timed_in_turns(steps, turns, clock=clock)
            over_plain, plain = ratios(seconds, PLAIN), steps[PLAIN]
            for method, step in steps.items():
                yield Cost(
                    *(name, size, tokens, method, step.tracing),
                    milliseconds=1e3 * statistics.median(seconds[method]),
                    ratios=over_plain[method],
                    memory=step.memory,
                    memory_ratio=step.memory / plain.memory,
                    flops_ratio=step.flops / plain.flops,
                )


def temporary_memory(compiled: Any) -> float:
    """MiB that a compiled function needs beside arguments and results; NaN if XLA does not say."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes / MIB if analysis else float("nan")
