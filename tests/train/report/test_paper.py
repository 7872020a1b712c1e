"""The paper's numbers stand beside metrics that the configs report."""

from __future__ import annotations

import pytest

from train.configs import digits, glue, planetoid, squad, vqa
from train.data.glue import GLUE
from train.report.paper import paper_results

CONFIGS = [
    *(glue.get_config(task) for task in GLUE),
    *(squad.get_config(version) for version in ("v1", "v2")),
    *(planetoid.get_config(data) for data in planetoid.DATASETS),
    *(vqa.get_config(data) for data in ("v2", "easy")),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_every_experiment_of_the_paper_reports_its_metrics(config) -> None:
    found = paper_results(config.name)
    assert found
    for result in found:
        assert result.metric in config.eval.report
        assert result.values["ct"] > result.values["none"]  # as the paper has it throughout


def test_other_models_and_other_data_are_told() -> None:
    (minilm,) = paper_results("glue-mrpc-minilm")
    assert minilm.setting == "MRPC, ALBERT-base-v2"
    assert (minilm.values["none"], minilm.values["ct"]) == (86.5, 88.6)
    assert all("another data set" in result.note for result in paper_results("vqa-easy"))
    assert paper_results(digits.get_config().name) == []


def test_transfer_is_that_of_the_model_that_was_trained() -> None:
    bert = paper_results("transfer-nli", "google-bert/bert-base-uncased")
    roberta = paper_results("transfer-nli", "FacebookAI/roberta-base")
    assert [result.metric for result in bert] == [
        "test/accuracy", "mnli/accuracy", "test/ece", "mnli/ece",
    ]  # fmt: skip
    assert (bert[1].values["ct"], roberta[1].values["ct"]) == (74.23, 79.60)
