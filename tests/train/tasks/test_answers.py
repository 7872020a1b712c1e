"""SQuAD's metrics against torchmetrics, and by cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from train.tasks.answers import (
    Answer,
    Answers,
    best_answers,
    exact_match,
    normalize_answer,
    squad_metrics,
    token_f1,
)

PAIRS = [
    ("in the north", ["north of France"]),
    ("The Normans!", ["normans", "the Norse"]),
    ("a 10th century", ["10th centuries", "in the 10th century, and after"]),
    ("Rollo, Rollo", ["Rollo"]),
    ("", ["the"]),
    ("Denmark", ["Iceland"]),
    ("naïve U.S. café", ["US cafe", "naïve US café"]),
]


def says(text: str, margin: float = -1.0) -> Answers:
    return Answers((Answer(text, 0, len(text), 0.0),), margin)


def test_exact_match_and_f1_are_those_of_torchmetrics() -> None:
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    for answer, truths in PAIRS:
        oracle = squad(
            {"prediction_text": answer, "id": "1"},
            {"answers": {"answer_start": [0] * len(truths), "text": truths}, "id": "1"},
        )
        assert 100 * exact_match(answer, truths) == pytest.approx(float(oracle["exact_match"]))
        assert 100 * token_f1(answer, truths) == pytest.approx(float(oracle["f1"]), abs=1e-4)


def test_metrics_of_answerable_questions_are_means() -> None:
    answers = [says(answer) for answer, _ in PAIRS[:4]]
    truths = [right for _, right in PAIRS[:4]]
    # By hand: 0 and 2/5; 1 and 1; 0 and 4/7 (10th, century of "in 10th century and after"); 0, 2/3.
    values = squad_metrics(answers, truths)
    assert values == pytest.approx({"exact": 1 / 4, "f1": (2 / 5 + 1 + 4 / 7 + 2 / 3) / 4})


def test_the_threshold_decides_between_a_span_and_silence() -> None:
    answers = [says("Rollo", -2.0), says("Rollo", 1.0), says("Rollo", 3.0), says("x", -3.0)]
    truths = [["Rollo"], ["Rollo"], [], []]
    values = squad_metrics(answers, truths, unanswerable=True)
    assert values["exact"] == values["f1"] == 2 / 4  # the first and the third
    assert values["answerable_exact"] == values["unanswerable_exact"] == 1 / 2
    # To answer where the margin is at most 1 makes the second right too.
    assert values["best_exact"] == 3 / 4
    assert values["best_exact_threshold"] == 1.0
    refit = squad_metrics(answers, truths, unanswerable=True, null_threshold=1.0)
    assert refit["exact"] == 3 / 4


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    margins = rng.integers(-3, 4, 30).astype(float)  # with ties
    answers = [says("yes" if rng.random() < 0.6 else "no no yes", m) for m in margins]
    truths = [["yes"] if rng.random() < 0.5 else [] for _ in answers]
    values = squad_metrics(answers, truths, unanswerable=True)
    for name in ("exact", "f1"):
        tried = [
            squad_metrics(answers, truths, unanswerable=True, null_threshold=t)[name]
            for t in [-np.inf, *np.unique(margins)]
        ]
        assert values[f"best_{name}"] == pytest.approx(max(tried))
        threshold = values[f"best_{name}_threshold"]
        again = squad_metrics(answers, truths, unanswerable=True, null_threshold=threshold)
        assert again[name] == pytest.approx(values[f"best_{name}"])


def test_without_unanswerable_questions_their_score_is_undefined() -> None:
    values = squad_metrics([says("x")], [["x"]], unanswerable=True)
    assert np.isnan(values["unanswerable_f1"])
    assert values["f1"] == values["answerable_f1"] == 1.0


def test_windows_of_a_question_are_joined() -> None:
    context = "one two three"
    first = np.array([[0, 0], [0, 3], [4, 7]])  # a special token, "one", "two"
    second = np.array([[0, 0], [4, 7], [8, 13]])
    predictions = {
        "id": np.array([0, 0, 1]),
        "window": np.array([0, 1, 2]),
        "null": np.array([-0.5, 0.5, 2.0]),
        "span_start": np.array([[1, 2], [1, 2], [0, 0]]),
        "span_end": np.array([[1, 2], [1, 2], [0, 0]]),
        "span_score": np.array([[3.0, 1.0], [2.0, -1.0], [-np.inf, -np.inf]]),
    }
    joined, silent = best_answers(predictions, [context, ""], [first, second, first[:1]])
    assert [(x.text, x.score) for x in joined.best] == [("one", 3.0), ("two", 2.0), ("three", -1.0)]
    assert joined.null == -0.5
    assert joined.null_margin == -3.5
    assert silent.best == ()
    assert silent.null_margin == np.inf
    chances = joined.probabilities(unanswerable=True)
    assert chances == pytest.approx(np.exp([3, 2, -1, -0.5]) / np.exp([3, 2, -1, -0.5]).sum())
    (only,) = best_answers(predictions, [context, ""], [first, second, first[:1]], n_best=1)[:1]
    assert len(only.best) == 1


def test_normalising() -> None:
    assert normalize_answer(" The U.S.  and an Apple ") == "us and apple"
