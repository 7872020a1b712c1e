"""The report's tables and sentences, out of made-up results."""

from __future__ import annotations

import pytest

from tests.train.report.studies import write_run
from train.report import summary
from train.report.runs import read_studies

PLAIN, CT = (0.80, 0.70, 0.90), (0.81, 0.709, 0.911)


@pytest.fixture
def study(tmp_path, tiny_config):
    """Three seeds each, under the name of an experiment of the paper; one run is not finished."""
    config = tiny_config("none").copy_and_resolve_references()
    config.name = "planetoid-cora"
    for seed, (plain, ct) in enumerate(zip(PLAIN, CT, strict=True)):
        write_run(tmp_path, config, "none", seed, {"test": {"accuracy": plain, "ece": 0.1}})
        metrics = {"test": {"accuracy": ct, "ece": 0.1}}
        write_run(tmp_path, config, "ct", seed, metrics, alignment=0.5)
    write_run(tmp_path, config, "gan", 0, records=[{"step": 4, "split": "train"}])
    return read_studies([tmp_path])[0]


def rows(section, number=0):
    table = section.tables[number]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_results_are_means_deviations_and_what_is_noise(study) -> None:
    _, section = summary.results(study)
    found = rows(section)
    assert found["plain"]["test accuracy"] == "0.8000 ± 0.1000"
    assert found["CT"]["test accuracy"] == "0.8100 ± 0.1010"
    assert found["plain"]["divergence"] == "-"
    accuracy, ece = section.sentences
    assert accuracy.startswith("CT, test accuracy: +0.0100 over plain")
    assert accuracy.endswith("more than noise.")
    assert ece.endswith("within noise.")
    assert section.missing == ["GAN, seed 0, is not finished (step 4 of 6): it is in no table."]


def test_the_summary_says_what_is_best_and_whether_keys_and_queries_were_aligned(study) -> None:
    said, _ = summary.results(study)
    assert said == (
        "Compared on planetoid-cora: plain, CT. CT is best by test accuracy (0.8100 ± 0.1010), "
        "+0.0100 over plain: more than noise."
    )
    for method, distance in (("none", 0.2), ("ct", 0.09)):
        for run in study.runs[method].values():
            run.result["scale_free_mmd"] = distance
            run.result["metrics"]["test"]["accuracy"] = 0.5
    said, _ = summary.results(study)
    assert "plain and CT are equal by test accuracy (0.5000 ± 0.0000)." in said
    assert said.endswith("by CT: plain 0.200, CT 0.090; 0 is one distribution.")
    study.runs["ct"][0].result["metrics"]["test"]["accuracy"] = 0.47
    said, _ = summary.results(study)
    assert "plain is best by test accuracy (0.5000 ± 0.0000); CT comes next, -0.0100 over" in said
    study.runs["ct"][0].result["scale_free_mmd"] = 0.2  # a mean of more than half
    assert "by none: plain 0.200, CT 0.127" in summary.results(study)[0]


def test_facts_are_command_seeds_and_hardware(study) -> None:
    assert dict(summary.facts(study)) == {
        "Command": "not recorded",
        "Methods": "plain, GAN, CT",
        "Seeds": "0, 1, 2",
        "Hardware": "2 cores of a kind",
    }


def test_the_paper_stands_beside_with_gains_paired_by_seed(study) -> None:
    del study.runs["none"][2]
    found = rows(summary.beside_the_paper(study))
    assert found["plain"]["here"] == "75.00 ± 7.07 (2 seeds)"
    assert found["CT"]["here"] == "81.00 ± 10.10 (3 seeds)"
    assert found["CT"]["gain here"] == "+0.95"
    assert found["CT"]["the paper"] == "83.80 ± 0.3"
    assert found["CT"]["gain in the paper"] == "+0.80"
    assert found["GAN"]["here"] == "no finished run"
    seeds = dict(summary.facts(study))["Seeds"]
    assert seeds == "plain: 0, 1; CT: 0, 1, 2"


def test_what_is_missing_is_said(study) -> None:
    study.values["eval"]["report"] = ["accuracy", "pavpu"]
    del study.runs["none"]
    _, section = summary.results(study)
    assert "pavpu is left out: 3 of the finished runs do not have it." in section.missing
    assert any("no finished plain model" in sentence for sentence in section.missing)
    assert section.sentences == []
    study.runs.pop("ct")
    assert summary.results(study)[1].tables == []
    assert summary.every_run(study).missing == ["No run is finished."]
    study.name = "digits"
    assert summary.beside_the_paper(study).missing == ["The paper has no numbers on digits."]


def test_seeds_that_do_not_pair_up_are_left_out_and_said(study) -> None:
    del study.runs["none"][0]
    accuracy, *_ = summary.results(study)[1].sentences
    assert accuracy.startswith("CT, test accuracy: +0.0100 over plain")
    study.runs["none"] = {9: study.runs["none"][1]}
    _, section = summary.results(study)
    assert any("no seed in common" in sentence for sentence in section.missing)


def test_every_run_and_the_whole_configuration_are_there(study) -> None:
    table = summary.every_run(study).tables[0]
    assert table.columns == ["method", "seed", "steps", "minutes", "test accuracy", "test ece"]
    assert table.rows[1] == ["plain", "1", "6", "0.5", "0.7000", "0.1000"]
    first, whole = summary.configuration(study)
    assert first.tables[0].rows == [["alignment.method", "none", "gan", "ct"]]
    keys = dict(whole.tables[0].rows)
    assert keys["train.steps"] == "6"
    assert keys["alignment.weight"] == "0.1"  # of both methods, where the config says null
