"""The Python of the documentation runs as it is written, page by page; its links lead somewhere."""

import concurrent.futures
import functools
import json
import pathlib
import re
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax import networks, numerics, pretrained
from tests.pretrained import checkpoints
from tests.pretrained.test_save import CONFIGS, initialised

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / f"{name}.md" for name in ("concepts", "export", "howto", "migration")]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


@functools.cache
def run(page):
    """The names that a page ends up with; each page runs once."""
    names = {}
    run_blocks(page, "python", names)
    return names


def run_blocks(page, language, names, *sections):
    """Runs a page's blocks, or those of the sections with these titles alone."""
    for block in blocks(page, language, *sections):
        run_block(page, block, names)


def blocks(page, language, *sections):
    """The code of a page, or of the sections with these titles alone."""
    text = page.read_text()
    if sections:
        parts = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.M))
        text = "".join(parts[title] for title in sections)
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_block(page, block, names):
    """Runs it in a namespace."""
    exec(compile(block, str(page), "exec"), names)


@pytest.mark.thorough
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(page):
    assert len(run(page)) > 1  # more than what Python itself puts there


@pytest.mark.slow
def test_the_pretrained_example_learns_and_exports(tmp_path, monkeypatch):
    """It is in "py", apart from "python", for it needs weights that a checkout does not install."""
    checkpoints.minilm()
    monkeypatch.chdir(tmp_path)
    names = {}
    run_blocks(DOCS / "texts.md", "py", names)
    encoder, batch, labels = names["encoder"], names["batch"], names["labels"]

    @functools.partial(jax.jit, static_argnums=0)
    def loss(model, params):
        logits = model.apply({"params": params}, **batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    exported = pretrained.load("finetuned")
    np.testing.assert_allclose(
        loss(exported.model, exported.params), loss(encoder.model, names["params"]), rtol=1e-5
    )
    assert loss(encoder.model, names["params"]) < 0.8 * loss(encoder.model, encoder.params)


def test_a_model_is_served_over_http(tmp_path, monkeypatch):
    """The page's own server, on a free port, answers as the model does, and names mistakes."""
    pytest.importorskip("tokenizers")
    model, params = initialised(CONFIGS["bert"], "classification", labels=2)
    pretrained.save(tmp_path / "finetuned", model, params, label_names=("bad", "good"))
    checkpoints.write_word_piece(tmp_path / "finetuned")
    monkeypatch.chdir(tmp_path)
    texts = ["The cat sat.", "two dogs ran over hill and dale"]
    names = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), None)
    monkeypatch.setattr("http.server.ThreadingHTTPServer", lambda *_: server)

    def ask(body):
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}", body)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def client():
        good = ask(json.dumps({"texts": texts}).encode())
        bad = [ask(b"{"), ask(b"{}"), ask(b'{"texts": "one"}'), ask(b'{"texts": [1]}')]
        server.shutdown()
        return good, bad

    with server, concurrent.futures.ThreadPoolExecutor() as pool:
        asked = []
        serve = server.serve_forever

        def serve_and_ask():
            server.RequestHandlerClass = names["Answers"]
            asked.append(pool.submit(client))
            serve()

        monkeypatch.setattr(server, "serve_forever", serve_and_ask)
        run_blocks(DOCS / "export.md", "py", names, "Label texts", "Serve a model")
        (status, reply), refused = asked[0].result()
    expected = [answer._asdict() for answer in pretrained.load("finetuned").predict(texts)]
    assert (status, reply) == (200, {"answers": expected})
    assert [status for status, _ in refused] == [400] * 4
    assert all(reply["error"] for _, reply in refused)


@pytest.mark.thorough
def test_the_exports_agree():
    """Its blocks in "py" need PyTorch and flatbuffers, which a checkout may not have."""
    for package in ("torch", "transformers", "flatbuffers"):
        pytest.importorskip(package)
    names = dict(run(DOCS / "export.md"))
    sections = ("Export a model", "Export one program for JAX alone")
    run_blocks(DOCS / "export.md", "py", names, *sections)
    classifier, weights, tokens = (names[n] for n in ("classifier", "weights", "tokens"))
    ours = classifier.apply({"params": weights}, tokens)
    np.testing.assert_allclose(names["theirs"].numpy(), ours, atol=1e-4)
    np.testing.assert_allclose(names["logits"], ours, atol=1e-5)


@pytest.mark.thorough
def test_the_recipes_align_what_they_say():
    """Every group of parameters has a gradient, padding takes no part, the critic ascends."""
    names = run(DOCS / "migration.md")
    decoder, params, alignment_loss = (names[n] for n in ("decoder", "params", "alignment_loss"))

    def loss(params, tokens):
        _, sown = decoder.apply({"params": params}, tokens, mutable=["alignment"])
        return alignment_loss(sown)

    cut, padded = np.array([[4, 8, 6]]), np.array([[4, 8, 6, 0]])
    value, gradients = jax.jit(jax.value_and_grad(loss))(params, padded)
    for name in ("query", "key"):
        assert np.abs(gradients["attention_0"][name]["kernel"]).max() > 0
    for network in ("critic", "navigator"):
        assert np.abs(gradients["attention_0"]["alignment"][network]["hidden"]["kernel"]).max() > 0
    np.testing.assert_allclose(value, jax.jit(loss)(params, cut), rtol=1e-5)

    attention = names["attention"]
    x = jax.random.normal(jax.random.key(1), (3, 5, 8))
    found = names["gradients"](attention, x, jnp.ones((3, 5), bool))["alignment"].get_value()
    plain = names["ALIGNMENT"]

    @jax.jit
    def objective(critic):
        """What the critic is to raise: the divergence, less what it pays for its slope."""
        clouds = attention.query(x), attention.key(x)
        params = {**attention.alignment.get_value(), "critic": critic}
        _, sown = plain.apply({"params": params}, *clouds, mutable=["alignment"])
        seen = [(cloud, None) for cloud in numerics.at_unit_scale(*clouds, None, None)]
        slope = networks.gradient_penalty(networks.Critic(10), critic, seen, each_head=True)
        return alignment_loss(sown) - jnp.maximum(slope - 1.0, 0.0).mean()

    critic = attention.alignment.get_value()["critic"]
    step = jax.tree.map(
        lambda p, g: p - 1e-2 * g / np.abs(g).max(), *jax.device_get((critic, found["critic"]))
    )
    assert objective(step) > objective(critic)


def test_the_layout_is_the_tree():
    """It names what is there, and everything at the top of both packages."""
    text = (DOCS / "layout.md").read_text().split("## Folders\n\n")[1].split("\n\n")[0]
    parts = {part.split("/")[0]: part for part in re.split(r"^    (?! )", text, flags=re.M)[1:]}
    for folder in ("align_jax", "train"):
        named = {name.rstrip("/") for name in re.findall(r"\w+(?:\.py\b|/)", parts.pop(folder))}
        there = {path.name for path in (ROOT / folder).rglob("*")} | {folder, "tests"}
        assert named <= there
        top = {path.name for path in (ROOT / folder).iterdir() if "__" not in path.name}
        assert top - {"version.py", "py.typed"} <= named
    assert all((ROOT / name).is_dir() for name in parts)


def anchors(page):
    """What a page's headings are called in its address."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_lead_to_a_page_and_its_heading(page):
    for link in re.findall(r"\]\(([^)]*)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_first_one():
    first = (DOCS / "index.md").read_text()
    missing = [page.stem for page in DOCS.glob("*.md") if f"\n{page.stem}\n" not in first]
    assert missing == ["index"]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_lines_of_prose_are_short(page):
    """Tables and commands may be long."""
    code = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    prose = [line for line in code.splitlines() if not line.startswith(("|", "    ", "!["))]
    assert [line for line in prose if len(line) > 100] == []
