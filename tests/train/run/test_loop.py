"""Runs from start to end on a tiny model."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
import rich.console
from ml_collections import ConfigDict

from tests.train.tiny_glue import fake_glue
from tests.train.tiny_glue import tiny_config as tiny_config_of_texts
from train.data.digits import Digits
from train.devices import mesh, partition
from train.devices.mesh import MeshRunner
from train.experiment.experiment import build_experiment
from train.registry import ConfigError
from train.run import loop
from train.run.evaluation import _pass
from train.run.folder import CheckpointError, to_json
from train.run.interruption import Interrupted, OutOfTime
from train.run.lock import InUse, locked
from train.run.log import read_records
from train.run.trainer import Trainer, TrainingDiverged

DEVICES = jax.local_devices()[:1]


def run(config, workdir):
    console = rich.console.Console(file=io.StringIO(), width=120)
    result = loop.run(config, workdir, devices=DEVICES, console=console)
    return result, console.file.getvalue()


def final_params(config, workdir):
    return loop.restore_run(workdir, config)[1].params


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config):
    """A run that is complete: its config, folder, result and what it printed."""
    config = tiny_config("gan", model__dropout=0.2, train__steps=7, eval__stochastic_passes=3)
    workdir = tmp_path_factory.mktemp("run")
    return config, workdir, *run(config, workdir)


ON_ANY_DEVICES = {
    "optimizer__epsilon": 1e-3, "optimizer__decay": "constant",
    "eval__every": 0, "eval__at_start": False, "eval__final": (), "eval__mmd_examples": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def stayed(tmp_path_factory, tiny_config):
    """A plain run on one device: its config, folder and last parameters."""
    config, workdir = tiny_config("none", **ON_ANY_DEVICES), tmp_path_factory.mktemp("run")
    run(config, workdir)
    return config, workdir, final_params(config, workdir)


@pytest.fixture
def config(finished):
    """A copy of that run's; the programs of whoever changes no more than a little are compiled."""
    return finished[0].copy_and_resolve_references()


def assert_ends_bitwise_alike(result, workdir, finished) -> None:
    config, whole, expected, _ = finished
    assert result["metrics"] == expected["metrics"]
    jax.tree.map(
        np.testing.assert_array_equal, final_params(config, workdir), final_params(config, whole)
    )


def test_a_run_leaves_its_records_and_prints_a_table(finished) -> None:
    _, workdir, result, printed = finished
    assert set(result["metrics"]) == {"validation", "test"}
    assert 0.0 <= result["metrics"]["test"]["accuracy"] <= 1.0
    assert result["mmd"] > 0.0
    assert "accuracy" in printed
    assert "validation" in printed

    records = read_records(workdir)
    assert [r["step"] for r in records if r["split"] == "train"] == [2, 3, 4, 6, 7]
    evaluations = [r for r in records if r["split"] == "validation"]
    assert [r["step"] for r in evaluations] == [0, 3, 6, 7]
    for name in ("mmd", "scale_free_mmd", "query_norm", "key_norm"):
        heads = np.array(evaluations[-1][f"{name}_per_head"]["layer_0/attention"])
        assert heads.shape == (2,)
        mean = heads.sum() if name == "mmd" else heads.mean()
        assert result[name] == evaluations[-1][name] == pytest.approx(mean, rel=1e-6)
    train = next(r for r in records if r["split"] == "train")
    assert train["loss"] == pytest.approx(
        train["task_loss"] + train["alignment_weight"] * train["alignment"], rel=1e-5
    )
    assert all(0.0 < r["input_share"] < 1.0 for r in records if r["split"] == "train")
    assert list((workdir / "tensorboard").glob("events*"))
    saved = json.loads((workdir / "result.json").read_text())
    assert saved["metrics"] == result["metrics"]


def test_accuracy_is_that_of_the_final_parameters_on_every_test_image_once(finished) -> None:
    config, workdir, result, _ = finished
    experiment, state = loop.restore_run(workdir, config)
    rows = [
        {name: array[batch["mask"]] for name, array in batch.items()}
        for batch in experiment.data.eval_batches("test")
    ]
    images, labels = (np.concatenate([r[name] for r in rows]) for name in ("image", "label"))
    logits = jax.jit(state.model.apply)({"params": state.params}, images)
    assert len(labels) == round(config.data.test_fraction * 1797 + 0.5)
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(
        float((np.asarray(logits).argmax(axis=1) == labels).mean())
    )
    # What metrics of a whole corpus see: no padding, and all in order.
    parallel = MeshRunner(DEVICES)
    predictions = _pass(parallel, parallel.place(state), experiment.data, "test")[1]
    np.testing.assert_array_equal(predictions["label"], labels)
    np.testing.assert_array_equal(predictions["prediction"], logits.argmax(axis=1))


def test_uncertainty_is_measured_at_the_end(finished) -> None:
    config, _, result, _ = finished
    for split in config.eval.final:
        assert 0.0 < result["metrics"][split]["pavpu"] < 1.0
        assert 0.0 < result["metrics"][split]["certain"] < 1.0


def test_a_checkpoint_is_the_best_only_by_its_own_evaluation(tmp_path, config) -> None:
    """Saved at 1, 2, ... and evaluated at 4: whatever is saved later has no metrics."""
    config.eval.every = 4
    config.train.update({"checkpoint_every": 1, "keep_checkpoints": 1})
    run(config, tmp_path)
    kept = {int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()}
    assert kept == {4, 7}
    assert int(loop.restore_run(tmp_path, config, step=4)[1].step) == 4


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("eval", "final", ("tset",), "config.eval.final names the split 'tset'; the data have"),
        ("eval", "mmd_split", "dev", "config.eval.mmd_split names the split 'dev'"),
        ("eval", "temperature_split", "dev", "config.eval.temperature_split names the split 'dev'"),
        ("train", "monitor", "validation/acuracy:max", "'validation/acuracy' is not measured"),
    ],
)
def test_a_mistake_in_the_evaluation_shows_before_the_first_step(
    tmp_path, tiny_config, monkeypatch, section, key, value, message
) -> None:
    monkeypatch.setattr(MeshRunner, "train_step", lambda *_: pytest.fail("trained"))
    config = tiny_config()
    config[section][key] = value
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path)


def test_another_evaluation_of_a_finished_run_is_recorded(finished, config, tmp_path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    before = read_records(workdir)
    run(config, workdir)
    assert read_records(workdir) == before
    config.eval.mmd_bandwidth = 3.0
    again, _ = run(config, workdir)
    old, new = (
        [r["mmd"] for r in records if "mmd" in r][-1] for records in (before, read_records(workdir))
    )
    assert old != new == again["mmd"]


def test_a_finished_run_is_not_trained_again(finished, monkeypatch) -> None:
    """Its metrics, also those that have random numbers, are the same each time."""
    config, workdir, first, _ = finished
    monkeypatch.setattr(MeshRunner, "train_step", lambda *_: pytest.fail("trained again"))
    again, _ = run(config, workdir)
    assert again["metrics"] == first["metrics"]
    assert again["alignment"] == first["alignment"]


def test_fewer_steps_than_already_taken_are_refused(finished, config) -> None:
    config.train.steps = 4
    with pytest.raises(CheckpointError, match="step 7, but train.steps is 4"):
        run(config, finished[1])


def test_a_second_run_in_the_folder_is_refused_before_it_builds_anything(
    finished, tmp_path, monkeypatch
) -> None:
    config, workdir = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch, locked(workdir):
        patch.setattr(loop, "build_experiment", lambda _: pytest.fail("built"))
        with pytest.raises(InUse, match="in use by another process"):
            run(config, workdir)
    with monkeypatch.context() as patch:  # the other one has begun in between
        patch.setattr(loop, "check_not_locked", lambda _: None)
        with locked(workdir), pytest.raises(InUse, match="in use by another process"):
            run(config, workdir)
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert after == before


def test_resuming_with_another_model_is_refused(finished, config) -> None:
    config.model.dropout = 0.0
    with pytest.raises(CheckpointError, match="model.dropout was 0.2, now 0.0"):
        run(config, finished[1])


def test_a_run_that_goes_on_for_more_steps_says_that_its_rate_is_another(
    tmp_path, finished, config
) -> None:
    assert "Begun with" not in finished[3]
    shutil.copytree(finished[1], tmp_path / "run")
    config.train.steps = 8
    assert "Begun with train.steps=7, on which its rate" in run(config, tmp_path / "run")[1]


def test_a_resumed_run_ends_bitwise_like_an_uninterrupted_one(
    tmp_path, finished, monkeypatch
) -> None:
    config, original = finished[0], Trainer._due

    def killed_at_step_5(self, every):
        if self.step == 5:
            raise KeyboardInterrupt
        return original(self, every)

    monkeypatch.setattr(Trainer, "_due", killed_at_step_5)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    assert not (tmp_path / "result.json").exists()
    monkeypatch.undo()
    assert_ends_bitwise_alike(run(config, tmp_path)[0], tmp_path, finished)
    steps = [r["step"] for r in read_records(tmp_path) if r["split"] == "train"]
    assert steps == sorted(steps)


def test_a_deadline_stops_the_run_without_losing_a_step(tmp_path, finished) -> None:
    config, console = finished[0], rich.console.Console(file=io.StringIO())
    for taken in (1, 2):
        with pytest.raises(OutOfTime, match=f"after step {taken} of 7"):
            loop.run(config, tmp_path, devices=DEVICES, console=console, deadline=0.0)
    assert_ends_bitwise_alike(run(config, tmp_path)[0], tmp_path, finished)


@pytest.mark.fault(
    "NaN in an example",
    "Stops with step, layer, heads and ids; the last good checkpoint stays",
)
def test_nan_stops_the_run_with_the_step_and_keeps_the_last_checkpoint(
    tmp_path, config, monkeypatch
) -> None:
    original = Digits.train_batches

    def poisoned(self, start_step=0, *share):
        for step, batch in enumerate(original(self, start_step, *share), start=start_step + 1):
            if step == 5:
                batch["image"][0, 0, 0, 0] = np.nan
            yield {**batch, "id": 100 * step + np.arange(len(batch["mask"]))}

    monkeypatch.setattr(Digits, "train_batches", poisoned)
    with pytest.raises(
        TrainingDiverged,
        match=r"At step 5 the loss is nan.*ids \[500, 501.*layer_0/attention is not finite in the "
        r"heads \[0, 1\].*of step 3",
    ):
        run(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


@pytest.mark.fault(
    "NaN with `optimizer.skip_nonfinite`",
    "So many steps in a row are left out and counted; one more stops the run",
)
def test_steps_with_nan_may_be_skipped_up_to_a_number_in_a_row(
    tmp_path, tiny_config, monkeypatch
) -> None:
    original, poisoned_steps = Digits.train_batches, {2, 3, 5}

    def poisoned(self, start_step=0, *share):
        for step, batch in enumerate(original(self, start_step, *share), start=start_step + 1):
            if step in poisoned_steps:
                batch["image"][0, 0, 0, 0] = np.nan
            yield batch

    monkeypatch.setattr(Digits, "train_batches", poisoned)
    config = tiny_config("none", optimizer__skip_nonfinite=2, eval__mmd_examples=0)
    result, _ = run(config, tmp_path / "two")
    assert np.isfinite(result["metrics"]["test"]["loss"])
    records = [r for r in read_records(tmp_path / "two") if r["split"] == "train"]
    assert [(r["step"], r["skipped_steps"]) for r in records] == [(2, 1), (3, 1), (4, 0), (6, 1)]
    assert np.isfinite([r["loss"] for r in records if "loss" in r]).all()
    poisoned_steps.add(4)
    with pytest.raises(TrainingDiverged, match=r"At step 4 .*after 2 steps in a row"):
        run(config, tmp_path / "three")


def test_a_run_may_start_from_anothers_parameters(stayed, tiny_config, tmp_path) -> None:
    _, source, given = stayed
    changed = tiny_config(
        "gan", **ON_ANY_DEVICES, train__init_from=str(source), train__steps=1,
        optimizer__learning_rate=0.0,
    )  # fmt: skip
    _, printed = run(changed, tmp_path)
    started = final_params(changed, tmp_path)
    np.testing.assert_array_equal(started["classifier"]["kernel"], given["classifier"]["kernel"])
    assert "start anew: layer_0/attention/alignment" in " ".join(printed.split())
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        run(tiny_config("gan", train__init_from=str(tmp_path / "none")), tmp_path / "other")


@pytest.mark.fault(
    "A run is resumed on another number of devices, sharded another way",
    "It goes on with the numbers of one that stayed",
)
@pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")
@pytest.mark.parametrize("way", [pytest.param("pmap", marks=pytest.mark.thorough), "mesh"])
def test_a_run_goes_on_on_other_devices(tmp_path, tiny_config, stayed, way, monkeypatch) -> None:
    monkeypatch.setattr(partition, "LEAST_SIZE", 16)
    fsdp = way == "mesh"
    cut = tiny_config(
        "none", train__steps=3, train__parallel=way, train__mesh_fsdp=fsdp, **ON_ANY_DEVICES
    )
    loop.run(cut, tmp_path, devices=jax.local_devices()[:4], summary=False)
    config, _, expected = stayed
    run(config, tmp_path)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        final_params(config, tmp_path),
        expected,
    )


@pytest.mark.fault(
    "SIGTERM",
    "Saves and exits; the same command goes on, bitwise",
)
def test_sigterm_saves_and_the_same_call_goes_on(tmp_path, finished, config, monkeypatch) -> None:
    step, taken = MeshRunner.train_step, []

    def terminated(self, *arguments):
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    config.train.checkpoint_every = 0
    monkeypatch.setattr(MeshRunner, "train_step", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="after step 2 of 7"):
        run(config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    result, _ = run(config, tmp_path)
    assert len(taken) == 7
    assert_ends_bitwise_alike(result, tmp_path, finished)


def test_at_most_two_steps_are_in_flight(tmp_path, config, monkeypatch) -> None:
    """So a signal is heard after two steps, not after all until the next line of the log."""
    step, wait, taken, waited = MeshRunner.train_step, jax.block_until_ready, [], []

    def counted(self, *arguments):
        assert len(waited) >= len(taken) - 1
        state, report = step(self, *arguments)
        taken.append(report)
        return state, report

    def waits(found):
        waited.extend(x for x in taken if any(x is y for y in found))
        return wait(found)

    config.eval.every, config.train.log_every = 0, 100  # in which all reports are read
    monkeypatch.setattr(MeshRunner, "train_step", counted)
    monkeypatch.setattr(jax, "block_until_ready", waits)
    run(config, tmp_path)
    assert len(taken) == 7
    assert waited == taken[:-1]


def test_patience_stops_the_run_and_the_best_parameters_come_back(tmp_path, tiny_config) -> None:
    # The rate is so high that the first evaluation, before training, stays the best by loss.
    config = tiny_config(
        "none",
        optimizer__learning_rate=3.0,
        optimizer__decay="constant",
        train__steps=50,
        train__patience=2,
        train__patience_metrics=("validation/loss:min",),
        train__restore_best=True,
        eval__every=1,
        eval__mmd_examples=0,
    )
    result, _ = run(config, tmp_path)
    losses = [r["loss"] for r in read_records(tmp_path) if r["split"] == "validation"]
    assert result["steps"] < 50
    during = losses[:-1]
    assert min(during[-2:]) > min(during)
    assert result["metrics"]["validation"]["loss"] == pytest.approx(min(during), rel=1e-6)
    # Nor does a later start forget them.
    assert run(config, tmp_path)[0]["metrics"] == result["metrics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval__final": ("dev",)}, "split 'dev'; the data have train, validation, test"),
        ({"eval__stochastic_passes": 1}, "stochastic_passes is 1; expected 2 or more"),
        ({"train__patience": 2, "train__patience_metrics": ()}, "patience_metrics is empty"),
        ({"alignment__weight": -1.0}, "alignment.weight is -1.0"),
        ({"alignment__weight": float("nan")}, "alignment.weight is nan; .* finite"),
        ({"optimizer__learning_rate": float("nan")}, "optimizer.learning_rate is nan; .* finite"),
        ({"optimizer__weight_decay": float("inf")}, "optimizer.weight_decay is inf; .* finite"),
        ({"model__heads": 3}, "hidden_size is 16, which 3 heads do not divide"),
        ({"data__name": "digit"}, 'did you mean "digits"'),
        ({"task__name": "clasification"}, 'did you mean "classification"'),
        ({"model__name": "vitt"}, 'did you mean "vit"'),
        ({"train__patience_metrics": ("validation/acc:max",)}, "validation/acc"),
    ],
)
def test_bad_values_are_config_errors_that_name_them(
    tmp_path, tiny_config, changes, message
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny_config("none", **changes), tmp_path / "run")


def test_a_negative_seed_is_a_config_error(tmp_path, tiny_config) -> None:
    config = tiny_config("none")
    config.seed = -1
    with pytest.raises(ConfigError, match="config.seed is -1"):
        run(config, tmp_path / "run")


def test_parameters_of_another_shape_are_no_start(tiny_config) -> None:
    experiment = build_experiment(tiny_config("none"))
    given = {"classifier": {"bias": np.zeros(3)}}
    with pytest.raises(ConfigError, match=r"classifier/bias .*\(3,\); the model's has \(10,\)"):
        dataclasses.replace(experiment, pretrained=given).initial_state()


@pytest.mark.fault(
    "A run's JSON that was edited and is still JSON",
    "The report, predicting, attacks and what starts from it say which file and what is wrong",
)
@pytest.mark.parametrize(
    ("key", "value"),
    [("data", None), ("model", 3), ("train", "x"), ("alignment", []), ("seed", "x"),
     ("train", {"keep_checkpoints": 1})],
)  # fmt: skip
@pytest.mark.parametrize("given", [False, True])
def test_a_runs_config_that_was_edited_is_named(tmp_path, tiny_config, key, value, given) -> None:
    values = {**to_json(tiny_config("none")), key: value}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        loop.restore_run(tmp_path, ConfigDict(values) if given else None)
    assert "config" in str(caught.value)
    assert "checkpoint" not in str(caught.value).removeprefix(str(tmp_path))


def test_a_folder_that_is_no_runs_is_not_made_one_by_reading_it(tmp_path, tiny_config) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        loop.restore_run(tmp_path / "none", tiny_config("none"))
    assert not (tmp_path / "none").exists()


def test_sigterm_during_the_last_evaluation_is_heard_when_the_run_is_complete(
    tmp_path, config, monkeypatch
) -> None:
    finish = Trainer.finish

    def terminated(self, log):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, log)

    monkeypatch.setattr(Trainer, "finish", terminated)
    with pytest.raises(Interrupted, match="this run is complete"):
        run(config, tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.fault(
    "A misspelt name in the config",
    "An error with the nearest known name",
)
def test_an_unknown_method_is_a_config_error_that_names_the_nearest(tmp_path, tiny_config) -> None:
    with pytest.raises(ConfigError, match="gann.*gan"):
        run(tiny_config("gann"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mmd_can_be_left_to_the_start_and_the_end(tmp_path, config) -> None:
    config.eval.update({"every": 1, "mmd_every": 0})
    result, _ = run(config, tmp_path)
    evaluations = [r for r in read_records(tmp_path) if r["split"] == "validation"]
    # Step 7 is evaluated as the others are, and once more, with MMD, because it is the last.
    assert [(r["step"], "mmd" in r) for r in evaluations] == [
        (0, True), *((step, False) for step in range(1, 8)), (7, True),
    ]  # fmt: skip
    assert result["mmd"] == evaluations[-1]["mmd"]


def test_one_compilation_per_shape_of_batch(tmp_path, checkpoint, monkeypatch) -> None:
    """Texts of two padded lengths, over several epochs: two programs, not one per batch."""
    fake_glue(monkeypatch)
    config = tiny_config_of_texts(checkpoint).unlock()
    config.data.buckets, config.train.steps = (16, 32), 20
    config.eval.update({"every": 0, "at_start": False, "final": (), "mmd_examples": 0})
    traced, shapes = [], []
    step, shard = mesh.train_step, MeshRunner.shard

    def counting(state, batch, **options):
        traced.append(batch["input_ids"].shape)
        return step(state, batch, **options)

    def recording(self, batch):
        shapes.append(batch["input_ids"].shape)
        return shard(self, batch)

    monkeypatch.setattr(mesh, "train_step", counting)
    monkeypatch.setattr(MeshRunner, "shard", recording)
    run(config.lock(), tmp_path / "run")
    trained = set(shapes[:20])
    assert len(trained) == 2
    assert sorted(traced) == sorted(trained)
