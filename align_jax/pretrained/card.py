"""The model card that `save` leaves beside a model: README.md, as the hub shows it."""

from __future__ import annotations

import dataclasses
import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from align_jax.config import AlignmentConfig
from align_jax.models.heads import MultipleChoice, SequenceClassifier, SpanExtractor
from align_jax.models.transformer import EncoderConfig
from align_jax.pretrained.files import PACKAGE

CARD = "README.md"
MARK = "<!-- Written by align_jax: `save` replaces this file as long as this line is in it. -->"
SHOWN = 100  # labels
_POOLED = {
    "mean": "the mean of all tokens but padding",
    "dense": "the first token through a dense layer of the head's own",
    "pooler": "the encoder's pooled first token",
}
# Of each kind of head the hub's name for it, its use, and what code is made of: its class in
# transformers, its inputs, and the names of its outputs here and there.
_HEADS = {
    "classification": {
        "tag": "text-classification", "does": "classifies texts", "texts": '["A sentence."]',
        "reader": "AutoModelForSequenceClassification", "ours": "logits",
        "theirs": "outputs.logits",
    },
    "multiple_choice": {
        "tag": "multiple-choice", "does": "chooses among texts", "ours": "logits",
        "texts": '["A question?"] * 2, ["An answer.", "Another one."]',
        "reader": "AutoModelForMultipleChoice", "theirs": "outputs.logits",
    },
    "span": {
        "tag": "question-answering", "does": "finds the answer to a question in a context",
        "texts": '["Who sings?"], ["Ann sings."]', "reader": "AutoModelForQuestionAnswering",
        "ours": "start, end", "theirs": "outputs.start_logits, outputs.end_logits",
    },
    "encoder": {
        "tag": "feature-extraction", "does": "turns tokens into vectors",
        "texts": '["A sentence."]', "reader": "AutoModel", "ours": "hidden, pooled",
        "theirs": "outputs.last_hidden_state, outputs.pooler_output",
    },
}  # fmt: skip
_KINDS: dict[type[nn.Module], str] = {
    SequenceClassifier: "classification",
    MultipleChoice: "multiple_choice",
    SpanExtractor: "span",
}
_PAIR = '["A sentence."], ["Another one."]'
_FLAX = """\
## In Flax

```python
{imports}from align_jax import pretrained

name = "{place}"  # this folder, or the model's name on the hub
loaded = pretrained.load(name, head="{head}")
batch = {batch}{choices}
{ours} = loaded.model.apply({{"params": loaded.params}}, **batch)
```"""
_TORCH = """\
## In PyTorch{own}

```python
import torch
from transformers import {reader}{auto}

name = "{place}"  # this folder, or the model's name on the hub
model = {reader}.from_pretrained(name{trust}).eval()
batch = {batch}{choices}
with torch.no_grad():
    outputs = model(**batch)
{ours} = {theirs}
```"""
_OWN = """

`transformers` has no class for this model, so the folder holds one of a few lines. Read it:
`trust_remote_code=True` runs it. Nothing else of `transformers` loads the weights."""
_CHOICES = "\nbatch = {key: x[None] for key, x in batch.items()}  # [B, choices, N]"
_STABLEHLO = """\
## In JAX alone

`model.stablehlo` is the whole model with its weights, for any number of texts of any length: token
ids, mask and token types, int32. It takes JAX and the package `flatbuffers`.

```python
import jax.export

with open("{place}/model.stablehlo", "rb") as file:
    program = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
```"""


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model's card says and the model itself does not know; all of it may be left out.

    Attributes:
        name: of the model, and where the card's code loads it from; "" is its folder's name.
        base_model: the checkpoint that it was fine-tuned from. Of a folder only the last part of
            its path is written, for a card may be published.
        data: what it was trained on.
        pairs: whether it takes two texts at a time.
        metrics: what was measured: {"validation": {"accuracy": 0.91}}.
        temperature: what to divide the logits by before the softmax, where one was fitted.
        alignment: what it was trained with; None is the model's own, if it has any.
        weight: of the alignment in the loss.

    Raises:
        ValueError: a temperature that is not above 0.

    Example:
        >>> card = Card(data="MRPC", metrics={"validation": {"accuracy": 0.815}})
        >>> Card(temperature=0.0)
        Traceback (most recent call last):
        ValueError: Card.temperature is 0.0; expected a number above 0, or None.
    """

    name: str = ""
    base_model: str = ""
    data: str = ""
    pairs: bool = False
    metrics: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    temperature: float | None = None
    alignment: AlignmentConfig | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"Card.temperature is {self.temperature}; expected a number above 0, or None."
            )


def may_write(folder: Path) -> bool:
    """Whether the folder has no card, or one that `save` wrote and nobody took over."""
    path = folder / CARD
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")


def card_text(
    model: nn.Module,
    config: EncoderConfig,
    card: Card,
    *,
    folder: str,
    label_names: Sequence[str],
    own_code: bool,
    tokenizer: bool,
    stablehlo: bool,
) -> str:
    """The card, Markdown after a head of YAML; its name is the folder's if it has none."""
    kind = next((name for head, name in _KINDS.items() if isinstance(model, head)), "encoder")
    name = card.name or folder
    front = ["library_name: transformers", f"pipeline_tag: {_HEADS[kind]['tag']}", "tags:"]
    front += [f"- {tag}" for tag in ("align_jax", "jax", *["custom_code"] * own_code)]
    if _on_hub(card.base_model):
        front.append(f'base_model: "{card.base_model}"')
    more = len(label_names) > SHOWN
    metrics = [
        (split, name, f"{value:.4g}")
        for split, values in card.metrics.items()
        for name, value in values.items()
    ]
    sections = [
        "\n".join(["---", *front, "---"]),
        f"{MARK}\n\n# {escape(name)}",
        _what(model, config, kind, len(label_names)),
        _table("", ("", ""), _facts(config, card)),
        _table("Labels", ("number", "name"), enumerate(label_names[:SHOWN]))
        if len(label_names) > 1
        else "",
        f"config.json names all {len(label_names)}." if more else "",
        _table("Metrics", ("split", "metric", "value"), metrics),
        *_use(kind, name, card, own_code=own_code, tokenizer=tokenizer),
    ]
    if stablehlo:
        sections.append(_STABLEHLO.format(place=_place(name)))
    return "\n\n".join(section for section in sections if section) + "\n"


def escape(text: object) -> str:
    r"""A text of the user's as one line of Markdown, which neither it nor HTML takes for marks.

    Example:
        >>> print(escape("<b>|a_b|" + chr(10) + "`c`"))
        &lt;b&gt;\|a\_b\| \`c\`
    """
    kept = "".join(" " if unicodedata.category(x) in ("Cc", "Cs") else x for x in str(text))
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", html.escape(" ".join(kept.split()), quote=False))


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts of the user's; "" without rows."""
    lines = [f"| {' | '.join(map(escape, row))} |" for row in rows]
    rule = f"| {' | '.join(['---'] * len(header))} |"
    start = [f"## {title}\n"] if title else []
    return "\n".join([*start, f"| {' | '.join(header)} |", rule, *lines]) if lines else ""


def _on_hub(name: str) -> bool:
    """Whether it may be a model's name there: the hub refuses a card with any other."""
    parts = name.split("/")
    fine = all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", x) for x in parts)
    return len(parts) <= 2 and fine and not Path(name).exists()


def _what(model: Any, config: EncoderConfig, kind: str, labels: int) -> str:
    family = {"bert": "BERT", "roberta": "RoBERTa"}.get(getattr(config, "family", ""), "ALBERT")
    does = "gives a text a number" if labels == 1 else _HEADS[kind]["does"]
    if kind in ("classification", "multiple_choice"):
        does += f"; it reads {_POOLED[model.pooling]}"
    return (
        f"A {family} of {config.layers} layer{'s' * (config.layers > 1)}, {config.heads} heads and "
        f"{config.hidden_size} hidden units that {does}. Written by align_jax, "
        "alignment attention for JAX and Flax."
    )


def _facts(config: EncoderConfig, card: Card) -> Iterator[tuple[str, str]]:
    if card.base_model:
        base = card.base_model
        local = Path(base).exists() or base.startswith((".", "/", "~"))
        package = base.removeprefix(PACKAGE).partition("/")[0]
        named = f"{package}, a Python package" if base.startswith(PACKAGE) else base
        yield "Base model", Path(base).name if local else named
    if card.data:
        yield "Training data", card.data
    alignment = card.alignment or config.alignment
    if alignment is not None:
        layers = ", ".join(alignment.layers or ()) or "every layer"
        weight = "" if card.weight is None else f", weight {card.weight:g}"
        aligned = alignment.method != "none"
        yield "Alignment", f"{alignment.method}{weight}, {layers}" if aligned else "none"
    if card.temperature is not None:
        yield "Calibration", f"divide the logits by {card.temperature:.6g} before the softmax"


def _place(name: str) -> str:
    """What the model is called in code, which no name may break."""
    return name if re.fullmatch(r"[\w./-]+", name, flags=re.ASCII) else "model"


def _use(kind: str, name: str, card: Card, *, own_code: bool, tokenizer: bool) -> tuple[str, str]:
    head = _HEADS[kind] | {"place": _place(name), "choices": ""}
    several = kind == "multiple_choice"
    if card.pairs and kind == "classification":
        head["texts"] = _PAIR
    trust = ", trust_remote_code=True" if own_code else ""
    if tokenizer:
        head["choices"] = _CHOICES if several else ""
        flax = f"loaded.tokenizer.encode({head['texts']})"
        torch = (
            f"AutoTokenizer.from_pretrained(name{trust})(\n"
            f'    {head["texts"]}, padding=True, truncation=True, return_tensors="pt"\n)'
        )
    else:
        ones = "(1, 2, 8)" if several else "(1, 8)"
        flax = f'{{"input_ids": jnp.ones({ones}, jnp.int32)}}  # there is no tokenizer'
        torch = f'{{"input_ids": torch.ones({ones}, dtype=torch.long)}}'
    imports = "" if tokenizer else "import jax.numpy as jnp\n\n"
    auto = ", AutoTokenizer" if tokenizer else ""
    own = _OWN if own_code else ""
    return (
        _FLAX.format(**head, head=kind, imports=imports, batch=flax),
        _TORCH.format(**head, own=own, auto=auto, trust=trust, batch=torch),
    )
