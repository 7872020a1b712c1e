"""How answers to questions about pictures are compared: normal form, soft score, accuracy.

Source: the evaluation of "VQA: Visual Question Answering" (Antol et al., ICCV 2015, arXiv
1505.00468), in the form that it has for VQA v2 (github.com/GT-Vision-Lab/VQA): the spelling of
answers is made alike, and an answer that three of the people asked gave is right.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")

# People leave out one apostrophe of these. "she'd" or "we'll" are not among them: without it, they
# are other words.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""


def _contractions(words: Sequence[str]) -> dict[str, str]:
    """Each of `words` with any one of its apostrophes left out -> the word."""
    table = {
        word[:place] + word[place + 1 :]: word
        for word in words
        for place, letter in enumerate(word)
        if letter == "'"
    }
    # The official table has this one the wrong way round; scores are compared with published ones.
    return table | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions(_APOSTROPHES.split())


def normalize(answer: str) -> str:
    """The form in which answers are compared, as the official evaluation makes it.

    Punctuation becomes a space, or nothing if it stands beside a space or the answer has a number
    such as 1,000 (then all of the answer's punctuation goes); colons and apostrophes stay, and so
    do full stops before a digit. Lower case; "none" and number words up to ten become digits;
    articles go; apostrophes are put back in contractions.

    Example:
        >>> normalize("The two dogs, dont they?")
        "2 dogs don't they"
    """
    answer = _one_line(answer)
    thousands = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        # Looked up in the answer as it was given: earlier marks may have become spaces.
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if thousands or beside_space else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_score(count: int) -> float:
    """How right an answer is that `count` of the people asked gave: a third each, at most 1."""
    return min(count / 3.0, 1.0)


def score_answers(
    given: Sequence[Sequence[str]], vocabulary: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How right the answers of the vocabulary are to each question.

    Args:
        given: n times what the people asked said, K of them at most.
        vocabulary: the answers to choose from, normalised.

    Returns:
        The answers that were given, as places in the vocabulary, int32 [n, K]; their soft scores,
        float32 [n, K], 0 in the places that are left over; and the answer that most people gave,
        int32 [n], -1 if none of the vocabulary was given; of equals, the first in the vocabulary.

    Example:
        >>> answers, scores, best = score_answers([["Red", "red", "red"]], ["blue", "red"])
        >>> answers.tolist(), scores.tolist(), best.tolist()
        ([[1, 0, 0]], [[1.0, 0.0, 0.0]], [1])
    """
    number = {answer: place for place, answer in enumerate(vocabulary)}
    normal = functools.cache(normalize)  # few answers differ, each is said many times
    shape = (len(given), max(map(len, given), default=0))
    answers, scores = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    best = np.full(len(given), -1, np.int32)
    for row, said in enumerate(given):
        votes = Counter(normal(answer) for answer in said)
        ranked = sorted((-votes[x], number[x]) for x in votes if x in number)
        for column, (minus_count, place) in enumerate(ranked):
            answers[row, column], scores[row, column] = place, soft_score(-minus_count)
        if ranked:
            best[row] = ranked[0][1]
    return answers, scores, best


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official accuracy of one answer.

    Leaving out each of the people asked in turn, the soft score by the others; the mean of these.
    Of ten people, 0, 1, 2, 3 and more who agree give 0, 0.3, 0.6, 0.9 and 1. If all gave the same
    answer, letter for letter, nothing is normalised: such an answer may be a text in the picture.

    Raises:
        ValueError: there are fewer than two answers, so that leaving one out leaves none.

    Example:
        >>> round(vqa_accuracy("Two", ["2", "two"] + ["three"] * 8), 6)
        0.6
    """
    if len(answers) < 2:
        raise ValueError(f"{len(answers)} human answers; expected ten, and at least 2.")
    said = [_one_line(answer) for answer in answers]
    prediction = _one_line(prediction)
    if len(set(said)) > 1:
        said, prediction = [normalize(answer) for answer in said], normalize(prediction)
    agree = said.count(prediction)
    if agree == 0:
        return 0.0
    # Whoever agrees is left out `agree` times; then one fewer agrees.
    total = agree * soft_score(agree - 1) + (len(said) - agree) * soft_score(agree)
    return total / len(said)


def corpus_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean of `vqa_accuracy` over questions, of which there must be one at least.

    Example:
        >>> corpus_accuracy(["yes", "red"], [["yes"] * 10, ["blue"] * 10])
        0.5
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references; expected as many of "
            "the one as of the other, and at least one."
        )
    scores = [vqa_accuracy(*pair) for pair in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
