"""What a report is made of, before it becomes a page or a text."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row heads it."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with the sentence below it, and what it shows for those who do not see it."""

    name: str  # of its file, without the ending
    png: bytes
    width: int  # at which it is shown, in CSS pixels
    alt: str
    caption: str


@dataclasses.dataclass
class Section:
    """A part of a chapter, in this order; `missing` says what could not be shown, and why."""

    title: str
    text: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    sentences: list[str] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    folded: bool = False  # closed until someone opens it
    printed: bool = False  # its tables and sentences are for a README too


@dataclasses.dataclass
class Chapter:
    """One study, under a title that no other in the report has."""

    title: str
    facts: list[tuple[str, str]]  # names and values of what made its numbers
    sections: list[Section]
    summary: str = ""  # what came out, in a few sentences
