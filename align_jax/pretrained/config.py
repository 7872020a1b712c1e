"""A checkpoint's config.json, to and from the models' configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.models.albert import AlbertConfig
from align_jax.models.bert import BertConfig
from align_jax.models.transformer import EncoderConfig
from align_jax.pretrained.errors import PretrainedError

# Field of ours -> key of config.json.
_COMMON = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "activation": "hidden_act",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "pad_token_id": "pad_token_id",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_BERT = {**_COMMON, "classifier_dropout": "classifier_dropout"}
_ALBERT = {
    **_COMMON,
    "classifier_dropout": "classifier_dropout_prob",
    "embedding_size": "embedding_size",
    "groups": "num_hidden_groups",
    "group_layers": "inner_group_num",
}
KEYS = {"bert": _BERT, "roberta": _BERT, "albert": _ALBERT}

# A model that `transformers` has no class for has a type that it does not know: "align_jax_bert".
OWN_PREFIX = "align_jax_"
# How such a model pools, so that loading it back needs no option, and the file with its weights.
POOLING_KEY = "align_jax_pooling"
WEIGHTS_KEY = "align_jax_weights"

MOST_LAYERS, LARGEST_SIZE = 1000, 2**31 - 1
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

# What config.json leaves out has its library's default, which differs from ours in places.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "albert": {"hidden_size": 4096, "heads": 64, "mlp_size": 16384},
}

# Variants of the architectures that these models do not compute: key -> the values that are fine.
_FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}, []),
    "down_scale_factor": (None, 1),
    "gap_size": (None, 0),
    "net_structure_type": (None, 0),
    "num_memory_blocks": (None, 0),
}


def model_type(config: EncoderConfig) -> str:
    """What config.json calls this kind of model."""
    return config.family if isinstance(config, BertConfig) else "albert"


def from_json(values: Mapping[str, Any], source: str, **options: Any) -> EncoderConfig:
    """The configuration that a config.json describes, in the file `source`.

    Options are fields that override it, unless they are None; one that is out of range is a
    ValueError, and a file that describes no supported model a `PretrainedError`.
    """
    named = values.get("model_type")
    kind = named.removeprefix(OWN_PREFIX) if isinstance(named, str) else None
    if named is None and {"optimizer", "train"} <= values.keys():
        raise PretrainedError(
            f"{source} is of a training run, not of a model. Export it, `python -m train.predict "
            "--checkpoint=RUN_DIR --export=FOLDER`, and load that folder."
        )
    if kind not in KEYS:
        raise PretrainedError(
            f"{source} says model_type {named!r}; supported are {tuple(KEYS)}. Choose a checkpoint "
            "of one of these."
        )
    for key, accepted in _FIXED.items():
        if values.get(key) not in accepted:
            raise PretrainedError(
                f"{source} says {key} = {values[key]!r}, which is not supported; expected "
                f"{accepted[-1]!r}. Choose a checkpoint without it."
            )
    given = {field: values[key] for field, key in KEYS[kind].items() if key in values}
    fields = _DEFAULTS[kind] | given
    try:
        config = AlbertConfig(**fields) if kind == "albert" else BertConfig(family=kind, **fields)
    except (ValueError, TypeError) as error:
        raise PretrainedError(f"{source} describes no usable model: {error}") from error
    most = max(getattr(config, name, 0) for name in ("layers", "groups", "group_layers"))
    if most > MOST_LAYERS:  # each is traced, before anything is compared with the tensors
        raise PretrainedError(
            f"{source} describes a model of {most} layers; expected at most {MOST_LAYERS}. Get the "
            "file anew."
        )
    for name in config.counts:
        if getattr(config, name) > LARGEST_SIZE:
            raise PretrainedError(
                f"{source} describes no usable model: {name} is {getattr(config, name)}; expected "
                f"at most {LARGEST_SIZE}. Get the file anew."
            )
    given = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(config, **given)


def labels_in(values: Mapping[str, Any]) -> int:
    """How many labels the checkpoint's classifier has, by its config.json; 2 if it does not say."""
    names = values.get("id2label")
    if isinstance(names, Mapping) and names:
        return len(names)
    number = values.get("num_labels", 2)
    return number if isinstance(number, int) and number > 0 else 2


def label_names_in(values: Mapping[str, Any], labels: int, source: str) -> tuple[str, ...]:
    """The names of a checkpoint's classes in order; none where they are only numbered."""
    names = values.get("id2label")
    if not isinstance(names, Mapping) or not names:
        return ()
    expected = [str(number) for number in range(labels)]
    found = [names.get(number) for number in expected]
    if len(names) != labels or not all(type(name) in (str, int) for name in found):
        raise PretrainedError(
            f"{source} says id2label = {str(dict(names))[:200]}; expected a name for each of "
            f"{', '.join(expected[:3])}... Mend it, or pass new_head=True."
        )
    named = tuple(map(str, found))
    return () if named == numbered_labels(labels) else named


def numbered_labels(labels: int) -> tuple[str, ...]:
    """What `transformers` calls classes without names."""
    return tuple(f"LABEL_{number}" for number in range(labels))


def problem_in(values: Mapping[str, Any], labels: int, source: str) -> str:
    """What kind of problem a checkpoint's classifier solves; "" where its labels say it."""
    problem = values.get("problem_type") or usual_problem(labels)
    if problem not in PROBLEMS:
        raise PretrainedError(
            f"{source} says problem_type = {problem!r}; expected one of {PROBLEMS}, or none."
        )
    return "" if problem == usual_problem(labels) else problem


def usual_problem(labels: int) -> str:
    """What `transformers` takes a classifier's problem for, unless it is told."""
    return "regression" if labels == 1 else "single_label_classification"


def to_json(
    config: EncoderConfig,
    *,
    architecture: str,
    label_names: Sequence[str] | None,
    problem: str | None,
) -> dict[str, Any]:
    """A config.json that `transformers` understands, for its class `architecture`.

    Without label names or a problem, it is of a model that has none. Alignment, dtype of the
    computation, remat and scan_layers are not part of it.
    """
    kind = model_type(config)
    values = {key: getattr(config, field) for field, key in KEYS[kind].items()}
    values.update(
        model_type=kind,
        architectures=[architecture],
        position_embedding_type="absolute",
        torch_dtype="float32",
        bos_token_id=None,
        eos_token_id=None,
    )
    if kind == "albert" and values["classifier_dropout_prob"] is None:
        values["classifier_dropout_prob"] = config.head_dropout
    if label_names is not None:
        values["id2label"] = {str(number): name for number, name in enumerate(label_names)}
        values["label2id"] = {name: number for number, name in enumerate(label_names)}
    if problem is not None:
        values["problem_type"] = problem
    return values
