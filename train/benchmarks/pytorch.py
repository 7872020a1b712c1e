"""The time of a plain fine-tuning step of a text model, beside PyTorch's `transformers`.

    python -m train.benchmarks.pytorch --config=train/configs/glue.py:mrpc,minilm

Needs torch and transformers. Both train the same checkpoint with the same head on the same batch,
the first of the config's data, with the config's dropout, AdamW and clipping. Each runs in a
process of its own, with as many threads as its library takes by default. The processes take turns:
while one trains the others wait, so that whatever else the machine does meets all. What counts is
the median of the rounds' ratios.

With JAX_DEFAULT_MATMUL_PRECISION=BF16_BF16_F32 in the environment the dense layers' products are of
bfloat16, summed in float32, and so are PyTorch's products of float32 ("medium").

PyTorch runs twice: as it comes, and with huge pages, which `python -m train` sees to by itself.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent import futures
from typing import Any
from unittest import mock

import rich.console
import rich.table
from absl import flags
from ml_collections import ConfigDict

from align_jax.placement import matmul_precision
from align_jax.pretrained.files import find_folder
from train import cli
from train.benchmarks.step_time import stepper
from train.benchmarks.turns import ratios, spread, timed_in_turns
from train.data.base import Batch
from train.experiment.experiment import build_experiment
from train.registry import ConfigError

CONFIG = cli.define_config_flag()
ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each takes its turn.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3, "Training steps per turn.", lower_bound=1)

OURS = "align_jax"


def transformers_stepper(config: ConfigDict, batch: Batch) -> Callable[[], None]:
    """The same step by PyTorch: forward, backward, clipping, AdamW."""
    import torch
    import transformers

    if matmul_precision() == "BF16_BF16_F32":
        torch.set_float32_matmul_precision("medium")
    ours = config.model
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        find_folder(ours.pretrained, revision=ours.revision or None, offline=ours.offline),
        hidden_dropout_prob=ours.dropout,
        attention_probs_dropout_prob=ours.attention_dropout,
        classifier_dropout=ours.classifier_dropout,
        num_labels=build_experiment(config).data.metadata.model["num_labels"],
    ).train()
    names = ("input_ids", "attention_mask", "token_type_ids", "label")
    *inputs, labels = (torch.from_numpy(batch[name]).long() for name in names)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )

    def step() -> None:
        optimizer.zero_grad()
        model(*inputs, labels=labels).loss.backward()
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()

    return step


# Who makes a function that takes a step, and what the environment is then.
CONTESTANTS: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    OURS: (stepper, {}),
    "transformers": (transformers_stepper, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}),
    "transformers, huge pages": (transformers_stepper, {}),
}
_STEPS: dict[str, Callable[[], Any]] = {}  # of the process that takes them


def measure(
    config: ConfigDict, batch: Batch, rounds: int, steps: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of each contestant's first step, compilation included, and per step in each round.

    Raises:
        ConfigError: a contestant failed; says why.
    """
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        takes = {}
        for name, (make, environment) in CONTESTANTS.items():
            pool = stack.enter_context(futures.ProcessPoolExecutor(1, spawn))
            with mock.patch.dict(os.environ, environment):
                _ask(pool, name, _prepare, make, config, dict(batch))
            takes[name] = functools.partial(_ask, pool, name, _take)
        first = timed_in_turns({n: functools.partial(t, 1) for n, t in takes.items()}, 1, 0)
        several = {name: functools.partial(take, steps) for name, take in takes.items()}
        rest = timed_in_turns(several, rounds, warm_up=0)
    seconds = {name: [time / steps for time in times] for name, times in rest.items()}
    return {name: time for name, (time,) in first.items()}, seconds


def _ask(pool: futures.Executor, name: str, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        pool.submit(function, name, *arguments).result()
    except Exception as error:
        raise ConfigError(f"{name} failed: {type(error).__name__}: {error}") from error


def _prepare(name: str, make: Callable[..., Any], config: ConfigDict, batch: Batch) -> None:
    cli.use_compilation_cache()
    _STEPS[name] = make(config, batch)


def _take(name: str, steps: int) -> None:
    for _ in range(steps):
        _STEPS[name]()


def main() -> None:
    """Measures and prints a table."""
    config = cli.require_config(CONFIG)
    if "pretrained" not in config.model or config.task.name != "text_classification":
        raise ConfigError(f"{config.name} is no classification of texts by a pretrained model.")
    batch = next(iter(build_experiment(config).data.train_batches()))
    first, seconds = measure(config, batch, ROUNDS.value, STEPS.value)
    shape = " x ".join(map(str, batch["input_ids"].shape))
    title = f"Training step of {config.name}, batch {shape}"
    table = rich.table.Table(title=title, title_justify="left")
    for column in ("", "first step, s", "ms per step", "over align_jax, median [min, max]"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in ratios(seconds, OURS).items():
        milliseconds = f"{1e3 * statistics.median(seconds[name]):.1f}"
        table.add_row(name, f"{first[name]:.1f}", milliseconds, spread(values))
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.run_command(main)
