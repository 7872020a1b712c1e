"""Files of texts as every source reads them: UTF-8, and of JSON nothing that is no text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from train.registry import ConfigError


def read_text(path: Path) -> str:
    """A text file, without the mark that some programs begin UTF-8 with.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8; says at which line.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Of its object, for it has been counted from behind the mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ValueError(f"line {line} is not UTF-8: it has the byte {byte:#04x}") from error


def loads(text: str) -> Any:
    r"""What JSON says.

    Raises:
        ValueError: it is no JSON, nested too deeply, has a number of too many digits, or holds half
            of a surrogate pair: an emoji that was cut in two is no text, and no tokenizer takes it.

    Example:
        >>> loads('["who \\ud83d sings"]')
        Traceback (most recent call last):
        ...
        ValueError: half of a surrogate pair in 'who \ud83d sings'; write \ufffd in its place
    """
    try:
        value = json.loads(text)
        # Only an escape can make one, and most files have none.
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        around = error.object[max(error.start - 20, 0) : error.end + 20].split('"')
        found = next(x for x in around if re.search("[\ud800-\udfff]", x))
        raise ValueError(
            f"half of a surrogate pair in {found!r}; write \\ufffd in its place"
        ) from error
    return value


def read_advised_text(path: Path, advice: str) -> str:
    """A text file that the user was to put there; an error ends with `advice`."""
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). {advice}") from error


def read_json(path: Path, advice: str) -> Any:
    """A JSON file that the user was to put there; an error ends with `advice`."""
    text = read_advised_text(path, advice)
    try:
        return loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}). {advice}") from error


def field(holder: Any, name: str, kind: type, where: str) -> Any:
    """What a JSON object has under a name; True is no number. An error begins with `where`."""
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{where} should have {name!r}, of type {kind.__name__}.")
    return value
