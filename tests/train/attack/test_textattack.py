"""TextAttack's recipes on MiniLM's first layers and the real SST-2, in TextAttack's own virtual
environment.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
from typing import Any

import pytest

from tests.conftest import QUICK_FLAGS, ROOT
from tests.train.commands import command
from tests.train.tiny_minilm import write_first_layers
from train.attack.resources import DEBIAN_WORDNET, INSTALL
from train.predict import predict
from train.predictor import restore_predictor

pytestmark = pytest.mark.slow
PYTHON = pathlib.Path(os.environ.get("ALIGN_JAX_ATTACK_PYTHON", ROOT / ".venv-attack/bin/python"))
STOPWORDS = "lib/python3*/site-packages/llama_index/core/_static/nltk_cache"


# Imports TextAttack and all that the command needs, but for its flags, before it answers.
SERVER = """
from train.attack import recipes, records, resources, summary, victim
from tests.train import command_server
resources.import_textattack()
command_server.main()
"""


@pytest.fixture(scope="module")
def run(real_data, tmp_path_factory):
    """A short run on SST-2."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("attacked")
    write_first_layers(folder / "model")
    settings = {
        "alignment.method": "ct", "model.pretrained": folder / "model",
        "data.folder": real_data / "tfds", "data.train_examples": 500, "data.buckets": (32,),
        "data.max_length": 32, "data.batch_size": 8, "optimizer.warmup_steps": 4, "train.steps": 15,
        "train.log_every": 5, "train.checkpoint_every": 0, "eval.every": 0,
        "eval.at_start": False, "eval.during": (), "eval.final": (), "eval.mmd_examples": 0,
    }  # fmt: skip
    trained = command(
        "--config=train/configs/glue.py:sst2,minilm", f"--workdir={folder / 'run'}",
        *(f"--config.{key}={value}" for key, value in settings.items()), forked=True,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def predictor(run):
    """What the run's folder is restored to; it compiles once for all texts."""
    return restore_predictor(run)


@pytest.fixture(scope="module")
def attack(run, tmp_path_factory):
    """Runs the command on the run, with further arguments.

    Importing TextAttack takes longer than an attack, so each command is a fork of a process that
    has imported it already.
    """
    if not PYTHON.exists():
        pytest.skip(f"there is no {PYTHON}. {INSTALL}")
    find = "import importlib.util as u, sys; sys.exit(not u.find_spec('textattack'))"
    if subprocess.run([str(PYTHON), "-c", find], check=False).returncode:
        pytest.skip(f"{PYTHON} has no textattack. {INSTALL}")
    files = [tmp_path_factory.mktemp("streams") / name for name in ("stdin", "stdout", "stderr")]
    files[0].touch()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        for file in files[1:]:
            file.write_text("")
        arguments = (f"--checkpoint={run}", *arguments)
        request = {
            "module": "train.attack", "arguments": arguments, "environment": environment(),
            "files": [str(file) for file in files],
        }  # fmt: skip
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        output, errors = (file.read_text() for file in files[1:])
        return subprocess.CompletedProcess(arguments, status, output, errors)

    with subprocess.Popen(
        [str(PYTHON), "-c", SERVER],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
    ) as server:  # fmt: skip
        yield call  # it ends with its standard input


def environment() -> dict[str, str]:
    data = [str(path) for path in PYTHON.parent.parent.glob(STOPWORDS)]
    given = [os.environ["NLTK_DATA"]] if "NLTK_DATA" in os.environ else []
    own = {"NLTK_DATA": os.pathsep.join(given + data), "XLA_FLAGS": QUICK_FLAGS}
    return os.environ | own


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
def test_outcomes_are_what_the_run_predicts(predictor, attacked, recipe) -> None:
    if recipe == "pwws" and not (DEBIAN_WORDNET / "index.sense").is_file():
        pytest.skip("no WordNet: apt-get install wordnet-base wordnet-sense-index")
    printed, content = attacked(recipe)
    assert "of 4 attacks failed" in printed
    assert content["attacks"] == 4
    assert [x["outcome"] for x in content["examples"]].count("skipped") == content["skipped"]

    data, state = predictor
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
