"""Labels for texts: those of `transformers`, in the order of the texts, and no random ones."""

import jax
import numpy as np
import pytest

from align_jax import pretrained
from align_jax.pretrained import Prediction, load
from align_jax.pretrained import predict as module
from tests.pretrained import checkpoints
from tests.pretrained.test_save import CONFIGS, initialised

NAMES = ("bad", "fair", "good")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT classifier with names and a vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    pretrained.save(
        folder, *initialised(CONFIGS["bert"], "classification", labels=3), label_names=NAMES
    )
    checkpoints.write_word_piece(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return load(folder)


def in_torch(folder, texts, pairs):
    """Logits of `transformers`, one text at a time and without padding."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def encode(number):
        pair = None if pairs is None else [pairs[number]]
        settings = {"truncation": True, "max_length": 60, "return_tensors": "pt"}
        return tokenizer([texts[number]], pair, **settings)

    with torch.no_grad():
        logits = [model(**encode(number)).logits.numpy() for number in range(len(texts))]
    return np.concatenate(logits)


@pytest.mark.parametrize("paired", [False, True])
def test_predictions_are_those_of_transformers(paired, folder, encoder):
    texts = [checkpoints.TEXTS[place] for place in (2, 0, 3, 1, 0)]
    pairs = [checkpoints.PAIRS[place] for place in (3, 0, 1, 2, 1)] if paired else None
    logits = in_torch(folder, texts, pairs).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = encoder.predict(texts, pairs, batch_size=3)  # a batch of three, and one of two
    for row, one in zip(expected, found, strict=True):
        assert list(one.probabilities) == list(NAMES)
        np.testing.assert_allclose(list(one.probabilities.values()), row, atol=1e-5)
        assert one.label == NAMES[row.argmax()]
        assert one.score == max(one.probabilities.values())
    assert {one.label for one in found} != {found[0].label}  # else order would prove nothing


def test_sizes_and_lengths_are_few(encoder, monkeypatch):
    shapes = []
    original = module._logits

    def logits(model, params, batch):
        shapes.append(batch["input_ids"].shape)
        return original(model, params, batch)

    monkeypatch.setattr(module, "_logits", logits)
    encoder.predict(["cat"])
    encoder.predict(["cat"] * 5)
    encoder.predict([*checkpoints.TEXTS, *["the cat"] * 7], batch_size=9)
    assert shapes == [(1, 32), (8, 32), (9, 32), (8, 60)]
    assert encoder.predict([]) == []


def test_what_several_labels_and_numbers_mean():
    logits = np.array([-800.0, 0.0, 800.0])
    several = module._prediction(logits, NAMES, "multi_label_classification")
    assert several == Prediction("good", {"bad": 0.0, "fair": 0.5, "good": 1.0}, 1.0)
    one = module._prediction(logits, NAMES, "single_label_classification")
    assert one == Prediction("good", {"bad": 0.0, "fair": 0.0, "good": 1.0}, 1.0)
    number = module._prediction(np.array([2.5]), ("LABEL_0",), "regression")
    assert number == Prediction(None, {}, 2.5)


def test_a_new_head_has_no_answers_until_it_is_trained(folder):
    encoder = load(folder, label_names=("no", "yes"), new_head=True)
    assert encoder.label_names == ("no", "yes")
    with pytest.raises(ValueError, match=r"classifier/bias, classifier/kernel: these are random"):
        encoder.predict(["cat"])
    assert encoder.predict(["cat"], params=encoder.params)[0].label in ("no", "yes")


@pytest.mark.parametrize(("options", "text"), [
    ({"label_names": "ab"}, "expected a sequence of strings"),
    ({"label_names": ("a", "a")}, "names that all differ"),
    ({"label_names": ("a", "b"), "num_labels": 3}, "num_labels is 3, and there are 2"),
    ({"label_names": ("a", "b"), "head": "span"}, "for head='classification', got head='span'"),
])  # fmt: skip
def test_bad_names_are_refused(options, text, folder):
    with pytest.raises(ValueError, match=text):
        load(folder, **options)


def test_what_cannot_be_predicted_is_said(encoder, folder):
    with pytest.raises(ValueError, match="batch_size is 0"):
        encoder.predict(["cat"], batch_size=0)
    with pytest.raises(ValueError, match="put it into a list"):
        encoder.predict("cat")
    with pytest.raises(ValueError, match="sequence of texts, got None"):
        encoder.predict(None)
    with pytest.raises(ValueError, match="There is no tokenizer"):
        load(folder, tokenizer=False).predict(["cat"])
    with pytest.raises(ValueError, match="got a BertEncoder"):
        load(folder, head="encoder").predict(["cat"])


def test_texts_may_come_one_by_one(encoder):
    texts = checkpoints.TEXTS
    assert encoder.predict(text for text in texts) == encoder.predict(texts)


def _wider(params):
    head = {**params["classifier"], "bias": np.zeros(4, np.float32)}
    return {**params, "classifier": head}


@pytest.mark.fault(
    "Parameters of another model, or such as hold NaN, are to predict with",
    "An error that names the parameter, or the text whose answer would be NaN",
)
@pytest.mark.parametrize(("change", "text"), [
    (lambda params: {}, "Your parameters lack classifier/bias"),
    (lambda params: {"params": params}, "either the collections 'params' or all variables"),
    (_wider, r"parameter classifier/bias has shape \(4,\), the model's \(3,\)"),
    (lambda params: {**params, "more": np.ones(3)}, "hold, and the model does not, more"),
    (
        lambda params: jax.tree.map(lambda x: x * np.nan, params),
        "output for text 0 is .*nan.*its parameters hold NaN",
    ),
])  # fmt: skip
def test_parameters_that_give_no_answer_are_refused(change, text, encoder):
    with pytest.raises(ValueError, match=text):
        encoder.predict(["cat"], params=change(encoder.params))


def test_networks_are_not_needed_to_predict_and_do_no_harm(encoder, folder):
    aligned = load(folder, alignment="ct")
    found = aligned.predict(["cat"], params=encoder.params)
    assert found == encoder.predict(["cat"], params=aligned.params)
    assert found[0].label == encoder.predict(["cat"])[0].label
