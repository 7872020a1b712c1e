"""The report on a tiny sweep: one page that needs nothing else, and its command."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re

import matplotlib.image
import pytest

from tests.train.commands import run_quietly
from tests.train.report.studies import write_run
from train.comparison.markdown import literal
from train.report.__main__ import main
from train.report.contents import Chapter, Section, Table
from train.report.page import to_html, to_markdown, write_report
from train.sweep import run_folder, variant


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_config):
    """A plain and an aligned run that are finished, and one that is not."""
    workdir = tmp_path_factory.mktemp("sweep")
    config = tiny_config("none", train__steps=4, eval__every=2)
    for method in ("none", "ct"):
        settings, folder = variant(config, method, 0), run_folder(workdir, method, 0)
        run_quietly(settings, folder)
    write_run(workdir, config, "gan", 0)
    times = {
        name: {"milliseconds": 3.0, "ratio": ratio} for name, ratio in (("none", 1), ("ct", 2))
    }
    (workdir / "step_times.json").write_text(json.dumps(times))
    return workdir


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """The report's folder and its chapter."""
    output = tmp_path_factory.mktemp("report")
    (chapter,) = write_report([runs], output, examples=(0, 10_000))
    return output, chapter


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


def test_the_page_needs_nothing_else(report) -> None:
    output, chapter = report
    page = (output / "report.html").read_text()
    tags = Tags(page).tags
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert not re.search(r"url\(|@import|https?:", page)
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == sum(len(part.pictures) for part in chapter.sections) > 10
    for image in images:
        start, _, data = image["src"].partition(",")
        assert start == "data:image/png;base64"
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))
        assert pixels[..., :3].std() > 0.02
        assert len(image["alt"]) > 20
    assert len(list(output.glob("digits-*.png"))) == len(images)


def test_every_part_of_a_run_is_shown(report) -> None:
    parts = {part.title: part for part in report[1].sections}
    pictures = {title: [x.name for x in part.pictures] for title, part in parts.items()}
    assert pictures["MMD of keys and queries, on validation"] == ["mmd-none", "mmd-ct"]
    assert pictures["Divergence per layer and head, in training"] == ["divergence-ct"]
    assert pictures["Reliability on test"] == ["reliability-none", "reliability-ct"]
    assert pictures["Keys and queries"] == ["clouds-none", "clouds-ct"]
    assert pictures["Attention maps"] == ["attention-0-none", "attention-0-ct"]
    (times,) = parts["Step time"].tables
    assert times.rows == [["plain", "1.00x", "-"], ["CT", "2.00x", "1.44x"]]


def test_numbers_are_those_of_the_runs_and_what_is_missing_is_said(runs, report) -> None:
    output, chapter = report
    result = json.loads((runs / "ct-seed0" / "result.json").read_text())
    accuracy = f"{result['metrics']['test']['accuracy']:.4f}"
    for file in ("report.html", "report.md"):
        text = (output / file).read_text().replace("\\", "")  # of Markdown
        assert accuracy in text
        assert result["hardware"] in text
        assert "GAN, seed 0, is not finished (step 0 of 4)" in text
        assert "The paper has no numbers on digits." in text
    said = [sentence for part in chapter.sections for sentence in part.missing]
    assert any("no example 10000 to draw: validation has 180" in sentence for sentence in said)


def test_what_comes_from_files_is_escaped(tmp_path, tiny_config) -> None:
    config = tiny_config("none").copy_and_resolve_references()
    config.name = "<img src=x onerror=alert(1)> | *"
    metrics = {"test": {"accuracy": 0.5, "ece": 0.1, "<b>": 1.0}}
    write_run(tmp_path / "runs", config, "none", 0, metrics)
    (tmp_path / "runs" / "command.txt").write_text("python <script>")
    write_report([tmp_path / "runs"], tmp_path / "report")
    page = Tags((tmp_path / "report" / "report.html").read_text())
    assert config.name in page.text
    assert "python <script>" in page.text
    assert not {"img", "script", "b"} & {tag for tag, _ in page.tags}
    text = (tmp_path / "report" / "report.md").read_text()
    assert r"## \<img src=x onerror=alert(1)\> \| \*" in text


NAMES = [
    "<script>alert(1)</script>", "[a](javascript:alert(1))", "![b](http://evil/x.png)", "[c]: /d",
    "<http://evil>", "`<b>`", "# one #", "- two", "+ three", "> four", "1. five", "2) six", "---",
    "===", "* * *", "~~~ x", "~~seven~~", "&lt;b&gt; &copy;", "a|b", "\\[e](f)", "__g__", "*h*",
    "i\n\n<img src=x>\n\n- j", "$k$", "``` l", "    m", "<!-- n -->", "\\", "o\ud83d", "p\x00",
]  # fmt: skip


@pytest.mark.fault(
    "Names in a run's files that are Markdown or HTML: links, pictures, tags, tables",
    "The report shows them as they are",
)
@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_every_name_as_it_is(name) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False})
    part = Section(name, name, [Table(name, [name], [[name]])], [name], printed=True)
    chapter = Chapter(name, [(name, name), ("Command", name)], [part])
    text = to_markdown([chapter], Section(""))
    text.encode()
    page = Tags(markdown.render(text))
    allowed = {"h1", "h2", "h3", "ul", "li", "p", "table", "thead", "tbody", "tr", "th", "code"}
    assert {tag for tag, _ in page.tags} <= allowed | {"td"}
    shown = " ".join(name.split()).replace("\ud83d", "\ufffd").replace("\x00", "\ufffd")
    table = f"{shown}\n\n\n{shown}\n"
    assert " ".join(page.text.split()) == " ".join(
        f"Alignment attention: report {shown} {shown}: {shown} Command: {shown} {shown} {shown} "
        f"{shown} {table} {shown}".split()
    )
    to_html([chapter], Section("")).encode()


ADDRESSES = ["see http://evil/x", "HTTPS://evil", "www.evil.com", "ftp://x", "mailto:me@evil.com"]


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_is_no_link(name) -> None:
    """Some of Markdown's dialects make links of what only looks like an address."""
    shown = literal(name)
    assert not re.search(r"://|www\.|@\w", shown, re.IGNORECASE)
    assert shown.replace("\\", "").replace("<!-- -->", "") == name


@pytest.mark.fault(
    "A run's JSON that was edited and is still JSON",
    "The report, predicting, attacks and what starts from it say which file and what is wrong",
)
@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"alignment": 3}), ("config.json", {"seed": []}),
        ("config.json", {"eval": {"final": "x", "report": 1}}), ("config.json", {"name": None}),
        ("result.json", {"metrics": {"test": {"accuracy": "half"}}}),
        ("result.json", {"metrics": {"test": 1}}), ("result.json", {"hardware": 7}),
        ("result.json", {"seconds": None}), ("result.json", {"config": []}),
        ("metrics.jsonl", {"step": 2, "split": "train", "task_loss": "low"}),
        ("metrics.jsonl", {"step": 2, "split": "validation", "mmd_per_head": [1]}),
    ],
)  # fmt: skip
def test_json_that_was_edited_is_an_error_in_one_line(
    file, changes, tmp_path, tiny_config, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, to, **_: to.write(b"x"))
    records = [
        {"step": step, "split": split, "task_loss": 0.5, "mmd_per_head": {"layer_0": [1.0, 2.0]}}
        for step in (2, 4) for split in ("train", "validation")
    ]  # fmt: skip
    metrics = {"test": {"accuracy": 0.5, "ece": 0.1}}
    folder = write_run(tmp_path / "runs", tiny_config("none"), "none", 0, metrics, records)
    path = folder / file
    if file == "metrics.jsonl":
        path.write_text(path.read_text() + json.dumps(changes) + "\n")
    else:
        whole = json.loads(path.read_text())
        path.write_text(json.dumps({**whole, **changes}))
        if file == "config.json":  # or else the result's own copy counts
            (folder / "result.json").unlink()
    status = main([str(tmp_path / "runs"), f"--output={tmp_path / 'report'}"])
    said = capsys.readouterr().err
    assert status == 2 or file == "config.json", said
    if status:
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert str(tmp_path / "runs") in said


def test_a_run_that_cannot_be_restored_is_left_out_with_its_reason(tmp_path, tiny_config) -> None:
    records = [
        {"step": 6, "split": "validation", "scale_free_mmd_per_head": {"layer_0": [1.0, 2.0]}}
    ]
    metrics = {"test": {"accuracy": 0.5, "ece": 0.1}}
    write_run(tmp_path / "runs", tiny_config("none"), "none", 0, metrics, records)
    (chapter,) = write_report([tmp_path / "runs"], tmp_path / "report")
    parts = {part.title: part for part in chapter.sections}
    for title in ("Keys and queries", "Attention maps"):
        (sentence,) = parts[title].missing
        assert "plain, seed 0, is not drawn" in sentence
        assert "holds no checkpoint" in sentence
    assert parts["Reliability on test"].missing == [
        "plain has no record of its confidence on test."
    ]
    assert "Not measured" in parts["Step time"].missing[0]


def test_several_studies_of_one_name_are_told_apart(tmp_path, tiny_config) -> None:
    for folder, steps in (("a", 6), ("b", 7)):
        write_run(tmp_path / folder, tiny_config("none", train__steps=steps), "none", 0)
    _, second = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report")
    assert second.title == "digits (2)"
    said = [sentence for part in second.sections for sentence in part.sentences]
    assert said == ["Differs from the first digits in train.steps 6 there, 7 here."]


def test_the_command_refuses_what_is_no_run_in_one_line(tmp_path, capsys) -> None:
    output = tmp_path / "report"
    assert main([str(tmp_path), f"--output={output}"]) == 2
    assert f"error: {tmp_path} is neither the folder of a run" in capsys.readouterr().err
    assert not output.exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--examples=-1"])
    assert "invalid numbers value: '-1'" in capsys.readouterr().err


def test_a_foreign_folder_is_left_alone(tmp_path, tiny_config, capsys) -> None:
    write_run(tmp_path / "runs", tiny_config("none"), "none", 0)
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    assert main([str(tmp_path / "runs"), f"--output={output}"]) == 2
    assert "nothing was written. Name a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]
