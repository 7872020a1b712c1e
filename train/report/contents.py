"""What a report is made of, before it becomes a page or a text."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: what it shows.
        columns: their headings.
        rows: of as many cells; the first one heads its row.
        note: what to know about it.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        name: of its file, without the ending.
        png: its bytes.
        width: at which it is shown, in CSS pixels.
        alt: what it shows, for those who do not see it.
        caption: below it.
    """

    name: str
    png: bytes
    width: int
    alt: str
    caption: str


@dataclasses.dataclass
class Section:
    """A part of a chapter.

    Attributes:
        title: its heading.
        text: what it is about.
        tables: first.
        sentences: then, as a list.
        pictures: then.
        missing: what could not be shown, and why.
        folded: whether it is closed until someone opens it.
        printed: whether its tables and sentences are for a README too.
    """

    title: str
    text: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    sentences: list[str] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    folded: bool = False
    printed: bool = False


@dataclasses.dataclass
class Chapter:
    """One study.

    Attributes:
        title: its heading; unique in the report.
        facts: (name, value) pairs, what made its numbers.
        sections: its parts.
        summary: what came out, in a few sentences.
    """

    title: str
    facts: list[tuple[str, str]]
    sections: list[Section]
    summary: str = ""
