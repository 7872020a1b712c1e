"""The words of questions about pictures, and their ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PADDING, UNKNOWN = 0, 1  # words' ids
SPECIAL_WORDS = ("[padding]", "[unknown]")
_SPELLING = str.maketrans({**dict.fromkeys(".,'!?\"()*#:;", ""), "-": " ", "/": " "})


def question_words(text: str) -> list[str]:
    """The words of a question: lower case, without punctuation, cut at hyphens and slashes.

    Example:
        >>> question_words("What's the red/blue T-shirt's size?")
        ['whats', 'the', 'red', 'blue', 't', 'shirts', 'size']
    """
    return text.lower().translate(_SPELLING).split()


def encode_words(texts: Sequence[str], words: Sequence[str], length: int) -> np.ndarray:
    """Questions as ids of words.

    A question without any word reads as one unknown word: attention over nothing is undefined.

    Args:
        texts: n questions.
        words: by id, the two special ones first.
        length: N; longer questions lose their end.

    Returns:
        int32 [n, N], padded with 0.
    """
    special = len(SPECIAL_WORDS)
    number = {word: place for place, word in enumerate(words[special:], special)}
    ids = np.full((len(texts), length), PADDING, np.int32)
    for row, text in enumerate(texts):
        found = [number.get(word, UNKNOWN) for word in question_words(text)[:length]] or [UNKNOWN]
        ids[row, : len(found)] = found
    return ids
