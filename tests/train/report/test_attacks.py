"""Attacks in the report, from the files that they leave in the runs' folders."""

from __future__ import annotations

import json

import pytest

from tests.train.report.studies import write_run
from train.report.attacks import attacks
from train.report.runs import read_studies
from train.run_folder import CheckpointError

METRICS = {"test": {"accuracy": 0.9, "ece": 0.1}}


@pytest.fixture
def runs(tmp_path, tiny_config):
    """Two seeds of each method, attacked."""
    for method, failed in (("none", (10.0, 20.0)), ("ct", (15.0, 25.0))):
        for seed, percent in enumerate(failed):
            folder = write_run(tmp_path, tiny_config("none"), method, seed, METRICS)
            content = {
                "recipe": "bae", "split": "validation", "attacks": 200, "examples": [],
                "failed_percent": percent, "accuracy_under_attack": 5.0, "queries_per_attack": 30.5,
            }  # fmt: skip
            (folder / "attack-bae.json").write_text(json.dumps(content))
    return tmp_path


def test_failed_attacks_are_means_over_seeds_beside_the_paper(runs) -> None:
    (section,) = attacks(read_studies([runs])[0])
    (table,) = section.tables
    plain, ct = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert plain["failed attacks, %"] == "15.0 ± 7.1 (2 seeds)"
    assert (ct["attacks"], ct["seeds"]) == ("200 + 200", "0, 1")
    assert (plain["the paper, %"], ct["the paper, %"]) == ("29.6", "31.0")
    (sentence,) = section.sentences
    assert sentence.startswith("bae: CT, failed attacks, %: +5.0000 over plain")


def test_splits_are_kept_apart_and_none_counts_twice(runs) -> None:
    file = runs / "ct-seed0" / "attack-bae.json"
    other = json.loads(file.read_text())
    (runs / "ct-seed0" / "attack-bae-test.json").write_text(json.dumps(other | {"split": "test"}))
    (section,) = attacks(read_studies([runs])[0])
    assert [len(table.rows) for table in section.tables] == [2, 1]
    assert ["validation" in table.caption for table in section.tables] == [True, False]
    (runs / "ct-seed0" / "attack-bae-2.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="two files of attacks by bae on validation"):
        attacks(read_studies([runs])[0])


def test_without_attacks_there_is_no_section_and_a_damaged_file_is_named(runs) -> None:
    study = read_studies([runs])[0]
    for path in runs.glob("*/attack-bae.json"):
        path.write_text('{"recipe": "bae"}')
    with pytest.raises(CheckpointError, match=r"none-seed0.attack-bae.json is damaged"):
        attacks(study)
    for path in runs.glob("*/attack-bae.json"):
        path.unlink()
    assert attacks(study) == []
