"""The sections that every config has, with their defaults.

A config starts from `default_config()` and sets what its experiment needs. Every key exists from
the start, so that the config can be locked and a mistyped key is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict, config_dict

from align_jax import AlignmentConfig
from train.experiment.experiment import PARTS
from train.registry import look_up
from train.step.optimizer import OptimizerConfig

_OPTIONAL = {"int | None": int, "float | None": float}  # the others are tuples, such as of layers


def default_config() -> ConfigDict:
    """The common sections: optimizer, alignment, train, eval, and the seed.

    An experiment adds `name`, `model`, `data` and `task`.
    """
    config = ConfigDict()
    config.name = ""
    config.seed = 0

    config.optimizer = section(OptimizerConfig)

    config.alignment = section(AlignmentConfig, method="none")
    config.alignment.weight = config_dict.placeholder(float)  # None: the method's default_weight
    config.alignment.warmup_steps = 0

    config.train = ConfigDict()
    config.train.steps = 1000  # the run's length; one step is one batch
    # Instead of steps, which is then 0: how often each example is seen.
    config.train.epochs = 0.0
    config.train.min_steps = 0  # with epochs: few examples are seen more often, for so many steps
    config.train.parallel = "pmap"  # or "mesh": parameters sharded as well, many hosts
    config.train.mesh_model = 1  # devices that share a copy of the parameters, by heads and units
    config.train.mesh_fsdp = False  # whether the copies, too, hold a part of each parameter
    # Rows that a device takes at once; of more, it adds up the gradients of parts. 0: all its rows.
    config.train.microbatch_size = 0
    config.train.microbatch_cpu_only = False  # on other devices all rows at once
    config.train.init_from = ""  # another run's folder, whose parameters to start from
    config.train.log_every = 50  # steps between records of the loss and the alignment
    # Where curves go beside the run's folder: "wandb", or "module:class" of a train.run.sinks.Sink.
    config.train.log_to = ""
    config.train.checkpoint_every = 500  # steps; -1: as eval.every
    config.train.keep_checkpoints = 2  # the newest ones; the best one is kept beside them
    # Which checkpoint is the best, of those saved right after an evaluation; for --step of predict.
    config.train.monitor = "validation/accuracy:max"
    config.train.restore_best = False  # end with the parameters best by all of patience_metrics
    config.train.patience = 0  # evaluations without improvement before stopping; 0: never stop
    # An evaluation at which one of them improves resets the patience; the best is best by all.
    config.train.patience_metrics = ("validation/loss:min", "validation/accuracy:max")

    config.eval = ConfigDict()
    # Steps; -1: after each epoch, of long ones more often, of short ones less.
    config.eval.every = 500
    config.eval.at_start = True  # the curves' first point; and a mistake shows now, not in hours
    config.eval.during = ("validation",)  # splits evaluated while training
    config.eval.final = ("validation", "test")  # splits evaluated at the end
    # A sweep's columns: of the last of final, or SPLIT/METRIC.
    config.eval.report = ("accuracy", "ece")
    config.eval.stochastic_passes = 0  # with dropout, at the end, for PAvPU; the paper has 20
    # Held out: at the end, a temperature fitted on it scales the other splits' logits; "": none.
    config.eval.temperature_split = ""
    config.eval.mmd_split = "validation"  # whose keys and queries are compared
    config.eval.mmd_examples = 128  # examples whose keys and queries are compared; 0: none
    config.eval.mmd_bandwidth = 1.0  # of the paper's MMD; the scale-free one finds its own
    # Measure its entropy, logits and rank beside, of scaled dot-product attention.
    config.eval.attention = False
    config.eval.mmd_every = 1  # evaluations; 0: before the first step and at the end alone
    return config


def part(kind: str, name: str, without: Collection[str] = (), **values: Any) -> ConfigDict:
    """The section of the data, the task or the model that is registered under a name.

    Arguments as of `section`; the data's seed is the config's.

    Example:
        >>> part("data", "digits", batch_size=32).name
        'digits'
    """
    result = section(look_up(kind, name, PARTS[kind]), ("seed", *without), **values)
    result.name = name
    return result


def section(settings: type, without: Collection[str] = (), **values: Any) -> ConfigDict:
    """A section whose keys and defaults are a dataclass's fields.

    Args:
        settings: the dataclass.
        without: fields that the config does not set.
        **values: other values than the defaults.

    Raises:
        TypeError: a value for a field that the dataclass does not have.

    Example:
        >>> section(OptimizerConfig, learning_rate=1e-4).learning_rate
        0.0001
    """
    result = ConfigDict()
    for field in dataclasses.fields(settings):
        if field.name in without:
            continue
        default = values.pop(field.name, field.default)
        # None has no type that a command-line flag could be parsed as.
        kind = _OPTIONAL.get(str(field.type), tuple)
        result[field.name] = config_dict.placeholder(kind) if default is None else default
    if values:
        raise TypeError(f"{settings.__name__} has no field {sorted(values)}.")
    return result
