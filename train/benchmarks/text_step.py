"""The time of a plain fine-tuning step of a text model, beside PyTorch's `transformers`.

    python -m train.benchmarks.text_step --config=train/configs/glue.py:mrpc,minilm

Needs torch and transformers. Both train the same checkpoint with the same head on the same batch,
the first of the config's data, with the config's dropout, AdamW and clipping. Each runs in a
process of its own, with as many threads as its library takes by default. The processes take turns:
while one trains the others wait, so that whatever else the machine does meets all. What counts is
the median of the rounds' ratios.

With JAX_DEFAULT_MATMUL_PRECISION=BF16_BF16_F32 in the environment the dense layers' products are of
bfloat16, summed in float32, and so are PyTorch's products of float32 ("medium").

PyTorch runs twice: as it comes, and with huge pages (`train.devices.huge_pages`), which
`python -m train` sees to by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import rich.console
import rich.table
from absl import flags
from ml_collections import ConfigDict

from align_jax.placement import matmul_precision
from align_jax.pretrained.files import find_folder
from train import cli
from train.benchmarks.step_time import stepper
from train.devices.huge_pages import children_without_huge_pages
from train.experiment.experiment import build_experiment
from train.registry import ConfigError

CONFIG = cli.define_config_flag()
ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each takes its turn.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3, "Training steps per turn.", lower_bound=1)

Stepper = Callable[[], Any]


def transformers_stepper(config: ConfigDict, batch: Mapping[str, np.ndarray]) -> Stepper:
    """The same step by PyTorch: forward, backward, clipping, AdamW."""
    import torch
    import transformers

    if matmul_precision() == "BF16_BF16_F32":
        torch.set_float32_matmul_precision("medium")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        find_folder(
            config.model.pretrained,
            revision=config.model.revision or None,
            offline=config.model.offline,
        ),
        hidden_dropout_prob=config.model.dropout,
        attention_probs_dropout_prob=config.model.attention_dropout,
        classifier_dropout=config.model.classifier_dropout,
        num_labels=build_experiment(config).data.metadata.model["num_labels"],
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.learning_rate,
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.epsilon,
        weight_decay=config.optimizer.weight_decay,
    )
    inputs = {
        name: torch.from_numpy(batch[name]).long()
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    labels = torch.from_numpy(batch["label"]).long()

    def step() -> None:
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()

    return step


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who takes the steps.

    Attributes:
        stepper: makes a function that takes one training step, out of a config and a batch.
        surroundings: makes the context in which its process is started.
    """

    stepper: Callable[[ConfigDict, Any], Stepper]
    surroundings: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


CONTESTANTS = {
    "align_jax": Contestant(stepper),
    "transformers": Contestant(transformers_stepper, children_without_huge_pages),
    "transformers, huge pages": Contestant(transformers_stepper),
}


def measure(
    config: ConfigDict, batch: Mapping[str, np.ndarray], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds per step of each contestant, round by round.

    The first entry is the first step's time, compilation included.

    Raises:
        ConfigError: a contestant failed; says why.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, contestant in CONTESTANTS.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(name, theirs, config, dict(batch)))
        with contestant.surroundings():
            process.start()
        theirs.close()
        workers[name] = (process, ours)
    times: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for turn in range(rounds + 1):
            for name, (_, pipe) in workers.items():
                with contextlib.suppress(BrokenPipeError):  # it has failed already, and says why
                    pipe.send(steps if turn else 1)
                times[name].append(_received(pipe, name))
    finally:
        for process, pipe in workers.values():
            pipe.close()
            process.join(timeout=10)
            process.kill()
    return times


def _received(pipe: Connection, name: str) -> float:
    try:
        answer = pipe.recv()
    except EOFError as error:
        raise ConfigError(f"the process of {name} ended; see its output above.") from error
    if isinstance(answer, str):
        raise ConfigError(f"{name} failed: {answer}")
    return answer


def _work(name: str, pipe: Connection, config: ConfigDict, batch: dict[str, np.ndarray]) -> None:
    """Takes as many steps as it is told to, and answers with the seconds per step."""
    cli.use_compilation_cache()
    try:
        step = CONTESTANTS[name].stepper(config, batch)
        while True:
            steps = pipe.recv()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            pipe.send((time.perf_counter() - start) / steps)
    except EOFError:  # the measurement is over
        return
    except Exception as error:  # whatever it is, the one who measures must not wait for ever
        pipe.send(f"{type(error).__name__}: {error}")


def ratios(times: Mapping[str, list[float]], reference: str) -> dict[str, list[float]]:
    """Each contestant's time over the reference's in the same round, first steps left out."""
    return {
        name: [value / base for value, base in zip(values, times[reference], strict=True)][1:]
        for name, values in times.items()
    }


def main() -> None:
    """Measures and prints a table."""
    config = cli.require_config(CONFIG)
    if "pretrained" not in config.model or config.task.name != "text_classification":
        raise ConfigError(f"{config.name} is no classification of texts by a pretrained model.")
    batch = next(iter(build_experiment(config).data.train_batches()))
    times = measure(config, batch, ROUNDS.value, STEPS.value)
    title = (
        f"Training step of {config.name}, batch {' x '.join(map(str, batch['input_ids'].shape))}"
    )
    table = rich.table.Table(title=title, title_justify="left")
    for column in ("", "first step, s", "ms per step", "over align_jax, median [min, max]"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in ratios(times, "align_jax").items():
        first, *rest = times[name]
        spread = f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
        table.add_row(name, f"{first:.1f}", f"{1e3 * statistics.median(rest):.0f}", spread)
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.run_command(main)
