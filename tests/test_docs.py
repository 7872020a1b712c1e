"""The Python of the documentation and of the README runs as it is written, page by page."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", DOCS / "howto.md", DOCS / "migration.md"]


@functools.cache
def run(page):
    """The names that a page ends up with; each page runs once."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(page):
    assert len(run(page)) > 1  # more than what Python itself puts there


def test_the_recipes_align_what_they_say():
    """Every group of parameters has a gradient, padding takes no part, the critic ascends."""
    names = run(DOCS / "migration.md")
    decoder, params, alignment_loss = (names[n] for n in ("decoder", "params", "alignment_loss"))

    def loss(params, tokens):
        _, sown = decoder.apply({"params": params}, tokens, mutable=["alignment"])
        return alignment_loss(sown)

    gradients = jax.grad(loss)(params, jnp.array([[5, 9, 3, 7], [4, 8, 6, 2]]))
    for layer in ("attention_0", "attention_1"):
        for name in ("query", "key"):
            assert np.abs(gradients[layer][name]["kernel"]).max() > 0
        for network in ("critic", "navigator"):
            assert np.abs(gradients[layer]["alignment"][network]["hidden"]["kernel"]).max() > 0
    cut, padded = jnp.array([[4, 8]]), jnp.array([[4, 8, 0, 0]])
    np.testing.assert_allclose(loss(params, padded), loss(params, cut), rtol=1e-5)

    attention = names["attention"]
    x = jax.random.normal(jax.random.key(1), (3, 5, 8))
    found = names["gradients"](attention, x, jnp.ones((3, 5), bool))["alignment"].get_value()
    plain = names["ALIGNMENT"]

    def divergence(critic):
        _, sown = plain.apply(
            {"params": {**attention.alignment.get_value(), "critic": critic}},
            attention.query(x), attention.key(x), mutable=["alignment"],
        )  # fmt: skip
        return alignment_loss(sown)

    critic = attention.alignment.get_value()["critic"]
    step = jax.tree.map(lambda p, g: p - 1e-1 * g / jnp.abs(g).max(), critic, found["critic"])
    assert divergence(step) > divergence(critic)
