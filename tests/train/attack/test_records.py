"""The file of an attack: whole after each example, resumed where it stopped, and counted right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from train.attack.records import AttackFile, run_attacks, summary, targets_of
from train.data.labelled import Examples
from train.registry import ConfigError
from train.run.folder import CheckpointError

HEADER = {
    "recipe": "pwws", "experiment": "mrpc", "method": "ct", "weight": 0.01, "run_seed": 0,
    "split": "validation", "seed": 0,
}  # fmt: skip
OUTCOMES = ["failed", "skipped", "successful", "failed", "skipped", "failed", "successful"]


@pytest.fixture
def targets():
    columns = [[f"text {row}" for row in range(7)]]
    examples = Examples(columns, np.arange(7) % 2, 100 + np.arange(7))
    return targets_of(examples, [6, 5, 4, 3, 2, 1, 0])


def outcome(target):
    return {"outcome": OUTCOMES[6 - target.row], "queries": target.row + 1}


def content(path):
    return json.loads(path.read_text())


def test_targets_keep_the_order_and_their_labels(targets) -> None:
    assert [target.row for target in targets] == [6, 5, 4, 3, 2, 1, 0]
    assert (targets[1].texts, targets[1].label, targets[1].identity) == (("text 5",), 1, 105)


def test_an_interrupted_attack_goes_on_and_ends_as_an_uninterrupted_one(targets, tmp_path) -> None:
    whole = AttackFile(tmp_path / "whole.json", HEADER)
    assert len(list(run_attacks(targets, outcome, whole, 0))) == 7

    def breaks(target):
        if target.row == 3:
            raise KeyboardInterrupt
        return outcome(target)

    path = tmp_path / "made" / "cut.json"
    with pytest.raises(KeyboardInterrupt):
        list(run_attacks(targets, breaks, AttackFile(path, HEADER), 0))
    assert len(content(path)["examples"]) == 3

    resumed = AttackFile(path, HEADER)
    rest = list(run_attacks(targets, outcome, resumed, 0))
    assert [record["row"] for record in rest] == [3, 2, 1, 0]
    assert content(path) == content(tmp_path / "whole.json")
    assert list(run_attacks(targets, outcome, AttackFile(path, HEADER), 0)) == []


def test_so_many_attacks_are_made_as_asked_for_and_more_later(targets, tmp_path) -> None:
    file = AttackFile(tmp_path / "a.json", HEADER)
    list(run_attacks(targets, outcome, file, 3))
    assert [x["outcome"] for x in file.examples] == OUTCOMES[:4]
    assert content(tmp_path / "a.json")["attacks"] == 3
    list(run_attacks(targets, outcome, file, 4))
    assert [x["outcome"] for x in file.examples] == OUTCOMES[:6]


def test_the_percentage_is_of_the_attacks_and_skipped_examples_are_none() -> None:
    records = [{"outcome": name, "queries": 10} for name in OUTCOMES]
    found = summary(records)
    assert (found["attacks"], found["failed"], found["successful"], found["skipped"]) == (
        5,
        3,
        2,
        2,
    )
    assert found["failed_percent"] == pytest.approx(60.0)
    assert found["accuracy_under_attack"] == pytest.approx(100 * 3 / 7)
    assert found["queries_per_attack"] == 10
    assert summary([{"outcome": "skipped", "queries": 1}])["failed_percent"] is None


def test_another_attacks_file_is_refused(targets, tmp_path) -> None:
    path = tmp_path / "a.json"
    list(run_attacks(targets, outcome, AttackFile(path, HEADER), 1))
    with pytest.raises(ConfigError, match="run_seed was 0, now 1.*--output"):
        AttackFile(path, {**HEADER, "run_seed": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ('{"examples": []}', "no file of")],
)
def test_a_damaged_file_is_named(tmp_path, text, message) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        AttackFile(tmp_path / "a.json", HEADER)


@pytest.mark.parametrize(
    "example", [1, {}, {"row": 0}, {"row": [], "outcome": "failed", "queries": 1}]
)
def test_examples_that_were_edited_are_named(tmp_path, example) -> None:
    (tmp_path / "a.json").write_text(json.dumps(HEADER | {"examples": [example]}))
    with pytest.raises(CheckpointError, match=r"a\.json does not hold what a run writes"):
        AttackFile(tmp_path / "a.json", HEADER)
