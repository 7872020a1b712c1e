"""Which folders are runs, and which runs belong together."""

from __future__ import annotations

import json

import pytest

from tests.train.report.studies import write_run
from train.report.runs import read_studies
from train.run.folder import CheckpointError

DONE = {"test": {"accuracy": 0.9, "ece": 0.1}}


def test_methods_and_seeds_of_one_config_are_one_study(tmp_path, tiny_config) -> None:
    config = tiny_config("none")
    for method in ("ct", "none"):
        for seed in (1, 0):
            write_run(tmp_path / "sweep", config, method, seed, DONE)
    write_run(tmp_path, config, "gan", 0)  # of another folder, and not finished
    (study,) = read_studies([tmp_path / "sweep", tmp_path / "gan-seed0"])
    assert {method: list(runs) for method, runs in study.runs.items()} == {
        "none": [0, 1], "gan": [0], "ct": [0, 1],
    }  # fmt: skip
    assert list(study.finished) == ["none", "ct"]
    assert study.split == "test"
    assert "seed" not in study.values


def test_a_sweep_brings_its_step_times_and_its_command(tmp_path, tiny_config) -> None:
    write_run(tmp_path, tiny_config(), "ct:0.1", 0, DONE)
    times = {"ct": {"milliseconds": 3.0, "ratio": 1.5}}
    (tmp_path / "step_times.json").write_text(json.dumps(times))
    (tmp_path / "command.txt").write_text("python -m train.sweep\n")
    (study,) = read_studies([tmp_path])
    assert study.times["ct"].ratio == 1.5
    assert study.commands == ["python -m train.sweep"]


def test_variants_of_a_method_are_told_apart_and_plain_ones_are_not(tmp_path, tiny_config) -> None:
    config = tiny_config("none")
    for method in ("none", "ct:0.1", "ct:1"):
        write_run(tmp_path / "a", config, method, 0, DONE)
    other = tiny_config("none", alignment__over="heads")
    write_run(tmp_path / "b", other, "none", 1, DONE)
    write_run(tmp_path / "b", other, "gan", 1, DONE)
    (study,) = read_studies([tmp_path / "a", tmp_path / "b"])
    assert {method: list(runs) for method, runs in study.runs.items()} == {
        "none": [0, 1], "gan": [1], "ct:0.1": [0], "ct:1": [0],
    }  # fmt: skip


def test_what_differs_beyond_the_alignment_is_another_study(tmp_path, tiny_config) -> None:
    write_run(tmp_path / "a", tiny_config("none"), "none", 0, DONE)
    write_run(tmp_path / "b", tiny_config("none", train__steps=7), "none", 1, DONE)
    assert len(read_studies([tmp_path / "a", tmp_path / "b"])) == 2


def test_the_same_run_twice_counts_once_and_is_told(tmp_path, tiny_config) -> None:
    for folder in ("a", "b"):
        write_run(tmp_path / folder, tiny_config("none"), "none", 0, DONE)
    (study,) = read_studies([tmp_path / "a", tmp_path / "b"])
    assert study.runs["none"][0].folder == tmp_path / "a" / "none-seed0"
    (note,) = study.notes
    assert str(tmp_path / "b") in note


def test_a_foreign_folder_is_refused_by_name(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=f"{folder} is neither"):
            read_studies([folder])
    for content, said in (
        ("{}", "not that of a run: it has no alignment"),
        ('{"model_type": "bert"}', "an exported model, not a run"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=said):
            read_studies([tmp_path])


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_damaged_file_is_named(tmp_path, tiny_config, name) -> None:
    folder = write_run(tmp_path, tiny_config("none"), "none", 0, DONE)
    (folder / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        read_studies([tmp_path])


def test_damaged_step_times_are_named(tmp_path, tiny_config) -> None:
    write_run(tmp_path, tiny_config("none"), "none", 0, DONE)
    (tmp_path / "step_times.json").write_text('{"none": {"seconds": 1}}')
    with pytest.raises(CheckpointError, match=r"step_times.json is damaged"):
        read_studies([tmp_path])


def test_a_result_without_what_a_run_writes_is_named(tmp_path, tiny_config) -> None:
    folder = write_run(tmp_path, tiny_config("none"), "none", 0, DONE)
    (folder / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it has no metrics, mmd, alignment, steps, seconds"):
        read_studies([tmp_path])


def test_a_methods_own_weight_needs_no_name(tmp_path, tiny_config) -> None:
    for method in ("ct", "ct:0.01"):
        write_run(tmp_path, tiny_config(), method, 0, DONE)
    (study,) = read_studies([tmp_path])
    assert set(study.runs) == {"ct", "ct:0.01"}
