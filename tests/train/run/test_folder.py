"""The folder of a run: made ours, recognised, and refused where it is not."""

from __future__ import annotations

import json

import pytest

from train.run.folder import (
    CheckpointError,
    claim_folder,
    config_differences,
    read_config,
    to_json,
    write_json,
)


def test_a_folder_left_by_a_run_killed_at_its_start_is_taken(tmp_path, tiny_config) -> None:
    (tmp_path / ".config.json.4711").write_text("{")
    claim_folder(tmp_path, tiny_config())
    assert read_config(tmp_path) == to_json(tiny_config())


@pytest.mark.fault(
    "`--workdir` is a folder with other things in it",
    "Refused; nothing is written",
)
def test_a_foreign_folder_is_left_alone(tmp_path, tiny_config) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty and was not made by this program"):
        claim_folder(tmp_path, tiny_config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path, tiny_config) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        claim_folder(path, tiny_config())


def test_a_folder_that_is_no_runs_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_config(tmp_path)


@pytest.mark.fault(
    "A run is resumed with another model or alignment",
    "Refused, with the keys that differ",
)
def test_a_changed_model_or_alignment_is_refused_by_key(tmp_path, tiny_config) -> None:
    claim_folder(tmp_path, tiny_config("ct"))
    claim_folder(tmp_path, tiny_config("ct"))
    claim_folder(tmp_path, tiny_config("ct", train__steps=99))  # training longer is fine
    with pytest.raises(CheckpointError) as error:
        claim_folder(tmp_path, tiny_config("gan", model__layers=3, optimizer__learning_rate=0.5))
    assert "alignment.method was 'ct', now 'gan'" in str(error.value)
    assert "model.layers was 1, now 3" in str(error.value)
    assert "optimizer.learning_rate was 0.004, now 0.5" in str(error.value)
    assert "heads" not in str(error.value)


def test_differences_include_absent_keys() -> None:
    assert config_differences({"model": {"a": 1}}, {"model": {"b": [1]}}) == [
        "model.a was 1, now absent",
        "model.b was absent, now [1]",
    ]


def test_written_json_reads_back_and_leaves_no_temporary_file(tmp_path, tiny_config) -> None:
    write_json(tmp_path / "config.json", to_json(tiny_config()))
    assert read_config(tmp_path) == json.loads(json.dumps(tiny_config().to_dict()))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
