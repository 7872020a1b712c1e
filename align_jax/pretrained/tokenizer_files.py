"""Tokenizers out of a checkpoint's files: tokenizer.json, or what came before it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align_jax.models.transformer import EncoderConfig
from align_jax.pretrained.errors import PretrainedError, require
from align_jax.pretrained.files import TOKENIZERS
from align_jax.pretrained.tokenizer import Tokenizer
from align_jax.pretrained.tokenizer_settings import Settings, add_tokens, agreeing_json, check_roles


def tokenizer_files(folder: Path) -> tuple[str, ...] | None:
    """The files of a tokenizer that the folder holds, if it holds one."""
    return next((x for x in TOKENIZERS if all((folder / file).is_file() for file in x)), None)


def load_tokenizer(folder: str | os.PathLike[str], config: EncoderConfig) -> Tokenizer:
    """The tokenizer in a checkpoint's folder.

    Args:
        folder: with tokenizer.json; or with vocab.txt (WordPiece), vocab.json and merges.txt
            (byte-level BPE) or spiece.model (SentencePiece), which are read with the settings of
            BERT, RoBERTa and ALBERT. What tokenizer_config.json, added_tokens.json and
            special_tokens_map.json beside them say holds as it does in `transformers`.
        config: the model's.

    Returns:
        A `Tokenizer`, which pads and truncates as the model expects.

    Raises:
        PretrainedError: no files, damaged ones, ones that disagree, another class of tokenizer, one
            that pads on the left, or a vocabulary larger than the model's.
        ImportError: the package `tokenizers` is not installed.

    Example:
        >>> import os, pathlib, tempfile
        >>> from align_jax.models import BertConfig
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "ann", "sings", ".", "?"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "vocab.txt").write_text(os.linesep.join(words))
        ...     tokenizer = load_tokenizer(folder, BertConfig(vocab_size=len(words)))
        >>> batch = tokenizer.encode(["Who sings?"], ["Ann."], length=10)
        >>> batch["input_ids"].tolist()
        [[2, 4, 6, 8, 3, 5, 7, 3, 0, 0]]
        >>> batch["token_type_ids"].tolist()
        [[0, 0, 0, 0, 0, 1, 1, 1, 0, 0]]
    """
    folder = Path(folder)
    tk = require("tokenizers", "Reading a tokenizer")
    files = tokenizer_files(folder)
    if files is None:
        sets = " or ".join(" with ".join(x) for x in TOKENIZERS)
        raise PretrainedError(f"{folder} holds no tokenizer: expected {sets}.")
    settings = Settings(folder, files[0])
    read = {
        "tokenizer.json": _from_json,
        "vocab.txt": _word_piece,
        "vocab.json": _byte_level,
        "spiece.model": _sentence_piece,
    }
    try:
        backend = read[files[0]](tk, folder, settings)
        add_tokens(backend, settings)
        backend.encode_special_tokens = settings.flag("split_special_tokens", False)
        if settings.side("padding_side", _direction(backend.padding)) == "left":
            raise PretrainedError(
                f"{folder} says padding_side = 'left'; expected 'right': the models have the "
                "text's first token at position 0. Set it to 'right' in tokenizer_config.json if "
                "the model was trained so, as all of BERT, RoBERTa and ALBERT are published."
            )
        side = settings.side("truncation_side", _direction(backend.truncation))
        return Tokenizer(backend, config, truncation_side=side, usual_length=settings.length())
    except (PretrainedError, KeyboardInterrupt, SystemExit):
        raise
    # The Rust library raises bare Exceptions, and for some damage panics, which is none.
    except BaseException as error:
        raise PretrainedError(
            f"{folder / files[0]} cannot be read as a tokenizer ({error}). Get it anew."
        ) from error


def _direction(settings: Mapping[str, Any] | None) -> str:
    """Where a tokenizer.json truncates or pads."""
    return str((settings or {}).get("direction", "right")).lower()


def _from_json(tk: Any, folder: Path, settings: Settings) -> Any:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    backend = tk.Tokenizer.from_str(agreeing_json(text, settings))
    check_roles(backend, settings)
    return backend


def _word_piece(tk: Any, folder: Path, settings: Settings) -> Any:
    """BERT's: vocab.txt has a token per line."""
    path = folder / "vocab.txt"
    # Split at newlines alone: some tokens are other line separators.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    special = _special_tokens(settings, "[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]")
    backend = tk.Tokenizer(tk.models.WordPiece(vocab, unk_token=special[2]))
    backend.normalizer = tk.normalizers.BertNormalizer(
        lowercase=settings.flag("do_lower_case", True),
        strip_accents=settings.flag("strip_accents", None),
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = tk.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tk.decoders.WordPiece()
    _add_special_tokens(tk, backend, vocab, path, special)
    return backend


def _byte_level(tk: Any, folder: Path, settings: Settings) -> Any:
    """RoBERTa's: byte-level BPE; pairs are <s> A </s></s> B </s>, all of token type 0."""
    path = folder / "vocab.json"
    backend = tk.Tokenizer(tk.models.BPE.from_file(str(path), str(folder / "merges.txt")))
    prefix = settings.flag("add_prefix_space", False)
    backend.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = tk.decoders.ByteLevel()
    vocab = backend.get_vocab()
    special = _special_tokens(settings, "<s>", "</s>", "<unk>", "<pad>", "<mask>")
    _add_special_tokens(tk, backend, vocab, path, special)
    start, end = ((token, vocab[token]) for token in special[:2])
    # By position: the arguments' names differ between versions.
    backend.post_processor = tk.processors.RobertaProcessing(end, start, True, prefix)
    return backend


def _sentence_piece(tk: Any, folder: Path, settings: Settings) -> Any:
    """ALBERT's: a SentencePiece unigram model, on lower-cased text without accents."""
    path = folder / "spiece.model"
    pieces, unknown, character_map = read_sentencepiece(path)
    backend = tk.Tokenizer(tk.models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    steps = [tk.normalizers.Replace("``", '"'), tk.normalizers.Replace("''", '"')]
    if not settings.flag("keep_accents", False):
        steps += [tk.normalizers.NFKD(), tk.normalizers.StripAccents()]
    if settings.flag("do_lower_case", True):
        steps.append(tk.normalizers.Lowercase())
    if character_map:
        steps.append(tk.normalizers.Precompiled(character_map))
    steps += [tk.normalizers.Strip(), tk.normalizers.Replace(tk.Regex(" {2,}"), " ")]
    backend.normalizer = tk.normalizers.Sequence(steps)
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    backend.pre_tokenizer = tk.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = tk.decoders.Metaspace(prepend_scheme=scheme)
    vocab = {piece: number for number, (piece, _) in enumerate(pieces)}
    special = _special_tokens(settings, "[CLS]", "[SEP]", "<unk>", "<pad>", "[MASK]")
    _add_special_tokens(tk, backend, vocab, path, special)
    return backend


def _special_tokens(settings: Settings, *defaults: str) -> tuple[str, ...]:
    """The tokens for a text's start and end, for unknown text, padding and masks."""
    names = ("cls_token", "sep_token", "unk_token", "pad_token", "mask_token")
    return tuple(map(settings.special, names, defaults))


def _add_special_tokens(
    tk: Any, backend: Any, vocab: Mapping[str, int], path: Path, special: tuple[str, ...]
) -> None:
    """Marks special tokens, and puts the first two around texts and pairs as BERT does."""
    missing = [token for token in special[:4] if token not in vocab]
    if missing:
        raise PretrainedError(
            f"{path} lacks {', '.join(missing)}: it is no vocabulary of BERT, RoBERTa or ALBERT."
        )
    known = [token for token in special if token in vocab]
    backend.add_special_tokens([tk.AddedToken(token, normalized=False) for token in known])
    start, end = special[:2]
    backend.post_processor = tk.processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(token, vocab[token]) for token in special[:2]],
    )


# A SentencePiece file is a protocol buffer: fields, each a varint key (number << 3 | wire type) and
# a value (sentencepiece_model.proto of google/sentencepiece). Read by hand, because the package
# that knows the format would be needed for nothing else.
_UNIGRAM = 1  # the kind of a model
_UNKNOWN = 2  # a piece's type


def read_sentencepiece(path: Path) -> tuple[list[tuple[str, float]], int, bytes]:
    """The unigram model in a file.

    Returns:
        The pieces in order, each with its log probability; which of them stands for unknown
        characters; and the compiled normalisation rules, empty for none.
    """
    try:
        pieces, kind, character_map = _parse(path.read_bytes())
    except (LookupError, struct.error, ValueError, TypeError, AttributeError) as error:
        raise PretrainedError(
            f"{path} is no SentencePiece model ({error}). Get it anew."
        ) from error
    if kind != _UNIGRAM:
        raise PretrainedError(
            f"{path} holds a SentencePiece model of type {kind}; expected 1, a unigram model."
        )
    unknown = [number for number, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise PretrainedError(f"{path} has {len(unknown)} pieces for unknown text; expected one.")
    return [(text, score) for text, score, _ in pieces], unknown[0], character_map


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
        if wire not in (0, 1, 2, 5):
            raise ValueError(f"wire type {wire} at byte {at}")
        # A number, or the size of what follows; of two types that size is fixed.
        number, at = _varint(data, at) if wire in (0, 2) else (8 if wire == 1 else 4, at)
        if wire == 0:
            yield key >> 3, number
            continue
        if at + number > len(data):
            raise ValueError(f"field of {number} bytes at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + number]
        at += number


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, seven bits to a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"number too long at byte {at}")
