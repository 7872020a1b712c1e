"""Writes the report: a page that needs nothing besides itself, its tables as Markdown, its PNGs."""

from __future__ import annotations

import base64
import collections
import pathlib
import re
from collections.abc import Callable, Sequence

import jinja2

from train.comparison import markdown
from train.comparison.markdown import code, literal
from train.report import summary
from train.report.attacks import attacks
from train.report.contents import Chapter, Section
from train.report.curves import training
from train.report.gallery import from_models
from train.report.head_maps import head_maps
from train.report.pictures import file_name
from train.report.reliability import reliability
from train.report.runs import Study, config_keys, read_studies
from train.run.folder import CONFIG, METRICS, RESULT, STEP_TIMES, CheckpointError, write_text

PAGE, TEXT = "report.html", "report.md"
TITLE = "Alignment attention: report"
WIDEST = 480  # CSS pixels; a wider picture scrolls on a narrow screen instead of shrinking
LONG = 32  # characters; longer cells of a table are broken into lines


def write_report(
    folders: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    examples: Sequence[int] | None = None,
    overview: Section | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Chapter]:
    """Writes the report on the runs in some folders.

    Args:
        folders: of runs, or of sweeps.
        output: the folder to write to: report.html, report.md and a PNG per picture.
        examples: whose attention is drawn, by their place in the split; None chooses one.
        overview: stands before the experiments.
        say: is told what is being worked on.

    Returns:
        What was written.

    Raises:
        CheckpointError: a folder holds no run, a file in it is damaged, or the output's folder
            holds other things; nothing is written.
    """
    if output.is_dir() and any(output.iterdir()) and not (output / PAGE).exists():
        raise CheckpointError(
            f"{output} is not empty and holds no {PAGE} of an earlier report; nothing was written. "
            f"Name a new or empty folder with --output."
        )
    try:
        studies = read_studies(folders)
        chapters = []
        for title, study in _titled(studies):
            say(title)
            chapters.append(_chapter(title, study, studies, examples))
    # JSON that has been edited can hold anything anywhere.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"The runs in {', '.join(map(str, folders))} cannot be shown: {type(error).__name__}: "
            f"{error}. One of their files ({CONFIG}, {RESULT}, {METRICS}, {STEP_TIMES}) does not "
            "hold what a run writes; undo what was changed in it, or leave the run out."
        ) from error
    output.mkdir(parents=True, exist_ok=True)
    overview = overview or Section("")
    write_text(output / PAGE, to_html(chapters, overview))
    write_text(output / TEXT, to_markdown(chapters, overview))
    for chapter in chapters:
        for picture in (picture for part in chapter.sections for picture in part.pictures):
            (output / f"{file_name(chapter.title)}-{picture.name}.png").write_bytes(picture.png)
    return chapters


def _titled(studies: Sequence[Study]) -> list[tuple[str, Study]]:
    """Each study with a title of its own: several of one name are numbered."""
    seen, titled = collections.Counter[str](), []
    for study in studies:
        seen[study.name] += 1
        number = f" ({seen[study.name]})" if seen[study.name] > 1 else ""
        titled.append((f"{study.name}{number}", study))
    return titled


def _chapter(
    title: str, study: Study, studies: Sequence[Study], examples: Sequence[int] | None
) -> Chapter:
    first, *configuration = summary.configuration(study)
    namesake = next(other for other in studies if other.name == study.name)
    if namesake is not study:
        first.sentences.append(_difference(namesake, study))
    said, results = summary.results(study)
    sections = [
        results,
        summary.beside_the_paper(study),
        *attacks(study),
        training(study),
        *head_maps(study),
        reliability(study),
        *from_models(study, examples),
        summary.step_times(study),
        first,
        *configuration,
        summary.every_run(study),
    ]
    return Chapter(title, summary.facts(study), sections, said)


def _difference(one: Study, other: Study) -> str:
    there, here = (config_keys(study.values) for study in (one, other))
    keys = [x for x in sorted(there.keys() | here.keys()) if there.get(x) != here.get(x)]
    said = "; ".join(f"{x} {there.get(x)!r} there, {here.get(x)!r} here" for x in keys)
    return f"Differs from the first {one.name} in {said}."


def to_html(chapters: Sequence[Chapter], overview: Section) -> str:
    """The page; everything that comes from files is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    page = environment.get_template("page.html.jinja").render(
        title=TITLE, chapters=chapters, overview=overview, widest=WIDEST, long=LONG
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", page)  # a name with half an emoji is no text


def to_markdown(chapters: Sequence[Chapter], overview: Section) -> str:
    """The tables and sentences, for a README; names from files are shown as they are."""
    lines = [f"# {TITLE}", "", *_section_lines(overview)]
    for chapter in chapters:
        lines += [f"## {literal(chapter.title)}", ""]
        lines += [literal(chapter.summary), ""] if chapter.summary else []
        for name, value in chapter.facts:
            shown = code(value) if name == "Command" else literal(value)
            lines.append(f"- {literal(name)}: {shown}")
        lines.append("")
        for part in chapter.sections:
            if part.printed:
                lines += [f"### {literal(part.title)}", "", *_section_lines(part)]
    return "\n".join(lines)


def _section_lines(part: Section) -> list[str]:
    lines = [literal(part.text), ""] if part.text else []
    for table in part.tables:
        head, *rows = (list(map(markdown.cell, row)) for row in (table.columns, *table.rows))
        lines += [literal(table.caption), "", *markdown.table(head, rows), ""]
    said = [*part.sentences, *part.missing]
    lines += [f"- {literal(sentence)}" for sentence in said]
    return [*lines, ""] if said else lines
