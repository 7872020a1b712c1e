"""Answering questions by a span of a text, as SQuAD asks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from align_jax.models.heads import SpanLogits
from train.registry import ConfigError
from train.tasks.answers import best_answers, squad_metrics
from train.tasks.base import Batch, Task
from train.tasks.text import TEXT_INPUTS


@dataclasses.dataclass(frozen=True)
class SpanExtraction(Task):
    """The answer's first and last token, each by a softmax over the window's tokens.

    The batch is that of `train.data.squad`; the model returns `SpanLogits`. A window that does not
    hold the answer is trained to point at its first token with both.

    Attributes:
        unanswerable: whether there may be no answer (SQuAD 2.0).
        null_threshold: "no answer" is said where it scores higher than the best span by more.
        n_best: spans kept per window and per question.
        max_answer: longest answer, in tokens.

    Raises:
        ConfigError: a number is out of range.
    """

    inputs: tuple[str, ...] = TEXT_INPUTS
    unanswerable: bool = True
    null_threshold: float = 0.0
    n_best: int = 20
    max_answer: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_best", "max_answer"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; expected 1 or more.")

    def loss(self, outputs: SpanLogits, batch: Batch) -> Float[Array, "B"]:
        """Mean of the cross-entropies of first and last token, in nats; padding has no share."""
        valid = batch["attention_mask"].astype(bool)
        return sum(
            optax.losses.softmax_cross_entropy_with_integer_labels(
                jnp.where(valid, logits, -jnp.inf), batch[name], where=valid
            )
            for name, logits in zip(("start", "end"), outputs, strict=True)
        ) / len(outputs)

    def metrics(self, outputs: SpanLogits, batch: Batch) -> dict[str, Any]:
        """None that are sums over windows: what counts is a question's answer."""
        return {}

    def predictions(self, outputs: SpanLogits, batch: Batch) -> dict[str, Array]:
        """Each window's best spans, and the score of its holding no answer.

        "span_start", "span_end" and "span_score" [B, n_best], best first, -inf where there are no
        more; "null" [B]; "id" and "window" [B].
        """
        position = jnp.arange(outputs.start.shape[1])
        first, last = batch["context"][:, :1], batch["context"][:, 1:]
        inside = (position >= first) & (position <= last)
        score, start, end = best_spans(outputs, inside, self.n_best, self.max_answer)
        null = (outputs.start + outputs.end)[:, 0]
        spans = {"span_start": start, "span_end": end, "span_score": score, "null": null}
        return spans | {name: batch[name] for name in ("id", "window")}

    def corpus_metrics(
        self, predictions: Mapping[str, np.ndarray], references: Any = None
    ) -> dict[str, float]:
        """Exact match and F1 over the split's questions; `references` are `SquadWindows`."""
        answers = best_answers(
            predictions, [x.context for x in references.questions], references.offsets, self.n_best
        )
        return squad_metrics(
            answers,
            [x.answers for x in references.questions],
            unanswerable=self.unanswerable,
            null_threshold=self.null_threshold,
        )


def best_spans(
    logits: SpanLogits, inside: Bool[Array, "B N"], count: int, longest: int
) -> tuple[Float[Array, "B count"], Array, Array]:
    """The spans of the highest sum of start and end logit, exactly.

    Args:
        logits: of first and last token.
        inside: tokens that a span may begin, end and thus consist of.
        count: number of spans.
        longest: number of tokens of the longest span.

    Returns:
        Scores, best first, and first and last tokens; scores are -inf where there are no more.

    Example:
        >>> logits = SpanLogits(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]))
        >>> best_spans(logits, jnp.ones((1, 2), bool), 1, 5)[0].tolist()
        [[3.0]]
    """
    batch, tokens = inside.shape
    longest = min(longest, tokens)
    start, end = (jnp.where(inside, x.astype(jnp.float32), -jnp.inf) for x in logits)
    padded = jnp.pad(end, ((0, 0), (0, longest)), constant_values=-jnp.inf)
    ends = jnp.stack([padded[:, d : d + tokens] for d in range(longest)], axis=-1)
    scores = (start[..., None] + ends).reshape(batch, -1)
    best, index = jax.lax.top_k(scores, min(count, scores.shape[1]))
    missing = count - best.shape[1]  # so that windows of all lengths give arrays of one shape
    best = jnp.pad(best, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    first, extra = jnp.divmod(jnp.pad(index, ((0, 0), (0, missing))), longest)
    return best, first, first + extra
