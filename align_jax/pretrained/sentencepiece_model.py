"""Reading a SentencePiece model file, so far as a tokenizer needs it.

The file is a protocol buffer: fields, each a varint key (number << 3 | wire type) and a value.
Source: sentencepiece_model.proto of google/sentencepiece. Read by hand, because the package that
knows the format would be needed for nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from align_jax.pretrained.errors import PretrainedError

_UNIGRAM = 1
_UNKNOWN = 2  # a piece's type


class SentencePieces(NamedTuple):
    """A unigram model.

    Attributes:
        scores: the pieces in order, each with its log probability.
        unknown: which piece stands for unknown characters.
        character_map: the compiled normalisation rules; empty for none.
    """

    scores: list[tuple[str, float]]
    unknown: int
    character_map: bytes


def read_sentencepiece(path: Path) -> SentencePieces:
    """The unigram model in a file.

    Raises:
        PretrainedError: the file is damaged, or holds a model of another kind.
    """
    try:
        pieces, model_type, character_map = _parse(path.read_bytes())
    except (LookupError, struct.error, ValueError, TypeError, AttributeError) as error:
        raise PretrainedError(
            f"{path} is no SentencePiece model ({error}). Get it anew."
        ) from error
    if model_type != _UNIGRAM:
        raise PretrainedError(
            f"{path} holds a SentencePiece model of type {model_type}; expected 1, a unigram model."
        )
    unknown = [number for number, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise PretrainedError(f"{path} has {len(unknown)} pieces for unknown text; expected one.")
    return SentencePieces([(text, score) for text, score, _ in pieces], unknown[0], character_map)


def _parse(data: bytes) -> tuple[list[tuple[str, float, int]], int, bytes]:
    pieces, model_type, character_map = [], _UNIGRAM, b""
    for number, value in _fields(data):
        if number == 1:  # a piece: 1 text, 2 score, 3 type
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            pieces.append((piece[1].decode(), score, piece.get(3, 1)))
        elif number == 2:  # how it was trained: 3 kind of model
            model_type = dict(_fields(value)).get(3, _UNIGRAM)
        elif number == 3:  # normalisation: 2 compiled rules
            character_map = dict(_fields(value)).get(2, b"")
    if not pieces:
        raise ValueError("no pieces")
    return pieces, model_type, character_map


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"field of {size} bytes at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"number too long at byte {at}")
