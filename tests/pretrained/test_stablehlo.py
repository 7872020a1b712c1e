"""One exported program at many shapes, in a process that has JAX alone."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from align_jax import pretrained
from tests.pretrained.test_card import blocks
from tests.pretrained.tiny_models import CONFIGS, initialised

SHAPES = [(1, 3), (4, 17), (2, 58)]
ALONE = """
import sys
import numpy as np
batches = np.load("batches.npz")
for number in range(3):
    outputs = program(*batches[str(number)])
    np.save(f"outputs{number}.npy", np.asarray(outputs))
assert not {"align_jax", "flax", "safetensors", "transformers"} & set(sys.modules)
"""


def batch_of(shape, config):
    """Ids, mask and types, some rows of which are padded."""
    rng = np.random.default_rng(sum(shape))
    mask = np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, shape[:-1])[..., None]
    ids = np.where(mask, rng.integers(5, config.vocab_size, shape), config.pad_token_id)
    types = rng.integers(0, config.token_types, shape)
    return np.stack([ids, mask, types]).astype(np.int32)


@pytest.fixture(scope="module")
def run_alone(tmp_path_factory):
    """Of each kind the model, its parameters, and the outputs of its program in that process."""
    pytest.importorskip("flatbuffers")
    folder, kinds = tmp_path_factory.mktemp("alone"), ("bert", "roberta")
    models, code = {}, "import os\n"
    for kind in kinds:
        config = CONFIGS[kind]
        models[kind] = initialised(config, "classification", labels=3, pooling="mean")
        pretrained.save(folder / kind / "mine", *models[kind], stablehlo=True)
        *_, own = blocks((folder / kind / "mine" / "README.md").read_text())
        code += f"os.chdir({str(folder / kind)!r})\n{own}{ALONE}"
        batches = {str(n): batch_of(shape, config) for n, shape in enumerate(SHAPES)}
        np.savez(folder / kind / "batches.npz", **batches)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return {
        kind: (*models[kind], [np.load(folder / kind / f"outputs{n}.npy") for n in range(3)])
        for kind in kinds
    }


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_cards_two_lines_run_it_at_every_shape_without_this_library(kind, run_alone) -> None:
    model, params, outputs = run_alone[kind]
    apply = jax.jit(model.apply)
    for shape, theirs in zip(SHAPES, outputs, strict=True):
        ours = apply({"params": params}, *batch_of(shape, CONFIGS[kind]))
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(("head", "axes"), [("span", 2), ("multiple_choice", 3), ("encoder", 2)])
def test_each_head_gives_what_its_model_does(head, axes, tmp_path) -> None:
    pytest.importorskip("flatbuffers")
    config = CONFIGS["albert"]
    model, params = initialised(config, head)
    pretrained.export_stablehlo(tmp_path / "program", model, params, platforms=["cpu"])
    batch = batch_of((2, 3, 7)[-axes:], config)
    theirs = pretrained.load_stablehlo(tmp_path / "program")(*batch)
    ours = jax.jit(model.apply)({"params": params}, *batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.tree.leaves(theirs),
        jax.tree.leaves(ours),
    )


def test_a_text_that_is_too_long_and_a_damaged_file_are_refused(tmp_path) -> None:
    pytest.importorskip("flatbuffers")
    path = tmp_path / "program"
    model, params = initialised(CONFIGS["bert"], "span")
    pretrained.export_stablehlo(path, model, params)
    tokens = np.ones((1, 61), np.int32)  # of 60
    with pytest.raises(ValueError, match="shapes"):
        pretrained.load_stablehlo(path)(tokens, tokens, tokens)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(pretrained.PretrainedError, match="cannot be read as StableHLO"):
        pretrained.load_stablehlo(path)


def test_an_earlier_program_does_not_stay_beside_another_model(tmp_path) -> None:
    (tmp_path / "model.stablehlo").touch()
    pretrained.save(tmp_path, *initialised(CONFIGS["bert"], "span"))
    assert not (tmp_path / "model.stablehlo").exists()
    assert "stablehlo" not in (tmp_path / "README.md").read_text()


def test_what_cannot_be_exported_says_why(tmp_path, monkeypatch) -> None:
    pytest.importorskip("flatbuffers")
    model, params = initialised(CONFIGS["bert"], "span")
    for platforms in (["gpu"], []):
        with pytest.raises(ValueError, match=r"platforms is .* expected some of"):
            pretrained.export_stablehlo(tmp_path / "x", model, params, platforms=platforms)
    with pytest.raises(pretrained.PretrainedError, match="Cannot export a dict"):
        pretrained.export_stablehlo(tmp_path / "x", {}, params)
    monkeypatch.setattr("align_jax.pretrained.stablehlo._LIMIT", 1000)
    with pytest.raises(pretrained.PretrainedError, match=r"0.00 GB of weights; a StableHLO file"):
        pretrained.export_stablehlo(tmp_path / "x", model, params)
    assert list(tmp_path.iterdir()) == []


def test_without_flatbuffers_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    model, params = initialised(CONFIGS["bert"], "span")
    with pytest.raises(ImportError, match=r"'flatbuffers': .*\.\[pretrained\]"):
        pretrained.save(tmp_path / "mine", model, params, stablehlo=True)
    assert not (tmp_path / "mine").exists()
