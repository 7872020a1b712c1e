"""The card: what it says, that nobody's names break it, and that its code runs."""

import dataclasses
import re

import numpy as np
import pytest

from align_jax import AlignmentConfig, pretrained
from align_jax.pretrained.card import MARK, Card, escape
from tests.pretrained import checkpoints
from tests.pretrained.tiny_models import CONFIGS, initialised

BERT = CONFIGS["bert"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    checkpoints.write_word_piece(folder)
    return pretrained.load_tokenizer(folder, BERT)


def saved(folder, head, pooling=None, tokenizer=None, labels=3, **options):
    model, params = initialised(BERT, head, labels=labels, pooling=pooling)
    pretrained.save(folder, model, params, tokenizer, **options)
    return (folder / "README.md").read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("has_tokenizer", [True, pytest.param(False, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("head", "pooling"),
    [
        ("classification", "mean"),
        ("regression", "pooler"),
        ("multiple_choice", "dense"),
        ("span", None),
        ("encoder", None),
    ],
)
def test_its_code_runs_and_agrees(
    head, pooling, has_tokenizer, tokenizer, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    given = tokenizer if has_tokenizer else None
    text = saved(tmp_path / "mine", head, pooling, given, card=Card(pairs=True))
    monkeypatch.chdir(tmp_path)
    names = []
    for block in blocks(text):
        names.append({})
        exec(compile(block, "README.md", "exec"), names[-1])
    flax, torch = names
    for name in {"span": ("start", "end"), "encoder": ("hidden", "pooled")}.get(head, ("logits",)):
        theirs = torch[name].numpy()
        ours = flax[name][:, : theirs.shape[1]]  # ours are padded to one of few lengths
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ("trust_remote_code" in text) == (pooling in ("mean", "dense"))


def test_it_says_what_is_known(tmp_path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = Card(
        name="reviews",
        base_model="sentence-transformers/all-MiniLM-L6-v2",
        data="reviews.csv",
        metrics={"validation": {"accuracy": 0.91234}},
        temperature=1.25,
        alignment=AlignmentConfig("ct", layers=("layer_1",)),
        weight=0.1,
    )
    text = saved(tmp_path, "classification", "mean", label_names=["con", "so", "pro"], card=card)
    read = hub.ModelCard(text)
    assert read.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["align_jax", "jax", "custom_code"],
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
    }
    for line in (
        "# reviews",
        "| Base model | sentence-transformers/all-MiniLM-L6-v2 |",
        "| Training data | reviews.csv |",
        r"| Alignment | ct, weight 0.1, layer\_1 |",
        "| Calibration | divide the logits by 1.25 before the softmax |",
        "| 2 | pro |",
        "| validation | accuracy | 0.9123 |",
    ):
        assert line in text.splitlines()
    # Without anything said there is one too, with what the model shows.
    plain = saved(tmp_path / "plain", "span")
    assert "# plain\n\nA BERT of 2 layers, 2 heads and 16 hidden units that finds" in plain
    assert hub.ModelCard(plain).data.pipeline_tag == "question-answering"
    assert hub.ModelCard(plain).data.base_model is None


@pytest.mark.parametrize(
    "base", ["/home/ann/checkpoints/mine", "./mine", "~/mine", "package:x/y", "a/b/c", "a\n- b"]
)
def test_a_base_model_that_is_none_of_the_hubs_is_not_linked(base, tmp_path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    text = saved(tmp_path, "span", card=Card(base_model=base))
    assert hub.ModelCard(text).data.base_model is None
    assert "/home/ann" not in text  # a card may be published
    assert "| Base model |" in text
    assert ("| x, a Python package |" in text) == (base == "package:x/y")


def test_names_break_neither_markdown_nor_html(tmp_path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    names = ["<script>x</script>", "a|b", "---\n`c` # \ud83d"]
    card = Card(name='"; import os; "', data="[x](javascript:1)", metrics={"a|b": {"<b>": 1.0}})
    text = saved(tmp_path, "classification", label_names=names, card=card)
    assert "<script>" not in text
    assert "<b>" not in text
    assert r"| 1 | a\|b |" in text
    assert r"| 2 | --- \`c\` \# |" in text
    assert r"| Training data | \[x\](javascript:1) |" in text
    assert "import os" not in "".join(blocks(text))
    assert hub.ModelCard(text).data.tags == ["align_jax", "jax"]
    assert pretrained.load(tmp_path).label_names == tuple(names)


def test_escaping_leaves_plain_words_alone() -> None:
    assert escape("two words, 0.5 (è)") == "two words, 0.5 (è)"


def test_of_many_labels_some_are_shown(tmp_path) -> None:
    text = saved(tmp_path, "classification", labels=120)
    assert "| 99 | LABEL\\_99 |" in text
    assert "LABEL\\_100" not in text
    assert "config.json names all 120." in text


def test_a_card_that_somebody_wrote_stays_unless_another_is_given(tmp_path) -> None:
    first = saved(tmp_path, "classification", label_names=["x", "y", "z"])
    assert "| 2 | z |" in first
    assert "| 2 | w |" in saved(tmp_path, "classification", label_names=["x", "y", "w"])
    own = first.replace(MARK, "").replace("# ", "# My ")
    (tmp_path / "README.md").write_text(own, encoding="utf-8")
    assert saved(tmp_path, "classification", label_names=["x", "y", "v"]) == own
    assert "| 2 | u |" in saved(
        tmp_path, "classification", label_names=["x", "y", "u"], card=Card()
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature) -> None:
    with pytest.raises(ValueError, match=rf"temperature is {temperature}; expected a number above"):
        Card(temperature=temperature)


def test_alignment_of_the_model_is_said(tmp_path) -> None:
    config = dataclasses.replace(BERT, alignment=AlignmentConfig("energy"))
    model, params = initialised(config, "span")
    pretrained.save(tmp_path, model, params)
    assert "| Alignment | energy, every layer |" in (tmp_path / "README.md").read_text()
