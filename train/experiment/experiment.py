"""From a config to the objects it names: data, task, model, optimiser, initial state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from align_jax import AdapterConfig, AlignmentConfig
from train.data import DATA
from train.data.base import DataSource
from train.experiment.settled import EACH_EPOCH, settled
from train.places import check_no_url
from train.registry import ConfigError, look_up, nearest
from train.step.optimizer import ENCODER, OptimizerConfig, make_optimizer
from train.step.state import AlignmentTerm, TrainState, create_state
from train.tasks import TASKS
from train.tasks.base import Task

# A model's name -> its configuration dataclass, and what makes the module out of it. What does so
# may return a pair: the module, and parameters to start from (any part of its tree); without, those
# that come with the data.
MODEL_CONFIGS = {
    "gat": "align_jax.models.gat:GATConfig",
    "mcan": "align_jax.models:MCANConfig",
    "pretrained_text": "train.experiment.pretrained_text:PretrainedTextConfig",
    "vit": "align_jax.models:ViTConfig",
}
MODELS = {
    "gat": "align_jax.models.gat:GAT",
    "mcan": "align_jax.models:MCAN",
    "pretrained_text": "train.experiment.pretrained_text:pretrained_text",
    "vit": "align_jax.models:VisionTransformer",
}

# The classes whose fields are the keys of a section that has a name.
PARTS = {"data": DATA, "task": TASKS, "model": MODEL_CONFIGS}

# What the numbers in the sections `train` and `eval` are at least; 0 is never, or none.
LEAST = {
    "train.steps": 0, "train.min_steps": 0, "train.log_every": 0, "train.keep_checkpoints": 0,
    "train.patience": 0, "train.checkpoint_every": EACH_EPOCH, "eval.every": EACH_EPOCH,
    "eval.mmd_examples": 0, "eval.mmd_every": 0, "train.mesh_model": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one experiment, each built by name from its section of the config.

    Attributes:
        config: the whole config, with what it left open (see `train.experiment.settled`).
        model: the Linen module, aligned as the config says.
        alignment: the alignment's part of the loss.
        pretrained: parameters that the first state starts from, instead of random ones.
        adapters: which of the model's kernels have low-rank adapters. The encoder beneath them is
            frozen, unless `optimizer.freeze` says what is.
    """

    config: ConfigDict
    data: DataSource
    task: Task
    model: nn.Module
    alignment: AlignmentTerm
    pretrained: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapters: AdapterConfig | None = None

    def initial_state(self) -> TrainState:
        """The state before the first step.

        Raises:
            ConfigError: parameters to start from have another shape than the model's; or those to
                freeze are none of them, or all; or adapters do not fit the model.
        """
        config = _construct(OptimizerConfig, "optimizer", self.config.optimizer.to_dict())
        freeze = config.freeze or ((f"^{ENCODER}/",) if self.adapters else ())
        tx = make_optimizer(config, self.config.train.steps)
        state = create_state(
            self.model, tx, self.task, self.alignment, self.data.example_batch(), self.config.seed,
            freeze, self.adapters,
        )  # fmt: skip
        if not self.pretrained:
            return state
        fresh, given = (traverse_util.flatten_dict(x) for x in (state.params, self.pretrained))
        for path, x in given.items():
            if path in fresh and fresh[path].shape != x.shape:
                raise ConfigError(
                    f"The parameter {'/'.join(path)} to start from has shape {x.shape}; the "
                    f"model's has {fresh[path].shape}. Change config.model, or what it starts from."
                )
        return state.start_from(traverse_util.unflatten_dict(fresh | given))


def build_experiment(config: ConfigDict) -> Experiment:
    """Builds the parts that a config names.

    Raises:
        ConfigError: an unknown name or key, or a value that a part refuses.

    Example:
        >>> from train.configs import digits
        >>> build_experiment(digits.get_config()).initial_state().step.item()
        0
    """
    if not 0 <= config.seed < 2**32:  # of more, jax.random drops what is beyond
        raise ConfigError(f"config.seed is {config.seed}; expected a number from 0 to 2**32 - 1.")
    for key, least in LEAST.items():
        section, _, name = key.partition(".")
        value = config[section].get(name, least)
        if value < least:
            raise ConfigError(f"{key} is {value}; expected a whole number of at least {least}.")
    bandwidth = config.eval.get("mmd_bandwidth", 1.0)
    if not 0 < bandwidth < float("inf"):
        raise ConfigError(f"eval.mmd_bandwidth is {bandwidth}; expected a number above 0.")
    check_no_url(config.to_dict())
    alignment = build_alignment(config)
    config, data = _settled_data(config)
    task = _build(config, "task", TASKS)
    model, pretrained, adapters = _build_model(config, data, alignment)
    return Experiment(config, data, task, model, alignment, pretrained, adapters)


def settled_config(config: ConfigDict) -> ConfigDict:
    """A config with what it left open; raises ConfigError as `build_experiment` does."""
    check_no_url(config.to_dict())
    return _settled_data(config)[0]


def default_settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each section that a class describes, the defaults of its fields.

    Example:
        >>> default_settings({"optimizer": {}})["optimizer"]["decay"]
        'linear'
    """
    return {
        kind: {
            field.name: field.default
            for field in dataclasses.fields(settings)
            if field.default is not dataclasses.MISSING
        }
        for kind, settings in settings_classes(config).items()
        if kind in config
    }


def settings_classes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The class whose fields are a section's keys, for each section of a config that has one."""
    classes: dict[str, Any] = {"optimizer": OptimizerConfig, "alignment": AlignmentConfig}
    for kind, registry in PARTS.items():
        name = config.get(kind, {}).get("name")
        if name in registry:
            classes[kind] = look_up(kind, name, registry)
    return classes


def _settled_data(config: ConfigDict) -> tuple[ConfigDict, DataSource]:
    data = _build(config, "data", DATA, seed=config.seed)
    return settled(config, data), data


def _build(config: ConfigDict, kind: str, registry: dict[str, str], **extra: Any) -> Any:
    section = config[kind].to_dict()
    return _construct(look_up(kind, section.pop("name"), registry), kind, section | extra)


def build_alignment(config: ConfigDict) -> AlignmentTerm:
    """Builds the section `alignment`; raises ConfigError as `build_experiment` does."""
    section = config.alignment.to_dict()
    term = {name: section.pop(name) for name in ("weight", "warmup_steps")}
    if section.get("layers") is not None:
        section["layers"] = tuple(section["layers"])
    settings = _construct(AlignmentConfig, "alignment", section)
    return _construct(functools.partial(AlignmentTerm, settings), "alignment", term)


def _build_model(
    config: ConfigDict, data: DataSource, alignment: AlignmentTerm
) -> tuple[nn.Module, Mapping[str, Any], AdapterConfig | None]:
    section = config.model.to_dict()
    name = section.pop("name")
    settings, module = (look_up("model", name, known) for known in (MODEL_CONFIGS, MODELS))
    fields = {field.name for field in dataclasses.fields(settings)}
    from_data = {key: value for key, value in data.metadata.model.items() if key in fields}
    section = from_data | section | {"alignment": alignment.config}
    made_of = _construct(settings, "model", section)
    model = _construct(functools.partial(module, made_of), "model", {})
    pair = model if isinstance(model, tuple) else (model, data.metadata.parameters)
    return *pair, getattr(made_of, "adapters", None)


def _construct(factory: Any, kind: str, values: dict[str, Any]) -> Any:
    """Calls a part's constructor; what it refuses becomes an error about the config's section."""
    if dataclasses.is_dataclass(factory):
        fields = [field.name for field in dataclasses.fields(factory)]
        for key in values:
            if key not in fields:
                near, known = nearest(key, fields), ", ".join(fields)
                raise ConfigError(f"{kind}.{key} does not exist; {near}known: {known}.")
    try:
        return factory(**values)
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError) as error:  # a package is missing: it names it
        raise ConfigError(f"config.{kind}: {error}") from error
