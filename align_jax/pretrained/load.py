"""From a folder or a name on the hub to a model that is ready to train."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from align_jax.alignment import NAME
from align_jax.collection import merge_parameters, strip_alignment
from align_jax.config import AlignmentConfig
from align_jax.models.heads import (
    POOLINGS,
    MultipleChoice,
    SequenceClassifier,
    SpanExtractor,
    text_encoder,
)
from align_jax.models.stack import in_stack, stack_layers, unstack_layers
from align_jax.models.transformer import EncoderConfig
from align_jax.numerics import check_choice
from align_jax.pretrained.config import (
    POOLING_KEY,
    WEIGHTS_KEY,
    from_json,
    label_names_in,
    labels_in,
    model_type,
    problem_in,
)
from align_jax.pretrained.convert import (
    Tensors,
    fresh_parameters,
    has_stack,
    parameter_shapes,
    reconfigured,
    to_parameters,
)
from align_jax.pretrained.errors import PretrainedError
from align_jax.pretrained.files import ALIGNMENT, find_folder, read_file, read_json, read_tensors
from align_jax.pretrained.predict import Prediction, predict
from align_jax.pretrained.tokenizer import Tokenizer
from align_jax.pretrained.tokenizer_files import load_tokenizer, tokenizer_files

HEADS = ("encoder", "classification", "regression", "multiple_choice", "span")
UNPOOLED = ("encoder", "span")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every tensor and every parameter.

    Attributes:
        folder: where the files were.
        unused: tensors of the checkpoint that the model has no place for.
        fresh: parameters that the checkpoint does not hold, freshly initialised.

    Example:
        >>> print(LoadReport("minilm", unused=(), fresh=("classifier/bias",)))
        minilm: tensors not used: none; parameters freshly made: classifier/bias
    """

    folder: str
    unused: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        unused, fresh = (", ".join(names) or "none" for names in (self.unused, self.fresh))
        return f"{self.folder}: tensors not used: {unused}; parameters freshly made: {fresh}"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights.

    Attributes:
        model: the encoder, or the encoder with a head.
        config: its configuration.
        params: its "params" collection, float32.
        tokenizer: None if the checkpoint has none, or none was asked for.
        report: which tensors were not used, which parameters are new.

    Example:
        See `load`.
    """

    model: nn.Module
    config: EncoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    report: LoadReport

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in order; none where the checkpoint only numbers them."""
        return getattr(self.model, "label_names", ())

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Prediction]:
        """Labels texts or pairs of them, with probabilities; or scores them, for a regression.

        Texts are sorted by length and padded to few lengths, in batches of few sizes, each compiled
        at its first use.

        Args:
            texts: the texts, or the first of each pair.
            pairs: the second of each pair.
            params: trained parameters; None takes the checkpoint's.
            batch_size: how many go through the model at once.
            max_length: in tokens; what is longer is truncated. None takes what it was trained with.

        Returns:
            One `Prediction` for each text, in order.

        Raises:
            ValueError: the model is no classifier, parameters of it were not in the checkpoint and
                `params` has none either, `params` are another model's or hold NaN, a text is none,
                or a number is out of range.
        """
        fresh = [name for name in self.report.fresh if f"/{NAME}/" not in name]
        if params is None and fresh:
            raise ValueError(
                f"{self.report.folder} holds no {', '.join(fresh[:3])}: these are random, and so "
                "would the answers be. Train them, and pass params=..., or load what `save` wrote."
            )
        if self.tokenizer is None:
            raise ValueError("There is no tokenizer: load() found none, or was told to leave it.")
        if params is None:
            params = self.params
        else:  # another model's are named here, and not by flax in the middle of the model
            params = merge_parameters(strip_alignment(self.params), strip_alignment(params))
        tokens = self.tokenizer.tokenize(texts, pairs, max_length=max_length)
        return predict(self.model, params, self.tokenizer, tokens, batch_size)


def load(
    name: str | os.PathLike[str],
    *,
    head: str = "classification",
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    pooling: str | None = None,
    new_head: bool = False,
    alignment: AlignmentConfig | str | None = None,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    tokenizer: bool = True,
    seed: int = 0,
    **options: Any,
) -> Pretrained:
    """Loads a BERT, RoBERTa or ALBERT checkpoint.

    Args:
        name: a folder with config.json and model.safetensors (or pytorch_model.bin, which needs
            PyTorch), a name on the hub, or "package:NAME/FOLDER", a folder inside an installed
            Python package.
        head: "encoder" for none, "classification", "regression", "multiple_choice" or "span". A
            classifier has the checkpoint's names of its classes too, unless it is a new one.
        num_labels: number of classes; None takes the checkpoint's. Only for classification.
        label_names: names of a new classifier's classes in order, instead of their number.
        pooling: see `SequenceClassifier`; None takes what the architecture has (RoBERTa: "dense",
            others: "pooler"). Choose "mean" where the pooler was never trained.
        new_head: do not load the checkpoint's head, make a new one.
        alignment: what to align in each attention, or a method's name; None aligns nothing.
        revision: branch, tag or commit on the hub.
        offline: use the hub's cache and no network, as the environment variable HF_HUB_OFFLINE=1.
        cache_dir: the hub's cache; None for its default.
        tokenizer: False leaves it out.
        seed: of parameters that the checkpoint does not hold.
        **options: `dropout`, `attention_dropout`, `classifier_dropout`, `dtype` (of the
            computation: parameters are float32), `remat` and `scan_layers`, see `EncoderConfig`;
            None takes the checkpoint's.

    Returns:
        Model, configuration, parameters, tokenizer and a report.

    Raises:
        PretrainedError: the checkpoint cannot be found or read, is not supported, or does not fit.
        ValueError: an option is out of range.
        ImportError: a package is needed that is not installed.

    Example:
        >>> loaded = load("albert/albert-base-v2", num_labels=2)  # doctest: +SKIP
        >>> batch = loaded.tokenizer.encode(["A sentence."])  # doctest: +SKIP
        >>> loaded.model.apply({"params": loaded.params}, **batch).shape  # doctest: +SKIP
        (1, 2)

        From a folder that `save` wrote, now with alignment, whose networks are new:

        >>> import jax, tempfile
        >>> from align_jax.models import BertConfig
        >>> from align_jax.pretrained import save
        >>> config = BertConfig(vocab_size=9, hidden_size=8, layers=1, heads=2, mlp_size=8)
        >>> model, tokens = build(config, "classification", labels=3), jnp.ones((2, 5), jnp.int32)
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, model, params)
        ...     loaded = load(folder, alignment="ct")
        >>> jax.jit(loaded.model.apply)({"params": loaded.params}, tokens).shape
        (2, 3)
        >>> all("/alignment/" in name for name in loaded.report.fresh)
        True
    """
    check_choice("head", head, HEADS)
    for option, given in (("num_labels", num_labels), ("label_names", label_names)):
        if given is not None and head != "classification":
            raise ValueError(f"{option} is for head='classification', got head={head!r}.")
    if label_names is not None:
        _check_label_names(label_names, num_labels)
        num_labels = len(label_names)
    folder = find_folder(name, revision=revision, offline=offline, cache_dir=cache_dir)
    values = read_json(folder / "config.json")
    source = str(folder / "config.json")
    config = from_json(values, source, alignment=alignment, **options)
    labels = labels_in(values) if num_labels is None else num_labels
    if pooling is None and head not in UNPOOLED:
        pooling = values.get(POOLING_KEY)
    model = build(config, head, labels=labels, pooling=pooling)
    if isinstance(model, SequenceClassifier) and not new_head and model.labels == labels_in(values):
        model = model.clone(
            label_names=label_names_in(values, model.labels, source),
            problem=problem_in(values, model.labels, source),
        )
    if label_names is not None:
        model = model.clone(label_names=tuple(label_names))
    tensors = read_tensors(folder, own=values.get(WEIGHTS_KEY) is not None)
    params, report = _load_parameters(model, config, folder, tensors, new_head=new_head, seed=seed)
    found = load_tokenizer(folder, config) if tokenizer and tokenizer_files(folder) else None
    return Pretrained(model, config, params, found, report)


def _check_label_names(names: Sequence[str], num_labels: int | None) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"label_names is {names!r:.80}; expected a sequence of strings.")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"label_names is {list(names)!s:.80}; expected names that all differ.")
    if num_labels not in (None, len(names)):
        raise ValueError(f"num_labels is {num_labels}, and there are {len(names)} label_names.")


def build(
    config: EncoderConfig, head: str, *, labels: int = 2, pooling: str | None = None
) -> nn.Module:
    """The model that `load` would make of a configuration, without weights.

    Args:
        config: the encoder's.
        head: one of `HEADS`.
        labels: number of classes, for classification.
        pooling: see `load`.

    Returns:
        A Linen module; call it as `load`'s.

    Raises:
        ValueError: for an unknown head or pooling.

    Example:
        >>> from align_jax.models import BertConfig
        >>> config = BertConfig(vocab_size=9, hidden_size=8, layers=1, heads=2)
        >>> build(config, "classification", labels=3).labels
        3
    """
    check_choice("head", head, HEADS)
    if pooling is not None:
        check_choice("pooling", pooling, POOLINGS)
        if head in UNPOOLED:
            raise ValueError(f"pooling is for heads that classify, got head={head!r}.")
    if head == "encoder":
        return text_encoder(config, pooler=True)
    if head == "span":
        return SpanExtractor(config)
    if head == "multiple_choice":
        return MultipleChoice(config, pooling or "pooler")
    usual = "dense" if model_type(config) == "roberta" else "pooler"
    return SequenceClassifier(config, 1 if head == "regression" else labels, pooling or usual)


def _load_parameters(
    model: nn.Module,
    config: EncoderConfig,
    folder: Path,
    tensors: Tensors,
    *,
    new_head: bool,
    seed: int,
) -> tuple[dict[str, Any], LoadReport]:
    single = reconfigured(model, config, scan_layers=False)
    shapes = parameter_shapes(single)
    place = str(folder)
    found, unused = to_parameters(single, config, shapes, tensors, folder=place, new_head=new_head)
    networks, unused_networks = _load_alignment(folder, shapes)
    fresh = frozenset(shapes) - set(found) - set(networks)
    stacked = has_stack(config)
    if stacked:
        fresh = frozenset(tuple(map(in_stack, path)) for path in fresh)
    # By the model as it is: many layers' own initialisation takes long to compile.
    made = traverse_util.unflatten_dict(fresh_parameters(model, fresh, seed)) if fresh else {}
    if stacked:
        made = unstack_layers(jax.device_get(made))
    flat = {**traverse_util.flatten_dict(made), **found, **networks}
    params = traverse_util.unflatten_dict({path: flat[path] for path in sorted(flat)})
    params = jax.tree.map(jnp.asarray, stack_layers(params) if stacked else params)
    names = tuple(sorted("/".join(path) for path in fresh))
    return params, LoadReport(place, (*unused, *unused_networks), names)


def _load_alignment(
    folder: Path, shapes: Mapping[tuple[str, ...], tuple[int, ...]]
) -> tuple[dict[tuple[str, ...], np.ndarray], tuple[str, ...]]:
    """The alignment networks that `save` wrote beside the model, if the model wants any."""
    path = folder / ALIGNMENT
    wanted = {x for x in shapes if "alignment" in x}
    if not path.is_file() or not wanted:
        return {}, ()
    anew = "elete the file to start with new alignment networks."
    try:
        tensors = {tuple(name.split("/")): x for name, x in read_file(path).items()}
    except PretrainedError as error:
        raise PretrainedError(f"{error} Or d{anew}") from error
    networks = {key: tensors[key].astype(np.float32) for key in wanted & tensors.keys()}
    for key, values in networks.items():
        name = "/".join(key)
        if values.shape != shapes[key]:
            raise PretrainedError(
                f"{path}: {name!r} has shape {values.shape}, expected {shapes[key]}. Pass the "
                f"AlignmentConfig that it was trained with. Or d{anew}"
            )
        if not np.isfinite(values).all():
            raise PretrainedError(f"{path}: {name!r} holds NaN or infinite values. D{anew}")
    return networks, tuple(
        f"{ALIGNMENT}:{'/'.join(key)}" for key in sorted(tensors.keys() - wanted)
    )
