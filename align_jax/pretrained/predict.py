"""Labels for texts: batches of few lengths and sizes, each compiled once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from align_jax.models.heads import SequenceClassifier
from align_jax.pretrained.config import PROBLEMS, numbered_labels, usual_problem
from align_jax.pretrained.tokenizer import Tokenizer, Tokens

REGRESSION, _, MULTI_LABEL = PROBLEMS
FEW_ROWS = (1, 8)  # sizes of the batches that hold no more, so that one text costs little


class Prediction(NamedTuple):
    """What a model says of one text or pair.

    Attributes:
        label: the name of the likeliest class, "LABEL_0" and so on where they have none; None for a
            regression.
        probabilities: of each class, by its name; they sum to 1, or each is on its own where
            several labels may hold at once. Empty for a regression.
        score: the number that a regression predicts, otherwise the label's probability.

    Example:
        >>> Prediction("positive", {"negative": 0.1, "positive": 0.9}, 0.9).label
        'positive'
    """

    label: str | None
    probabilities: dict[str, float]
    score: float


def predict(
    model: nn.Module,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    tokens: Sequence[Tokens],
    batch_size: int,
) -> list[Prediction]:
    """What a model says of tokenised texts: see `Pretrained.predict`, which calls this."""
    if not isinstance(model, SequenceClassifier):
        raise ValueError(
            f"predict() is for classification and regression, got a {type(model).__name__}. Apply "
            "the model to a batch of `tokenizer.encode`."
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1.")
    problem = model.problem or usual_problem(model.labels)
    if problem == REGRESSION and model.labels > 1:
        raise ValueError(
            f"predict() gives one score for each text, and this is a regression of {model.labels}. "
            "Apply the model to a batch of `tokenizer.encode`."
        )
    outputs = np.zeros((len(tokens), model.labels))
    # Texts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place].input_ids))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        few = [rows for rows in FEW_ROWS if len(places) <= rows < batch_size]
        rows = [*places, *[places[0]] * (min(few, default=batch_size) - len(places))]
        batch = tokenizer.pad([tokens[place] for place in rows])
        outputs[places] = np.asarray(_logits(model, params, batch))[: len(places)]
    wrong = np.flatnonzero(~np.isfinite(outputs).all(axis=-1))
    if wrong.size:  # the largest of NaN would be the first class
        raise ValueError(
            f"The model's output for text {wrong[0]} is {outputs[wrong[0]]!s:.60}, which is no "
            "answer: its parameters hold NaN or numbers that are too large. Take those of an "
            "earlier step."
        )
    names = model.label_names or numbered_labels(model.labels)
    return [_prediction(row, names, problem) for row in outputs]


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: nn.Module, params: Mapping[str, Any], batch: dict[str, Any]) -> Any:
    return model.apply({"params": params}, **batch)


def _prediction(logits: np.ndarray, names: Sequence[str], problem: str) -> Prediction:
    if problem == REGRESSION:
        return Prediction(None, {}, float(logits[0]))
    if problem == MULTI_LABEL:
        probabilities = 0.5 * (1.0 + np.tanh(0.5 * logits))  # a sigmoid that does not overflow
    else:
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
    best = int(probabilities.argmax())
    shown = {name: float(p) for name, p in zip(names, probabilities, strict=True)}
    return Prediction(names[best], shown, float(probabilities[best]))
