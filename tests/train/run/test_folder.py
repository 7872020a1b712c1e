"""The folder of a run: made ours, recognised, and refused where it is not."""

from __future__ import annotations

import json

import pytest

from train.registry import ConfigError
from train.run.folder import (
    CheckpointError,
    check_is_one_run,
    claim_folder,
    claimed,
    config_differences,
    read_config,
    to_json,
    write_json,
)
from train.run.loop import restore_run


def test_a_folder_left_by_a_run_killed_at_its_start_is_taken(tmp_path, tiny_config) -> None:
    (tmp_path / ".config.json.4711").write_text("{")
    claim_folder(tmp_path, tiny_config())
    assert read_config(tmp_path) == to_json(tiny_config())


@pytest.mark.fault(
    "A config is refused once its run has begun, before anything is saved",
    "The folder goes again; what was there or has been saved stays",
)
@pytest.mark.parametrize(
    ("before", "during", "stays"),
    [
        ([], ["checkpoints", "tensorboard"], None),
        (["config.json"], ["tensorboard"], ["config.json", "tensorboard"]),
        ([], ["none-seed0/checkpoints/4"], ["config.json", "none-seed0"]),
    ],
)
def test_a_refused_config_leaves_nothing_behind(
    tmp_path, tiny_config, before, during, stays
) -> None:
    folder = tmp_path / "run"
    for name in before:
        folder.mkdir()
        write_json(folder / name, to_json(tiny_config()))

    def refused() -> None:
        with claimed(folder, tiny_config()):
            for name in during:
                (folder / name).mkdir(parents=True)
            raise ConfigError("of no use")

    with pytest.raises(ConfigError, match="of no use"):
        refused()
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else None
    assert found == stays


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


def test_a_folder_that_orbax_takes_for_a_pattern_is_refused(tmp_path, tiny_config) -> None:
    for name in ("a[b]", "a?", "*"):
        with (
            pytest.raises(CheckpointError, match="Rename it"),
            claimed(tmp_path / name / "run", tiny_config()),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


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


def test_an_exported_model_is_told_from_a_run(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        CheckpointError, match=r"exported model, not a run: .*pretrained\.load reads"
    ):
        restore_run(tmp_path)


def test_the_folder_of_a_sweep_is_told_from_that_of_a_run(tmp_path) -> None:
    for name in ("ct-seed0", "none-seed0", "pictures"):
        (tmp_path / name).mkdir()
        if "seed" in name:
            (tmp_path / name / "config.json").write_text("{}")
            (tmp_path / name / "checkpoints").mkdir()
    (tmp_path / "a-model").mkdir()
    (tmp_path / "a-model" / "config.json").write_text('{"model_type": "bert"}')  # no run
    with pytest.raises(CheckpointError, match=r"holds folders of runs: ct-seed0, none-seed0\. "):
        restore_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    check_is_one_run(tmp_path)


def test_written_json_reads_back_and_leaves_no_temporary_file(tmp_path, tiny_config) -> None:
    write_json(tmp_path / "config.json", to_json(tiny_config()))
    assert read_config(tmp_path) == json.loads(json.dumps(tiny_config().to_dict()))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_older_than_a_key_goes_on(tmp_path, tiny_config) -> None:
    """Before there was a share, its warm-up was a number of steps; other keys had no names yet."""
    config = tiny_config("ct", train__steps=600)
    with config.unlocked():
        config.optimizer.warmup_steps, config.optimizer.warmup_share = None, 1 / 6
    claim_folder(tmp_path, config)
    old = read_config(tmp_path)
    del old["optimizer"]["warmup_share"], old["data"]["split_seed"], old["train"]["epochs"]
    old["optimizer"]["warmup_steps"] = 100
    write_json(tmp_path / "config.json", old)
    claim_folder(tmp_path, config)
    old["optimizer"]["warmup_steps"] = 99
    write_json(tmp_path / "config.json", old)
    with pytest.raises(CheckpointError, match="optimizer.warmup_steps was 99, now None"):
        claim_folder(tmp_path, config)
    del old["data"]["test_fraction"]  # the config's 0.2 is not the default
    write_json(tmp_path / "config.json", old)
    with pytest.raises(CheckpointError, match="data.test_fraction was 0.3, now 0.2"):
        claim_folder(tmp_path, config)
