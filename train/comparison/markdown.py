"""Names and sentences in Markdown, as they are: none of it becomes a link, a picture or a tag."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Anywhere in a line, and what only its beginning means something for.
_MARKS = re.compile(r"[\\`*_{}\[\]<>|~$#&]|(?<=:)//|(?<=www)\.", re.IGNORECASE)
_EMAIL = re.compile(r"(?<=\S)@(?=\w)")  # a link of GitHub's dialect, also where it is escaped
_START = re.compile(r"(\d*)([-+=.)])")
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


def literal(text: str) -> str:
    r"""Text that Markdown shows as it is, in one line.

    Example:
        >>> print(literal("1. [x](http://a) <b>"))
        1\. \[x\](http:\//a) \<b\>
    """
    text = cell(text)
    return _START.sub(r"\1\\\2", text, count=1) if _START.match(text) else text


def cell(text: str) -> str:
    r"""Text that a table's cell shows as it is: `literal`, but nothing begins a list or a heading.

    Example:
        >>> print(cell("-0.5"), cell("a|b"))
        -0.5 a\|b
    """
    text = _NO_TEXT.sub("\ufffd", " ".join(text.split()))
    return _EMAIL.sub("@<!-- -->", _MARKS.sub(r"\\\g<0>", text))


def code(text: str) -> str:
    """Text as code, in one line; where it has backticks itself, as `literal` has it.

    Example:
        >>> code("a  *b*")
        '`a *b*`'
    """
    text = _NO_TEXT.sub("\ufffd", " ".join(text.split()))
    return f"`{text}`" if text and "`" not in text else literal(text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, its titles and cells as Markdown: text first, then numbers.

    Example:
        >>> table(["method", "loss"], [["plain", "0.5"]])
        ['| method | loss |', '| --- | ---: |', '| plain | 0.5 |']
    """
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, marks, *rows)]
