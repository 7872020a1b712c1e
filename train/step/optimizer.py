"""The optimiser: Adam or AdamW, warm-up and decay, clipping, and a rate of its own for alignment.

The model and the alignment networks (critic, navigator, discriminator) are two groups, each with a
rate and a momentum of its own: a game needs networks that follow queries and keys closely. Each is
clipped by its own norm: the critic ascends and its gradients can be large, and clipping both by
their common norm would let it shrink the model's step - a plain model and an aligned one would
then differ by more than their loss.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import optax
from flax import traverse_util

from align_jax import label_parameters
from align_jax.numerics import check_patterns
from align_jax.optimizer import BETA1, LEARNING_RATE
from train.registry import ConfigError, nearest
from train.step.freezing import ADAPTERS, fitting

OPTIMIZERS = ("adamw", "adam")
DECAYS = ("linear", "constant", "steps")
ENCODER = "encoder"  # the pretrained part of a text model; the rest is its head
UNDECAYED = (r"\bbias$", r"\bscale$")  # of Dense, Conv and LayerNorm
FINITE = ("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "decay_factor",
          "alignment_learning_rate", "head_rate_multiplier", "skip_nonfinite")  # fmt: skip
MOMENTA = ("beta1", "beta2", "alignment_beta1")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of `make_optimizer`.

    Attributes:
        name: "adamw" decays the weights beside the gradient; "adam" adds `weight_decay` times the
            weight to the gradient (L2, as PyTorch's Adam and the GAT paper do).
        learning_rate: the highest rate, reached after the warm-up.
        warmup_steps: steps of linear increase from 0; None for `warmup_share` of the run's.
        warmup_share: of the run's steps, rounded down; used where `warmup_steps` is None.
        decay: "linear" falls to 0 at the last step; "constant" stays; "steps" is multiplied by
            `decay_factor` at each step of `decay_at`.
        decay_at: rising steps of the run; for "steps" alone.
        decay_factor: see `decay`.
        weight_decay: of the model's parameters but those of `not_decayed`.
        not_decayed: regular expressions, each searched for in the parameters' paths; by default
            biases and LayerNorm scales. () exempts nothing.
        decay_alignment: whether the alignment networks are decayed as well.
        beta1, beta2, epsilon: Adam's.
        clip_norm: largest global norm of each group's gradient; 0 switches clipping off.
        alignment_learning_rate: the alignment networks' rate, constant over the run. They start
            from nothing and must keep ahead of queries and keys, whatever rate suits the model.
        alignment_beta1: their momentum; a player of a game that goes on in its old direction comes
            to circle around the solution instead of reaching it.
        head_rate_multiplier: likewise of a new head on a pretrained encoder: of whatever lies
            outside the module `encoder`, and is no adapter. Other than 1, the head is clipped by
            its own norm.
        skip_nonfinite: steps in a row that may be left out because their gradient is not finite;
            0 stops the run at the first one.
        freeze: regular expressions, each searched for in the parameters' paths: "^encoder/" is the
            encoder, "layer_[0-3]/" four of its layers. What one fits keeps its value, and has
            neither gradient nor moments (see `train.step.freezing`).

    Raises:
        ConfigError: an unknown name, or a number out of range.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int | None = None
    warmup_share: float = 0.0
    decay: str = "linear"
    decay_at: tuple[int, ...] = ()
    decay_factor: float = 0.1
    weight_decay: float = 0.01
    not_decayed: tuple[str, ...] = UNDECAYED
    decay_alignment: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    alignment_learning_rate: float = LEARNING_RATE
    alignment_beta1: float = BETA1
    head_rate_multiplier: float = 1.0
    skip_nonfinite: int = 0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay_at", tuple(self.decay_at))  # JSON has lists
        for field in ("freeze", "not_decayed"):
            given = getattr(self, field)
            expressions = tuple(given) if isinstance(given, tuple | list) else (given,)
            object.__setattr__(self, field, expressions)
            try:
                if "" in expressions:
                    raise ValueError(f"optimizer.{field} holds '', no regular expression.")
                check_patterns(f"optimizer.{field}", expressions)
            except ValueError as error:
                raise ConfigError(f"{error} Expected such as '^encoder/embeddings/'.") from None
        for field, known in (("name", OPTIMIZERS), ("decay", DECAYS)):
            value = getattr(self, field)
            if value not in known:
                raise ConfigError(
                    f"optimizer.{field} is {value!r}; {nearest(value, known)}expected one of "
                    f"{known}."
                )
        if bool(self.decay_at) != (self.decay == "steps"):
            raise ConfigError(
                f"optimizer.decay is {self.decay!r} and optimizer.decay_at {self.decay_at}; "
                f"decay 'steps' needs steps, and no other takes any."
            )
        if list(self.decay_at) != sorted({step for step in self.decay_at if step > 0}):
            raise ConfigError(
                f"optimizer.decay_at is {self.decay_at}; expected rising numbers above 0."
            )
        limits = dict.fromkeys(FINITE, (float("inf"), "0 or more, and finite"))
        limits |= dict.fromkeys(MOMENTA, (1.0, "at least 0, below 1"))
        for field, (limit, expected) in limits.items():
            value = getattr(self, field)
            if value is not None and not 0 <= value < limit:  # nor NaN
                raise ConfigError(f"optimizer.{field} is {value}; expected {expected}.")
        if not 0 <= self.warmup_share <= 1:
            raise ConfigError(
                f"optimizer.warmup_share is {self.warmup_share}; expected 0 to 1, a share of the "
                f"run's steps."
            )

    def warmup(self, steps: int) -> int:
        """The steps of the warm-up in a run of so many."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return int(self.warmup_share * steps + 1e-6)  # a third of 300 is 100


@functools.cache  # equal runs, as of several seeds, share the programs that hold it
def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser of a run.

    Args:
        config: the settings.
        steps: length of the run, at whose end a linear decay reaches 0.

    Raises:
        ConfigError: the warm-up is longer than the run; or, where the optimiser's state is made, an
            expression of `not_decayed` fits no parameter that is trained.

    Example:
        >>> tx = make_optimizer(OptimizerConfig(learning_rate=1e-3), steps=100)
        >>> params = {"classifier": {"kernel": jax.numpy.ones(2)}}
        >>> gradients = {"classifier": {"kernel": jax.numpy.array([3.0, -0.5])}}
        >>> updates, _ = tx.update(gradients, tx.init(params), params)
        >>> jax.numpy.sign(updates["classifier"]["kernel"]).tolist()
        [-1.0, 1.0]
    """
    warmup = config.warmup(steps)
    if warmup > steps:
        raise ConfigError(
            f"optimizer.warmup_steps is {warmup}, longer than train.steps {steps}. Give "
            f"optimizer.warmup_share instead, which fits any number of steps."
        )
    if config.decay_at and config.decay_at[0] < warmup:
        raise ConfigError(
            f"optimizer.decay_at begins at {config.decay_at[0]}, within the warm-up of {warmup} "
            f"steps."
        )
    rate = functools.partial(learning_rate, config, steps)
    groups = {
        "model": _group(config, rate(), config.beta1, decay_weights=True),
        "alignment": _group(
            config, config.alignment_learning_rate, config.alignment_beta1, config.decay_alignment
        ),
    }
    if config.head_rate_multiplier != 1.0:
        head = rate(config.head_rate_multiplier)
        groups["head"] = _group(config, head, config.beta1, decay_weights=True)

    def grouped(params: Any) -> Any:
        paths = traverse_util.flatten_dict(params, sep="/")
        for expression in set(config.not_decayed) - {*UNDECAYED}:
            fitting("optimizer.not_decayed", expression, paths)
        return parameter_groups(params, head="head" in groups)

    tx = optax.multi_transform(groups, grouped)
    return optax.apply_if_finite(tx, config.skip_nonfinite) if config.skip_nonfinite else tx


def learning_rate(config: OptimizerConfig, steps: int, multiplier: float = 1.0) -> optax.Schedule:
    """The rate at each step: linear from 0 over the warm-up, then as `config.decay` says."""
    peak, rise = config.learning_rate * multiplier, config.warmup(steps)
    if config.decay == "linear":
        after = optax.linear_schedule(peak, 0.0, max(steps - rise, 1))
    elif config.decay == "steps":
        falls = {step - rise: config.decay_factor for step in config.decay_at}
        after = optax.piecewise_constant_schedule(peak, falls)
    else:
        after = optax.constant_schedule(peak)
    if not rise:
        return after
    warmup = optax.linear_schedule(0.0, peak, rise)
    return optax.join_schedules([warmup, after], [rise])


def parameter_groups(params: Any, *, head: bool = False) -> Any:
    """Labels each parameter "model", or "alignment" if a plain model would not have it.

    With `head`, what lies outside the module `encoder` and is no adapter is labelled "head".

    Raises:
        ConfigError: a head is asked for, and there is no encoder that it could be on.
    """
    if head and ENCODER not in params:
        raise ConfigError(
            f"optimizer.head_rate_multiplier is for a head on an {ENCODER}; this model has "
            f"{', '.join(params)}."
        )
    labels = label_parameters(params)
    if not head:
        return labels

    def in_head(label: str) -> str:
        return "head" if label == "model" else label

    inside = (ENCODER, ADAPTERS)
    return {n: x if n in inside else jax.tree.map(in_head, x) for n, x in labels.items()}


def _group(
    config: OptimizerConfig, rate: optax.ScalarOrSchedule, beta1: float, decay_weights: bool
) -> optax.GradientTransformation:
    def is_decayed(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(re.search(expression, name) for expression in config.not_decayed)

    decayed = functools.partial(jax.tree_util.tree_map_with_path, is_decayed)
    decay = optax.add_decayed_weights(config.weight_decay if decay_weights else 0.0, mask=decayed)
    adam = optax.scale_by_adam(b1=beta1, b2=config.beta2, eps=config.epsilon)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        *((adam, decay) if config.name == "adamw" else (decay, adam)),
        optax.scale_by_learning_rate(rate),
    )
