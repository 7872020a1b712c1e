"""Saving: what `transformers` makes of the folder, and what loading it back gives."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from align_jax import AlignmentConfig, pretrained, strip_alignment
from align_jax.pretrained.convert import parameter_shapes
from tests.cases import kinds_and_heads, thorough
from tests.pretrained import checkpoints
from tests.pretrained.tiny_models import CONFIGS, initialised

AUTO = {
    "encoder": "AutoModel",
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "multiple_choice": "AutoModelForMultipleChoice",
    "span": "AutoModelForQuestionAnswering",
}


def batch_for(config, head):
    rng = np.random.default_rng(0)
    shape = (3, 2, 12) if head == "multiple_choice" else (3, 12)
    mask = np.arange(12) < rng.integers(4, 13, shape[:-1])[..., None]
    ids = np.where(mask, rng.integers(2, config.vocab_size, shape), config.pad_token_id)
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32)}


def outputs_in_torch(folder, head, batch, **options):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, info = getattr(transformers, AUTO[head]).from_pretrained(
        folder, output_loading_info=True, **options
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], f"{problem}: {info[problem]}"
    with torch.no_grad():
        outputs = model.eval()(**{name: torch.tensor(x).long() for name, x in batch.items()})
    if head == "span":
        return np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()])
    return (outputs.last_hidden_state if head == "encoder" else outputs.logits).numpy()


@functools.cache
def program(model):
    """What a model computes, compiled once for all tests."""
    return jax.jit(model.apply)


def outputs_in_jax(model, params, head, batch):
    outputs = program(model)({"params": params}, **batch)
    return np.asarray(outputs[0] if head == "encoder" else outputs)


def agrees(kind, head, pooling, folder, **options):
    """Saves a model of each kind of head and compares what `transformers` makes of it, twice."""
    config = CONFIGS[kind]
    model, params = initialised(config, head, labels=3, pooling=pooling)
    pretrained.save(folder, model, params)
    batch = batch_for(config, head)
    ours = outputs_in_jax(model, params, head, batch)
    theirs, again = (outputs_in_torch(folder, head, batch, **options) for _ in range(2))
    np.testing.assert_array_equal(theirs, again)
    tokens = batch["attention_mask"].astype(bool)
    if head == "encoder":
        ours, theirs = ours[tokens], theirs[tokens]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("kind", "head"), kinds_and_heads(sorted(CONFIGS), sorted(AUTO)))
def test_transformers_loads_it_and_agrees(kind, head, tmp_path) -> None:
    agrees(kind, head, None, tmp_path)
    assert not list(tmp_path.glob("*.py"))


# What `transformers` has no class for; with the others above, every head and pooling.
OWN = [
    *((kind, head, "mean") for kind in CONFIGS for head in ("classification", "multiple_choice")),
    *((kind, "multiple_choice", "dense") for kind in CONFIGS),
    *(("bert", head, "dense") for head in ("classification", "regression")),
    ("albert", "classification", "dense"),
    ("roberta", "classification", "pooler"),
]
# Each architecture, head and pooling.
FAST = [
    ("bert", "multiple_choice", "mean"), ("roberta", "classification", "mean"),
    ("bert", "regression", "dense"), ("albert", "classification", "dense"),
    ("roberta", "multiple_choice", "dense"), ("roberta", "classification", "pooler"),
]  # fmt: skip


@pytest.mark.fault(
    "An export that `transformers` has no class for is loaded all the same",
    "Its own code is exact; every other class raises, and none makes up layers",
)
@pytest.mark.parametrize(
    ("kind", "head", "pooling"), thorough(OWN, *(x for x in OWN if x not in FAST))
)
def test_what_transformers_has_no_class_for_is_exact_by_its_own_code_or_refused(
    kind, head, pooling, tmp_path
) -> None:
    transformers = pytest.importorskip("transformers")
    agrees(kind, head, pooling, tmp_path, trust_remote_code=True)
    prefix = kind.capitalize()
    tasks = ("Model", "ForSequenceClassification", "ForMultipleChoice", "ForQuestionAnswering")
    names = ["AutoConfig", "AutoModel", AUTO[head], *(prefix + task for task in tasks)]
    for name in names:
        with pytest.raises((ValueError, OSError), match=r"custom code|no file named"):
            getattr(transformers, name).from_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path, head=head)
    assert (loaded.report.unused, loaded.report.fresh) == ((), ())
    assert loaded.model.pooling == pooling


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "head"),
    [("pooler", "classification"), ("mean", "regression"), ("dense", "multiple_choice")],
)
def test_minilm_with_every_head_and_pooling_is_exact_or_refused(pooling, head, tmp_path) -> None:
    """Each of them once; the small models above have the other pairs."""
    transformers = pytest.importorskip("transformers")
    labels = 3 if head == "classification" else None
    start = pretrained.load(checkpoints.minilm(), head=head, num_labels=labels, pooling=pooling)
    pretrained.save(tmp_path, start.model, start.params)
    batch = batch_for(start.config, head)
    own = {} if pooling == "pooler" else {"trust_remote_code": True}
    theirs = outputs_in_torch(tmp_path, head, batch, **own)
    ours = outputs_in_jax(start.model, start.params, head, batch)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    if own:
        with pytest.raises(OSError, match="no file named"):
            transformers.BertForSequenceClassification.from_pretrained(tmp_path)


def test_an_encoder_without_a_pooler_is_not_given_a_random_one(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    model, params = initialised(CONFIGS["bert"], "encoder")
    params = {name: value for name, value in params.items() if name != "pooler"}
    pretrained.save(tmp_path, model.clone(pooler=False), params)
    for name in ("AutoModel", "BertModel"):
        with pytest.raises((ValueError, OSError), match=r"custom code|no file named"):
            getattr(transformers, name).from_pretrained(tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert theirs.pooler is None
    assert pretrained.load(tmp_path, head="encoder").report.fresh == (
        "pooler/bias",
        "pooler/kernel",
    )


def test_a_pipeline_refuses_what_it_would_make_up(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoints.write_word_piece(tmp_path)
    tokenizer = pretrained.load_tokenizer(tmp_path, CONFIGS["bert"])
    model, params = initialised(CONFIGS["bert"], "classification", labels=3, pooling="mean")
    folder = tmp_path / "saved"
    pretrained.save(folder, model, params, tokenizer, label_names=["con", "neutral", "pro"])
    with pytest.raises(ValueError, match="custom code"):
        transformers.pipeline("text-classification", model=str(folder))
    pipe = transformers.pipeline("text-classification", model=str(folder), trust_remote_code=True)
    logits = program(model)({"params": params}, **tokenizer.encode(["the cat sat"]))
    ours = jax.nn.softmax(np.asarray(logits)[0])
    scores = {row["label"]: row["score"] for row in pipe("the cat sat", top_k=None)}
    np.testing.assert_allclose([scores[x] for x in ("con", "neutral", "pro")], ours, atol=1e-4)


def test_what_transformers_saves_of_it_again_loads_in_both(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    model, params = initialised(CONFIGS["bert"], "classification", labels=3, pooling="mean")
    model = model.clone(problem="multi_label_classification")
    pretrained.save(tmp_path / "ours", model, params, label_names=["x", "y", "z"])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", trust_remote_code=True
    )
    theirs.save_pretrained(tmp_path / "theirs")
    again = pretrained.load(tmp_path / "theirs")
    assert again.model.pooling == "mean"
    assert again.model.problem == "multi_label_classification"
    assert again.label_names == ("x", "y", "z")
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    batch = batch_for(CONFIGS["bert"], "classification")
    np.testing.assert_array_equal(
        *(
            outputs_in_torch(tmp_path / name, "classification", batch, trust_remote_code=True)
            for name in ("ours", "theirs")
        )
    )


def test_exports_with_mean_pooling_of_earlier_versions_are_read(tmp_path) -> None:
    model, params = initialised(CONFIGS["bert"], "classification", labels=3, pooling="mean")
    pretrained.save(tmp_path, model, params)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["align_jax_weights"]
    path.write_text(json.dumps({**values, "model_type": "bert"}))
    (tmp_path / "align_jax.safetensors").rename(tmp_path / "model.safetensors")
    loaded = pretrained.load(tmp_path)
    assert loaded.model == model
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_weights_of_an_earlier_model_are_never_taken_for_the_new_ones(tmp_path) -> None:
    pooled, params = initialised(CONFIGS["bert"], "classification", labels=3)
    mean, mean_params = initialised(CONFIGS["bert"], "classification", labels=3, pooling="mean")
    for model, values, file, other in (
        (pooled, params, "model", "align_jax"),
        (mean, mean_params, "align_jax", "model"),
        (pooled, params, "model", "align_jax"),
    ):
        pretrained.save(tmp_path, model, values)
        assert (tmp_path / f"{file}.safetensors").exists()
        assert not (tmp_path / f"{other}.safetensors").exists()
        assert pretrained.load(tmp_path).model == model
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(pretrained.PretrainedError, match=r"holds pytorch_model.bin, another model"):
        pretrained.save(tmp_path, mean, mean_params)
    assert (tmp_path / "model.safetensors").exists()
    (tmp_path / "pytorch_model.bin").unlink()
    pretrained.save(tmp_path, mean, mean_params)
    (tmp_path / "align_jax.safetensors").unlink()
    with pytest.raises(pretrained.PretrainedError, match=r"align_jax.safetensors is missing"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("pooling", ["pooler", "dense", "mean"])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_loading_it_back_is_exact(kind, pooling, tmp_path) -> None:
    model, params = initialised(CONFIGS[kind], "classification", labels=3, pooling=pooling)
    pretrained.save(tmp_path, model, params)
    loaded = pretrained.load(tmp_path)
    assert loaded.model == model
    assert loaded.config == CONFIGS[kind]
    assert (loaded.report.unused, loaded.report.fresh) == ((), ())
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_label_names_and_problem_are_written(tmp_path) -> None:
    model, params = initialised(CONFIGS["bert"], "classification")
    pretrained.save(tmp_path, model, params, label_names=["yes", "no"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "yes", "1": "no"}
    assert config["label2id"] == {"yes": 0, "no": 1}
    assert config["problem_type"] == "single_label_classification"
    model, params = initialised(CONFIGS["bert"], "regression")
    pretrained.save(tmp_path, model, params)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["problem_type"] == "regression"


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_label_names_and_problem_come_back_and_go_on(pooling, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    model, params = initialised(CONFIGS["bert"], "classification", labels=3, pooling=pooling)
    pretrained.save(tmp_path, model, params, label_names=["con", "neutral", "pro"])
    path = tmp_path / "config.json"
    problem = {"problem_type": "multi_label_classification"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **problem}))
    loaded = pretrained.load(tmp_path)
    assert loaded.label_names == ("con", "neutral", "pro")
    for scan_layers in (False, True):
        again = pretrained.load(tmp_path, scan_layers=scan_layers, alignment=AlignmentConfig("ct"))
        pretrained.save(tmp_path / "again", again.model, again.params)
        assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
            path.read_text()
        )
    config = transformers.AutoConfig.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert config.id2label == {0: "con", 1: "neutral", 2: "pro"}
    assert config.problem_type == "multi_label_classification"
    # Another head's classes are others.
    assert pretrained.load(tmp_path, new_head=True).label_names == ()
    assert pretrained.load(tmp_path, new_head=True, num_labels=2).label_names == ()
    assert pretrained.load(tmp_path, head="encoder").label_names == ()
    pretrained.save(tmp_path / "named", loaded.model, loaded.params, label_names=["x", "y", "z"])
    assert pretrained.load(tmp_path / "named").label_names == ("x", "y", "z")


def test_alignment_networks_are_left_out_or_beside(tmp_path) -> None:
    config = dataclasses.replace(CONFIGS["albert"], alignment=AlignmentConfig("ct"))
    model, params = initialised(config, "classification")
    pretrained.save(tmp_path / "plain", model, params)
    pretrained.save(tmp_path / "with", model, params, alignment=True)
    assert not (tmp_path / "plain" / "alignment.safetensors").exists()

    plain = pretrained.load(tmp_path / "with")
    jax.tree.map(np.testing.assert_array_equal, plain.params, strip_alignment(params))
    both = pretrained.load(tmp_path / "with", alignment=AlignmentConfig("ct"))
    jax.tree.map(np.testing.assert_array_equal, both.params, params)
    assert both.report.fresh == ()
    new = pretrained.load(tmp_path / "plain", alignment=AlignmentConfig("ct"))
    assert new.report.fresh
    assert all("alignment" in name.split("/") for name in new.report.fresh)
    other = pretrained.load(tmp_path / "with", alignment=AlignmentConfig("gan"))
    assert all(name.startswith("alignment.safetensors:") for name in other.report.unused)
    pretrained.save(tmp_path / "again", model, params, alignment=True)
    pretrained.save(tmp_path / "again", model, params)
    assert not (tmp_path / "again" / "alignment.safetensors").exists()
    with pytest.raises(pretrained.PretrainedError, match="AlignmentConfig that it was trained"):
        pretrained.load(tmp_path / "with", alignment=AlignmentConfig("ct", features=3))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_folder_is_the_same_whether_layers_are_scanned_or_not(kind, tmp_path) -> None:
    """Loaded, saved and loaded again, with alignment networks; outputs are those of the loop."""
    alignment = AlignmentConfig("ct")
    config = dataclasses.replace(CONFIGS[kind], alignment=alignment)
    model, params = initialised(config, "classification", labels=3)
    pretrained.save(tmp_path / "looped", model, params, alignment=True)
    scanned = pretrained.load(tmp_path / "looped", alignment=alignment, scan_layers=True)
    assert scanned.config == dataclasses.replace(config, scan_layers=True)
    assert (scanned.report.unused, scanned.report.fresh) == ((), ())
    layers = {name for name in scanned.params["encoder"] if name.startswith("layer")}
    assert layers == ({"layer_0"} if kind == "albert" else {"layers"})
    flat = traverse_util.flatten_dict(scanned.params)
    assert {path: x.shape for path, x in flat.items()} == parameter_shapes(scanned.model)
    batch = batch_for(config, "classification")
    looped, again = (
        outputs_in_jax(*pair, "classification", batch)
        for pair in ((model, params), (scanned.model, scanned.params))
    )
    np.testing.assert_allclose(again, looped, atol=1e-5)

    pretrained.save(tmp_path / "scanned", scanned.model, scanned.params, alignment=True)
    for file in ("config.json", "model.safetensors", "alignment.safetensors"):
        first, second = (tmp_path / name / file for name in ("looped", "scanned"))
        assert second.read_bytes() == first.read_bytes()


def test_stripped_parameters_reproduce_the_outputs_exactly(tmp_path) -> None:
    config = dataclasses.replace(CONFIGS["bert"], alignment=AlignmentConfig("gan"))
    model, params = initialised(config, "classification")
    pretrained.save(tmp_path, model, params)
    plain = pretrained.load(tmp_path)
    batch = batch_for(config, "classification")
    np.testing.assert_array_equal(
        *(outputs_in_jax(x, y, "classification", batch)
          for x, y in ((model, params), (plain.model, plain.params)))
    )  # fmt: skip


def test_the_tokenizer_travels_along(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoints.write_word_piece(tmp_path)
    config = CONFIGS["bert"]
    tokenizer = pretrained.load_tokenizer(tmp_path, config)
    model, params = initialised(config, "classification")
    pretrained.save(tmp_path / "saved", model, params, tokenizer)
    batch = tokenizer.encode(checkpoints.TEXTS, checkpoints.PAIRS)
    again = pretrained.load(tmp_path / "saved").tokenizer.encode(
        checkpoints.TEXTS, checkpoints.PAIRS
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")(
        checkpoints.TEXTS, checkpoints.PAIRS, padding="max_length", truncation=True,
        max_length=batch["input_ids"].shape[1], return_tensors="np",
    )  # fmt: skip
    for name, expected in batch.items():
        np.testing.assert_array_equal(again[name], expected)
        np.testing.assert_array_equal(theirs[name], expected)


@pytest.mark.skipif(os.name == "nt", reason="the modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_can_be_read_by_whom_the_umask_allows(umask, tmp_path) -> None:
    config = dataclasses.replace(CONFIGS["bert"], alignment=AlignmentConfig("ct"))
    model, params = initialised(config, "classification", pooling="mean")
    before = os.umask(umask)
    try:
        pretrained.save(tmp_path / "saved", model, params, alignment=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert "alignment.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_weights_that_cannot_be_written_are_an_error_of_the_system(tmp_path) -> None:
    model, params = initialised(CONFIGS["bert"], "classification")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError, match=r"model.safetensors"):
        pretrained.save(tmp_path, model, params)


@pytest.mark.parametrize(
    "folder", ["gs://bucket/model", Path("s3://bucket/model"), "abfs://c@a/x", "file:///tmp/model"]
)
def test_a_url_is_refused_by_name(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pretrained.PretrainedError, match="is a URL; expected a folder of this"):
        pretrained.save(folder, None, {})
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_says_why(tmp_path) -> None:
    model, params = initialised(CONFIGS["bert"], "classification")
    with pytest.raises(pretrained.PretrainedError, match="2 different names"):
        pretrained.save(tmp_path, model, params, label_names=["one"])
    flat = traverse_util.flatten_dict(params)
    flat.pop(("classifier", "bias"))
    with pytest.raises(pretrained.PretrainedError, match="'classifier/bias' is missing"):
        pretrained.save(tmp_path, model, traverse_util.unflatten_dict(flat))
    replicated = jax.tree.map(lambda x: x[None], params)
    with pytest.raises(pretrained.PretrainedError, match="replicated"):
        pretrained.save(tmp_path, model, replicated)
    scanned, _ = initialised(dataclasses.replace(CONFIGS["bert"], scan_layers=True), "encoder")
    with pytest.raises(pretrained.PretrainedError, match="'layer_0/attention/key/bias' is none of"):
        pretrained.save(tmp_path, scanned, params["encoder"])
    with pytest.raises(pretrained.PretrainedError, match="Cannot save a Dense"):
        pretrained.save(tmp_path, nn.Dense(2), {})
