"""The time of a plain training step beside PyTorch's, of a text model or a graph attention network.

    python -m train.benchmarks.pytorch --config=train/configs/glue.py:mrpc,minilm
    python -m train.benchmarks.pytorch --config=train/configs/planetoid.py:cora --steps=5

The first needs torch and transformers, the second torch and torch_geometric. All train the same
network on the same batch, the first of the config's data, with the config's dropout, optimiser and
clipping. Each runs in a process of its own, with as many threads as its library takes by default.
The processes take turns: while one trains the others wait, so that whatever else the machine does
meets all. What counts is the median of the rounds' ratios.

With JAX_DEFAULT_MATMUL_PRECISION=BF16_BF16_F32 in the environment the dense layers' products are of
bfloat16, summed in float32, and so are PyTorch's products of float32 ("medium").

PyTorch runs text models twice: as it comes, and with huge pages, which `python -m train` sees to by
itself. PyTorch Geometric multiplies a dense feature matrix, as its own example for Cora does; this
project is timed with sparse features, as its config trains, and with dense ones.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any
from unittest import mock

import numpy as np
import rich.console
import rich.table
from absl import flags
from ml_collections import ConfigDict

from align_jax.placement import matmul_precision
from align_jax.pretrained.files import find_folder
from train import cli
from train.benchmarks.step_time import stepper
from train.benchmarks.turns import ratios, spread, timed_in_turns
from train.experiment.experiment import build_experiment
from train.registry import ConfigError

CONFIG = cli.define_config_flag()
ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each takes its turn.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3, "Training steps per turn.", lower_bound=1)

Batch = Mapping[str, Any]
OURS = "align_jax"
AS_IT_COMES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}


def transformers_stepper(config: ConfigDict, batch: Batch) -> Callable[[], None]:
    """The same step of a text model by `transformers`."""
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
    return _torch_step(config, model, lambda: model(*inputs, labels=labels).loss)


def geometric_stepper(config: ConfigDict, batch: Batch) -> Callable[[], None]:
    """The same step of a graph attention network by PyTorch Geometric."""
    import torch
    from torch.nn import functional
    from torch_geometric.nn import GATConv

    sizes, features = config.model, torch.from_numpy(dense_features(batch)["features"])
    # The graph brings its self-loops, so neither library spends time on adding them.
    options = {"dropout": sizes.attention_dropout, "add_self_loops": False}
    width, classes = sizes.hidden_features, int(batch["label"].max()) + 1
    first = GATConv(features.shape[1], width, heads=sizes.num_heads, **options)
    last = GATConv(
        width * sizes.num_heads, classes, heads=sizes.num_output_heads, concat=False, **options
    )
    edges = torch.from_numpy(np.stack([batch["senders"], batch["receivers"]]).astype(np.int64))
    labels = torch.from_numpy(batch["label"].astype(np.int64))
    mask = torch.from_numpy(batch["mask"])

    def loss() -> Any:
        hidden = first(functional.dropout(features, sizes.input_dropout), edges)
        hidden = functional.dropout(functional.elu(hidden), sizes.input_dropout)
        return functional.cross_entropy(last(hidden, edges)[mask], labels[mask])

    return _torch_step(config, torch.nn.ModuleList([first, last]).train(), loss)


def _torch_step(config: ConfigDict, model: Any, loss: Callable[[], Any]) -> Callable[[], None]:
    """Forward, backward, clipping and the optimiser, by PyTorch."""
    import torch

    settings = config.optimizer
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name](
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()

    return step


def dense_features(batch: Batch) -> dict[str, Any]:
    """The batch with its sparse features as an array [N, F]."""
    features = batch["features"]
    dense = np.zeros(features.shape, np.float32)
    dense[features.rows, features.columns] = features.values
    return {**batch, "features": dense}


def dense_stepper(config: ConfigDict, batch: Batch) -> Callable[[], Any]:
    """This project's step on dense features."""
    return stepper(config, dense_features(batch))


# Of each task: who makes a function that takes a step, and what the environment is then.
CONTESTANTS: dict[str, dict[str, tuple[Callable[..., Any], dict[str, str]]]] = {
    "text_classification": {
        OURS: (stepper, {}),
        "transformers": (transformers_stepper, AS_IT_COMES),
        "transformers, huge pages": (transformers_stepper, {}),
    },
    "node_classification": {
        OURS: (stepper, {}),
        f"{OURS}, dense": (dense_stepper, {}),
        "PyTorch Geometric": (geometric_stepper, {}),
    },
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
        for name, (make, environment) in CONTESTANTS[config.task.name].items():
            pool = stack.enter_context(futures.ProcessPoolExecutor(1, spawn))
            with mock.patch.dict(os.environ, environment):
                _ask(pool, name, _prepare, make, config, dict(batch))
            takes[name] = functools.partial(_ask, pool, name, _take)
        first = timed_in_turns({n: functools.partial(t, 1) for n, t in takes.items()}, 1, 0)
        several = {name: functools.partial(take, steps) for name, take in takes.items()}
        seconds = timed_in_turns(several, rounds, warm_up=0)
    return (
        {name: time for name, (time,) in first.items()},
        {name: [time / steps for time in times] for name, times in seconds.items()},
    )


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
    if config.task.name not in CONTESTANTS or (
        config.task.name == "text_classification" and "pretrained" not in config.model
    ):
        raise ConfigError(
            f"{config.name} is neither a classification of texts by a pretrained model nor one of "
            f"a graph's nodes."
        )
    batch = next(iter(build_experiment(config).data.train_batches()))
    first, seconds = measure(config, batch, ROUNDS.value, STEPS.value)
    inputs = batch["input_ids"] if "input_ids" in batch else batch["features"]
    shape = " x ".join(map(str, inputs.shape))
    table = rich.table.Table(
        title=f"Training step of {config.name}, batch {shape}", title_justify="left"
    )
    for column in ("", "first step, s", "ms per step", "over align_jax, median [min, max]"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in ratios(seconds, OURS).items():
        milliseconds = f"{1e3 * statistics.median(seconds[name]):.1f}"
        table.add_row(name, f"{first[name]:.1f}", milliseconds, spread(values))
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.run_command(main)
