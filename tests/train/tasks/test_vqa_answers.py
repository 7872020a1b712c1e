"""VQA's normal form and accuracy, by cases worked out by hand from the published rules."""

from __future__ import annotations

import numpy as np
import pytest

from train.tasks.vqa_answers import (
    CONTRACTIONS,
    corpus_accuracy,
    normalize,
    score_answers,
    soft_score,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes", "yes"),
        ("  a\tdog \n", "dog"),
        ("The man and the dog", "man and dog"),
        ("an apple", "apple"),
        ("theater", "theater"),
        # Numbers
        ("none", "0"),
        ("Two", "2"),
        ("ten or eleven", "10 or eleven"),
        ("someone", "someone"),
        # Punctuation: a space inside words, nothing beside a space
        ("t-shirt", "t shirt"),
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("yes, sir-ree", "yes sir ree"),
        ("it is - a-b", "it is ab"),
        ("yes!", "yes"),
        ("1,000", "1000"),
        ("1,000 red-hot", "1000 redhot"),
        ("dog,cat", "dog cat"),
        ("8:00", "8:00"),
        ("U.S.A.", "usa"),
        ("2.5", "2.5"),
        ("2.", "2"),
        ("50%", "50%"),
        # Contractions
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("don't know", "don't know"),
        ("women's", "women's"),
        ("shed", "shed"),
        ("", ""),
        ("The", ""),
    ],
)
def test_normal_forms(answer, normal) -> None:
    assert normalize(answer) == normal


def test_contractions_are_those_with_one_apostrophe_left_out() -> None:
    assert len(CONTRACTIONS) == 114
    for wrong, right in CONTRACTIONS.items():
        if right != "somebodyd":
            assert wrong in [right[:i] + right[i + 1 :] for i, x in enumerate(right) if x == "'"]
    assert CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ows'at"] == CONTRACTIONS["'ow'sat"]
    assert not {"well", "were", "shell", "shed", "id", "ill", "wed", "its"} & set(CONTRACTIONS)


@pytest.mark.parametrize(
    ("agree", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_accuracy_by_how_many_of_ten_agree(agree, accuracy) -> None:
    answers = ["red"] * agree + ["blue"] * (10 - agree)
    assert vqa_accuracy("red", answers) == pytest.approx(accuracy)
    assert vqa_accuracy("red", answers[::-1]) == pytest.approx(accuracy)


def test_accuracy_is_the_mean_over_those_left_out() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["red", "The red.", "Red", "blue", "two"])
    seen = set()
    for _ in range(200):
        said = rng.choice(words[: rng.integers(2, 6)], 10).tolist()
        said[:2] = ["red", "blue"]  # not all the same
        normal = ["red" if "red" in x.lower() else x.replace("two", "2") for x in said]
        shares = [min(1, (normal[:i] + normal[i + 1 :]).count("red") / 3) for i in range(10)]
        seen.add(round(vqa_accuracy("RED!", said), 6))
        assert vqa_accuracy("RED!", said) == pytest.approx(np.mean(shares))
    assert len(seen) > 1


def test_answers_are_normalised_only_where_they_differ() -> None:
    assert vqa_accuracy("two", ["2"] * 9 + ["3"]) == 1.0
    assert vqa_accuracy("the two", ["two"] * 9 + ["3"]) == 1.0
    assert vqa_accuracy("two", ["2"] * 10) == 0.0
    assert vqa_accuracy("t shirt", ["t-shirt"] * 10) == 0.0
    assert vqa_accuracy("NASA", ["NASA"] * 10) == 1.0
    assert vqa_accuracy("nasa", ["NASA"] * 10) == 0.0
    # White space around an answer makes no difference between answers.
    assert vqa_accuracy("nasa", ["NASA", " NASA\n"] * 5) == 0.0
    assert vqa_accuracy(" NASA\n", ["NASA"] * 10) == 1.0
    assert vqa_accuracy("hot dog", ["hot\tdog"] * 10) == 1.0
    assert vqa_accuracy("hot\ndog", ["hot dog"] * 10) == 1.0


def test_accuracy_needs_someone_to_agree_with() -> None:
    with pytest.raises(ValueError, match="1 human answers; expected ten, and at least 2"):
        vqa_accuracy("yes", ["yes"])


def test_corpus_accuracy_is_the_mean_over_questions() -> None:
    references = [["yes"] * 10, ["red"] + ["blue"] * 9, ["2"] * 8 + ["two"] * 2]
    assert corpus_accuracy(["yes", "red", "two"], references) == pytest.approx(2.3 / 3)
    with pytest.raises(ValueError, match="1 predictions and 3 references"):
        corpus_accuracy(["yes"], references)
    with pytest.raises(ValueError, match="0 predictions and 0 references"):
        corpus_accuracy([], [])


def test_soft_scores() -> None:
    assert [soft_score(count) for count in (0, 1, 2, 3, 10)] == [0, 1 / 3, 2 / 3, 1, 1]


def test_scores_of_a_vocabulary() -> None:
    given = [
        ["Blue", "blue.", "the red", "green"] + ["red"] * 3 + ["grey"] * 3,
        ["grey"] * 10,
        ["blue"] * 5 + ["red"] * 5,
    ]
    answers, scores, best = score_answers(given, ["blue", "green", "red"])
    dense = np.zeros((3, 3))
    np.add.at(dense, (np.arange(3)[:, None], answers), scores)
    expected = [[2 / 3, 1 / 3, 1], [0, 0, 0], [1, 0, 1]]
    np.testing.assert_allclose(dense, expected, rtol=1e-6)
    assert best.tolist() == [2, -1, 0]
    assert (answers.dtype, scores.dtype, best.dtype) == (np.int32, np.float32, np.int32)
