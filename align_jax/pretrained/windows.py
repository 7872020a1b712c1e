"""Questions with long contexts: overlapping windows, and where each token lies in the context."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from align_jax.pretrained.tokenizer import BUCKETS, Tokenizer, checked_texts


class Windows(NamedTuple):
    """Questions with a window of their context each; W windows, at least one per question.

    Attributes:
        batch: `input_ids`, `attention_mask` and `token_type_ids`, int32 [W, N].
        offsets: int32 [W, N, 2], the characters that a token of the context covers, from and up
            to, counted in the context; (0, 0) for every other token. Without the white space
            around, and with the accents that follow a letter, also where the model reads none.
        in_context: bool [W, N], which tokens are the context's.
        example: int32 [W], which question the window belongs to.

    Example:
        See `encode_windows`.
    """

    batch: dict[str, np.ndarray]
    offsets: np.ndarray
    in_context: np.ndarray
    example: np.ndarray


def encode_windows(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    max_length: int = 384,
    stride: int = 128,
    max_question: int = 64,
    length: int | None = None,
    buckets: Sequence[int] = BUCKETS,
) -> Windows:
    """Tokenises questions with their contexts, a long context in several overlapping windows.

    Args:
        tokenizer: the model's.
        questions: one for each context.
        contexts: what the answers are in.
        max_length: of a window in tokens, question and special tokens included.
        stride: tokens that a window shares with the one before.
        max_question: a question is truncated to so many tokens; white space around it is none.
        length: see `Tokenizer.pad`.
        buckets: see `Tokenizer.pad`.

    Returns:
        The windows, in the order of their questions.

    Raises:
        ValueError: a text is no string, or the settings leave no room for the context to move on.

    Example:
        >>> import os, pathlib, tempfile
        >>> from align_jax.models import BertConfig
        >>> from align_jax.pretrained import load_tokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "ann", "sings", ".", "?"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "vocab.txt").write_text(os.linesep.join(words))
        ...     tokenizer = load_tokenizer(folder, BertConfig(vocab_size=len(words)))
        >>> text = "Ann sings. Who sings?"
        >>> windows = encode_windows(
        ...     tokenizer, ["Who?"], [text], max_length=8, stride=1, max_question=2
        ... )
        >>> windows.example.tolist()  # three windows, of the one question
        [0, 0, 0]
        >>> first, last = windows.offsets[0, windows.in_context[0]][[0, -1]]
        >>> text[first[0] : last[1]]
        'Ann sings.'
    """
    inputs = checked_texts(questions, contexts)
    contexts = [context for _, context in inputs]
    max_length = tokenizer.checked_length(max_length, pair=True)
    special = tokenizer.backend.num_special_tokens_to_add(True)
    room = max_length - special - max_question
    if not 0 <= stride < room or max_question < 1:
        raise ValueError(
            f"max_length {max_length}, less {special} special tokens and a question of up to "
            f"{max_question}, leaves {room} tokens of context per window; stride, which is "
            f"{stride}, must lie in [0, {max(room, 0)}), and max_question be at least 1."
        )
    inputs = [(tokenizer.beginning(question, max_question), text) for question, text in inputs]
    how = {"stride": stride, "strategy": "only_second"}
    with tokenizer.using(max_length, whole_offsets=True, **how) as backend:
        encodings = backend.encode_batch(inputs)
    windows = [window for first in encodings for window in (first, *first.overflowing)]
    batch = tokenizer.pad([tokenizer.tokens(x) for x in windows], length=length, buckets=buckets)

    in_context = np.zeros(batch["input_ids"].shape, bool)
    offsets = np.zeros((*in_context.shape, 2), np.int32)
    counts = [1 + len(first.overflowing) for first in encodings]
    example = np.repeat(np.arange(len(encodings), dtype=np.int32), counts)
    letters = {text: _letters(text) for text in contexts}
    for row, window in enumerate(windows):
        context = np.array([part == 1 for part in window.sequence_ids])
        in_context[row, : len(context)] = context
        found = np.array(window.offsets, np.int32)[context]
        offsets[row, : len(context)][context] = _covered(found, *letters[contexts[example[row]]])
    return Windows(batch, offsets, in_context, example)


def _letters(text: str) -> tuple[np.ndarray, ...]:
    """Of each place: where its white space ends, the last ended before it, its accents end."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    distinct, inverse = np.unique(codes, return_inverse=True)
    signs = [chr(code) for code in distinct.tolist()]
    blank = np.array([sign.isspace() for sign in signs], bool)[inverse]
    accent = np.array([unicodedata.category(sign)[0] == "M" for sign in signs], bool)[inverse]
    size, place = len(codes), np.arange(len(codes) + 1)

    def following(skipped: np.ndarray) -> np.ndarray:
        stops = np.where(np.append(skipped, False), size, place)
        return np.minimum.accumulate(stops[::-1])[::-1]

    word_to = np.maximum.accumulate(np.where(np.append(False, blank), 0, place))
    return following(blank), word_to, following(accent)


def _covered(
    offsets: Int[np.ndarray, "n 2"],
    word_from: np.ndarray,
    word_to: np.ndarray,
    accents_to: np.ndarray,
) -> Int[np.ndarray, "n 2"]:
    """The characters that tokens cover, in order, less white space and plus accents."""
    start, end = offsets.T
    following = np.append(start[1:], len(word_to) - 1)
    start = np.minimum(word_from[start], end)
    end = np.maximum(word_to[end], start)
    # An accent that is a token of its own, or part of the next one, is left to it.
    accents = np.minimum(accents_to[end], np.maximum(following, end))
    return np.stack([start, np.where(end > start, accents, end)], axis=1)
