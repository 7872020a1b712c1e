"""From the best spans of each window to answers, and SQuAD's exact match and F1.

Source: the metric of Rajpurkar et al. (2016, arXiv 1606.05250, section 6.1), and its treatment of
unanswerable questions in Rajpurkar et al. (2018, arXiv 1806.03822).
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Answer:
    """A span of the context."""

    text: str
    start: int  # its first character, counted in the context
    end: int  # one past the last
    score: float  # sum of the logits of its first and last token


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model says to a question."""

    best: tuple[Answer, ...]  # the best spans, best first; none where the context has no tokens
    null: float  # the score of no answer: that of the first token, smallest over windows

    @property
    def null_margin(self) -> float:
        """By how much "no answer" scores higher than the best span; inf without any span."""
        return self.null - self.best[0].score if self.best else float("inf")

    def probabilities(self, *, unanswerable: bool) -> np.ndarray:
        """Softmax over the scores of `best` and, if there may be no answer, of `null` (last)."""
        scores = np.array([x.score for x in self.best] + [self.null] * unanswerable)
        weights = np.exp(scores - scores.max(initial=-np.inf))
        return weights / weights.sum()


def best_answers(
    predictions: Mapping[str, np.ndarray],
    contexts: Sequence[str],
    offsets: Sequence[np.ndarray],
    n_best: int = 20,
) -> list[Answers]:
    """Joins the windows of each question.

    Args:
        predictions: of W windows, from `SpanExtraction.predictions`.
        contexts: of the questions.
        offsets: of each window, the characters [n, 2] that its tokens cover.
        n_best: spans kept per question. A span found in several windows counts once, at its best.
    """
    spans: list[dict[tuple[int, int], float]] = [{} for _ in contexts]
    null = np.full(len(contexts), np.inf)
    places = [predictions[name] for name in ("span_start", "span_end", "span_score")]
    for row, number in enumerate(predictions["id"]):
        null[number] = min(null[number], float(predictions["null"][row]))
        covers = offsets[predictions["window"][row]]
        for start, end, score in zip(*(place[row] for place in places), strict=True):
            if np.isneginf(score):  # fewer spans than places
                break
            key = (int(covers[start, 0]), int(covers[end, 1]))
            spans[number][key] = max(float(score), spans[number].get(key, -np.inf))
    answers = []
    for found, context, without in zip(spans, contexts, null, strict=True):
        ranked = sorted(found.items(), key=lambda item: -item[1])[:n_best]
        best = tuple(Answer(context[a:b], a, b, score) for (a, b), score in ranked)
        answers.append(Answers(best, float(without)))
    return answers


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space.

    Example:
        >>> normalize_answer("The  Normans' land.")
        'normans land'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1.0 if the answer equals one of the right ones once both are normalised, else 0.0."""
    return float(any(normalize_answer(answer) == normalize_answer(x) for x in truths))


def token_f1(answer: str, truths: Sequence[str]) -> float:
    """F1 of the answer's words against the right answer that they agree with best.

    An empty answer agrees with an empty one alone.

    Example:
        >>> round(token_f1("in the north", ["north of France"]), 3)
        0.4
    """
    return max(_f1(normalize_answer(answer).split(), normalize_answer(x).split()) for x in truths)


def _f1(answer: list[str], truth: list[str]) -> float:
    if not answer or not truth:
        return float(answer == truth)
    common = sum((Counter(answer) & Counter(truth)).values())
    return 2.0 * common / (len(answer) + len(truth))


def squad_metrics(
    answers: Sequence[Answers],
    truths: Sequence[Sequence[str]],
    *,
    unanswerable: bool = False,
    null_threshold: float = 0.0,
) -> dict[str, float]:
    """SQuAD's metrics.

    Args:
        answers: of each question.
        truths: the right answers of each; none where there is no answer.
        unanswerable: whether a model may say that there is no answer (SQuAD 2.0).
        null_threshold: it says so if "no answer" scores higher than the best span by more.

    Returns:
        "exact" and "f1", means over the questions, in [0, 1]. If `unanswerable`, also both of the
        questions with and without an answer ("answerable_f1", "unanswerable_f1", ...; nan where
        there are none of the kind) and both at their best thresholds ("best_f1",
        "best_f1_threshold", ...), which are fitted to these very questions.
    """
    # An answer of punctuation and articles alone is none, unless there is no other.
    golds = [[x for x in right if normalize_answer(x)] or [""] for right in truths]
    spans = [one.best[0].text if one.best else "" for one in answers]
    margins = np.array([one.null_margin for one in answers])
    silent = margins > null_threshold if unanswerable else np.zeros(len(answers), bool)
    given = ["" if quiet else text for text, quiet in zip(spans, silent, strict=True)]

    result = {}
    has_answer = np.array([right != [""] for right in golds])
    for name, score in (("exact", exact_match), ("f1", token_f1)):
        scores = np.array([score(text, right) for text, right in zip(given, golds, strict=True)])
        result[name] = float(scores.mean())
        if not unanswerable:
            continue
        for kind, chosen in (("answerable", has_answer), ("unanswerable", ~has_answer)):
            result[f"{kind}_{name}"] = float(scores[chosen].mean()) if chosen.any() else np.nan
        speaking = np.array([score(text, right) for text, right in zip(spans, golds, strict=True)])
        best, threshold = _best_threshold(speaking, ~has_answer, margins)
        result |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
    return result


def _best_threshold(
    speaking: np.ndarray, silent: np.ndarray, margins: np.ndarray
) -> tuple[float, float]:
    """The best mean score over all thresholds, and the lowest threshold that reaches it.

    Of Q questions, the scores if the model answers (`speaking`) and if it does not (`silent`); it
    answers where `margins` are at most the threshold.
    """
    order = np.argsort(margins, kind="stable")
    gains = np.cumsum((speaking - silent)[order])
    ascending = margins[order]
    # Equal margins fall on the same side of any threshold; without a span it is silent anyway.
    last = np.append(ascending[1:] > ascending[:-1], True) & np.isfinite(ascending)
    totals = np.append(0.0, gains[last]) + silent.sum()
    thresholds = np.append(-np.inf, ascending[last])
    best = int(totals.argmax())
    lowest = np.nextafter(ascending[0], -np.inf) if best == 0 else thresholds[best]
    return float(totals[best] / len(speaking)), float(lowest)
