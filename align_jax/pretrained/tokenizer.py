"""Texts into padded batches of tokens, in few different lengths."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align_jax.models.transformer import EncoderConfig
from align_jax.pretrained.errors import PretrainedError

# Lengths that batches are padded to: each one is one compilation of the model.
BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512)


class Tokens(NamedTuple):
    """One tokenised text or pair, not padded."""

    input_ids: np.ndarray  # int32 [n]
    token_type_ids: np.ndarray  # int32 [n], the segment of each token


class Tokenizer:
    """A tokenizer with the padding, truncation and token types that a model expects.

    Made by `load_tokenizer` or `load`. What a tokenizer's file says of truncation and padding is
    switched off.

    Attributes:
        backend: a `tokenizers.Tokenizer`. Change its settings through a copy only.
        max_length: the longest sequence that the model takes.
        usual_length: longer texts are truncated to it where a call does not say; what the model was
            trained with, `model_max_length` in tokenizer_config.json.
        pad_token_id: what padding is filled with.
        token_types: number of token types of the model; with 1, all are 0.
        truncation_side: "right" where too long a text loses its end, "left" its beginning.

    Raises:
        PretrainedError: it has tokens that the model does not, or adds no special tokens.

    Example:
        See `load_tokenizer`.
    """

    def __init__(
        self,
        backend: Any,
        config: EncoderConfig,
        *,
        truncation_side: str = "right",
        usual_length: int | None = None,
    ) -> None:
        self.backend = backend
        self.max_length = config.max_length
        self.usual_length = min(usual_length or config.max_length, config.max_length)
        self.pad_token_id, self.token_types = config.pad_token_id, config.token_types
        self.truncation_side = truncation_side
        # Truncation is a setting of the backend: two threads must not change it at once.
        self._lock = threading.Lock()
        self._trimming = backend.post_processor
        self._not_trimming = _without_trimming(backend.post_processor)
        backend.no_truncation()
        backend.no_padding()
        largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        largest = max([largest, *backend.encode("").ids])
        if largest >= (size := config.vocab_size):
            raise PretrainedError(
                f"The tokenizer has tokens up to {largest} ({backend.id_to_token(largest)!r}), the "
                f"model an embedding for {size} (up to {size - 1}). They do not belong together: "
                "use the model's own tokenizer."
            )
        if not backend.encode("").ids:
            raise PretrainedError(
                "The tokenizer adds no special tokens to a text, so an empty one would have no "
                "tokens at all. Use a tokenizer made for BERT, RoBERTa or ALBERT."
            )

    def tokenize(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> list[Tokens]:
        """Tokenises texts or pairs; where too long, the longer of a pair loses tokens first.

        Args:
            texts: the texts, or the first of each pair.
            pairs: the second of each pair.
            max_length: in tokens, special ones included; None takes `usual_length`.

        Returns:
            One entry per text, to be padded by `pad`.

        Raises:
            ValueError: a text is none, the numbers differ, or max_length is out of range.
            PretrainedError: the tokenizer's file makes it fail on a text.
        """
        inputs = checked_texts(texts, pairs)
        length = self.checked_length(max_length, pair=pairs is not None)
        with self.using(
            length, direction=self.truncation_side, strategy="longest_first"
        ) as backend:
            return [self.tokens(encoding) for encoding in backend.encode_batch_fast(inputs)]

    def pad(
        self,
        tokens: Sequence[Tokens],
        *,
        length: int | None = None,
        buckets: Sequence[int] = BUCKETS,
    ) -> dict[str, np.ndarray]:
        """One batch out of tokenised texts.

        Args:
            tokens: from `tokenize`.
            length: pad to this many tokens; None takes the smallest bucket that holds them all.
            buckets: lengths to choose from; one beyond the model's maximum is lowered to it.

        Returns:
            `input_ids`, `attention_mask` (1 for tokens, 0 for padding) and `token_type_ids`, int32
            [B, N].

        Raises:
            ValueError: no texts, or one that is longer than the length.
        """
        if not tokens:
            raise ValueError("There are no texts to make a batch of.")
        longest = max(len(x.input_ids) for x in tokens)
        if length is None:
            length = bucket_length(longest, buckets, self.max_length)
        if longest > length:
            raise ValueError(
                f"A text has {longest} tokens, more than the length {length} to pad to. Tokenise "
                "with that max_length."
            )
        names = ("input_ids", "attention_mask", "token_type_ids")
        batch = {name: np.zeros((len(tokens), length), np.int32) for name in names}
        batch["input_ids"][:] = self.pad_token_id
        for row, (ids, types) in enumerate(tokens):
            columns: tuple[Any, ...] = (ids, 1, types)
            for array, values in zip(batch.values(), columns, strict=True):
                array[row, : len(ids)] = values
        return batch

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        length: int | None = None,
        buckets: Sequence[int] = BUCKETS,
    ) -> dict[str, np.ndarray]:
        """`tokenize`, then `pad`; arguments, result and errors as theirs."""
        max_length = length if max_length is None else max_length
        tokens = self.tokenize(texts, pairs, max_length=max_length)
        return self.pad(tokens, length=length, buckets=buckets)

    def with_usual_length(self, length: int) -> Tokenizer:
        """The same tokenizer, cutting texts to another length where a call does not say."""
        other = copy.copy(self)
        other.usual_length = self.checked_length(length, pair=False)
        return other

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, for `load_tokenizer` and others."""
        with self._lock:
            text = self.backend.to_str()
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.usual_length,
            "padding_side": "right",
            "truncation_side": self.truncation_side,
            "split_special_tokens": self.backend.encode_special_tokens,
            "model_input_names": ["input_ids", "attention_mask"],
            "pad_token": self.backend.id_to_token(self.pad_token_id),
        }
        if self.token_types > 1:
            settings["model_input_names"].insert(1, "token_type_ids")
        around = self.backend.encode("").tokens
        settings.update(cls_token=around[0], sep_token=around[-1])
        for name, candidates in _SPECIAL.items():
            own = getattr(self.backend.model, name, None)  # WordPiece and BPE know the unknown
            known = [x for x in candidates if self.backend.token_to_id(x) is not None]
            if own or known:
                settings[name] = own or known[0]
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def tokens(self, encoding: Any) -> Tokens:
        """What the backend made of one text, as arrays."""
        types = np.array(encoding.type_ids, np.int32)
        if self.token_types == 1:
            types = np.zeros_like(types)
        return Tokens(np.array(encoding.ids, np.int32), types)

    def beginning(self, text: str, tokens: int) -> str:
        """The text's beginning, of at most so many tokens, without white space around it.

        If it is too long, white space inside becomes a blank: byte-level tokenizers have a token
        for each space.
        """
        text = text.strip(_BLANKS)
        with self.using(whole_offsets=True) as backend:
            encoding = backend.encode(text, add_special_tokens=False)
            if len(encoding.ids) <= tokens:
                return text
            text = _BLANK.sub(" ", text)
            encoding, kept = backend.encode(text, add_special_tokens=False), tokens
            # Again, because half a word, or a letter of several tokens, may be more tokens.
            while len(encoding.ids) > tokens:
                text = text[: encoding.offsets[kept - 1][1] if kept else 0]
                encoding, kept = backend.encode(text, add_special_tokens=False), kept - 1
        return text

    @contextlib.contextmanager
    def using(
        self, length: int | None = None, *, whole_offsets: bool = False, **settings: Any
    ) -> Iterator[Any]:
        """The backend for this thread alone, for the time being.

        Args:
            length: what it truncates to; None truncates nothing.
            whole_offsets: whether offsets are not trimmed. Trimming counts a space off each word
                that begins with one in the vocabulary; where words were split before, and the space
                was put there, that is the word's first letter.
            **settings: how it truncates.
        """
        with self._lock, _clear_errors():
            if whole_offsets:
                self.backend.post_processor = self._not_trimming
            if length is not None:
                self.backend.enable_truncation(length, **settings)
            try:
                yield self.backend
            finally:
                self.backend.no_truncation()
                self.backend.post_processor = self._trimming

    def checked_length(self, max_length: int | None, *, pair: bool) -> int:
        """The length to truncate to, which leaves room for text; None is the usual one."""
        special = self.backend.num_special_tokens_to_add(pair)
        length = self.usual_length if max_length is None else max_length
        whole = isinstance(length, int | np.integer) and not isinstance(length, bool)
        if not (whole and special < length <= self.max_length):
            raise ValueError(
                f"max_length is {length!r}; expected a whole number, more than the {special} "
                f"special tokens and at most {self.max_length}, the model's number of positions."
            )
        return int(length)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """What the backend raises over a text, as an error of ours.

    A regular expression in its file that takes too long makes the Rust library panic, and that is
    no Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise PretrainedError(
            f"The tokenizer fails on a text ({error}). Its tokenizer.json is damaged, or has a "
            "regular expression that this text is too long for: get it anew, or shorten the text."
        ) from error


def _without_trimming(processor: Any) -> Any:
    """A post-processor whose offsets are those of the text that tokens were made of."""
    if processor is None:
        return None
    state = json.loads(processor.__getstate__())
    for step in (state, *state.get("processors", ())):
        if "trim_offsets" in step:
            step["trim_offsets"] = False
    other = copy.copy(processor)
    other.__setstate__(json.dumps(state).encode())
    return other


# White space, and what has no width.
_BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"
_BLANK = re.compile(f"[{re.escape(_BLANKS)}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPECIAL: Mapping[str, tuple[str, ...]] = {
    "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
}


def bucket_length(longest: int, buckets: Sequence[int], limit: int) -> int:
    """The smallest bucket that holds the longest text; the limit where none does."""
    fitting = min((bucket for bucket in buckets if bucket >= longest), default=limit)
    return max(min(fitting, limit), longest)


def checked_texts(texts: Sequence[str], pairs: Sequence[str] | None) -> list[Any]:
    """The texts, or the pairs as tuples; a ValueError if one is none, or the numbers differ."""
    for given in (texts, pairs or ()):
        if isinstance(given, str):
            raise ValueError("Expected a sequence of texts, got one string: put it into a list.")
        if not hasattr(given, "__iter__"):
            raise ValueError(f"Expected a sequence of texts, got {given!r:.60}.")
    # A generator can be gone through once.
    texts, pairs = list(texts), None if pairs is None else list(pairs)
    if pairs is not None and len(texts) != len(pairs):
        raise ValueError(f"{len(texts)} texts and {len(pairs)} second texts: expected as many.")
    for column in (texts, pairs or ()):
        for number, text in enumerate(column):
            if not isinstance(text, str):
                raise ValueError(
                    f"Text {number} is {text!r}, of type {type(text).__name__}; expected a string."
                )
            if not text.isascii() and (half := _SURROGATE.search(text)):
                place = half.start()
                raise ValueError(
                    f"Text {number} holds half of a surrogate pair, {half[0]!r} at character "
                    f"{place} ({text[max(place - 20, 0) : place + 20]!r}), which is no text. Write "
                    "U+FFFD in its place, or read the text's file as what it is."
                )
    return texts if pairs is None else list(zip(texts, pairs, strict=True))
