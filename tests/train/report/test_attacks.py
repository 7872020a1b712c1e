"""Attacks in the report, from the files that they leave in the runs' folders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.train.report.studies import write_run
from train.report.attacks import attacks, differences
from train.report.runs import read_studies
from train.run.folder import CheckpointError

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


def content(outcomes) -> dict:
    """What a file says of attacks on the examples in order; None was wrong from the start."""
    names = {None: "skipped", True: "failed", False: "successful"}
    examples = [{"row": row, "outcome": names[x], "queries": 9} for row, x in enumerate(outcomes)]
    attacked = [x for x in outcomes if x is not None]
    return {"failed_percent": 100 * sum(attacked) / len(attacked), "examples": examples}


def test_examples_that_both_models_had_right_are_paired(rng) -> None:
    """Half of 400 fall alike by both models, and 30 that only one had right count for nothing."""
    plain = [bool(x) for x in rng.random(400) < 0.5]
    aligned = plain[:200] + [bool(x) for x in rng.random(200) < 0.7]
    gains = 100.0 * (np.array(aligned, float) - np.array(plain, float))
    aligned[:20] = [None] * 20
    plain[390:] = [None] * 10
    gains = gains[20:390]
    *_, said = differences({"none": {0: content(plain)}, "ct": {0: content(aligned)}})
    assert said.startswith(
        f"ct, failed attacks on what both had right, %: {gains.mean():+.4f} over plain, 95%"
    )
    assert said.endswith("370 paired examples): more than noise.")
    low, high = map(float, said.split("[")[1].split("]")[0].split(", "))
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    np.testing.assert_allclose(
        [low, high], gains.mean() + 1.96 * error * np.array([-1, 1]), atol=0.3
    )


def test_an_example_attacked_with_two_seeds_is_one_pair(rng) -> None:
    """The same attacks once more tell nothing new: the interval does not shrink."""
    plain, aligned = ([bool(x) for x in rng.random(100) < 0.5] for _ in range(2))
    once = {"none": {0: content(plain)}, "ct": {0: content(aligned)}}
    twice = {method: {0: of[0], 1: of[0]} for method, of in once.items()}
    assert differences(twice)[1] == differences(once)[1]


def test_models_that_share_no_attacked_example_are_not_paired() -> None:
    found = {"none": {0: content([True, None])}, "gan": {0: content([None, False])}}
    (sentence,) = differences(found)
    assert "one seed" in sentence


def test_a_run_that_had_nothing_right_is_not_compared() -> None:
    nothing = {"failed_percent": None, "examples": []}
    assert differences({"none": {0: content([True])}, "gan": {0: nothing}}) == []
    assert differences({"none": {0: nothing}, "gan": {0: content([True])}}) == []
