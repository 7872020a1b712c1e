"""Checkpoints: bitwise resumption, retention, and refusals that name what is wrong."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.experiment.experiment import build_experiment
from train.run.checkpoint import Checkpoints, Progress, bit_sums
from train.run.early_stopping import Criterion
from train.run.folder import (
    CheckpointError,
    NotWritten,
)

ACCURACY = Criterion.parse("validation/accuracy:max")


@pytest.fixture
def state(tiny_config):
    return build_experiment(tiny_config("none")).initial_state()


@pytest.fixture
def aligned(tiny_config):
    """A state with networks, which have an optimiser of their own."""
    return build_experiment(tiny_config("ct")).initial_state()


def at(state, step: int):
    return state.replace(step=np.int32(step))


def test_a_restored_state_is_the_saved_one_bit_for_bit(tmp_path, aligned) -> None:
    state = aligned
    changed = state.replace(
        step=np.int32(7),
        params=jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), state.params),
        opt_state=jax.tree.map(lambda x: np.asarray(x) + x.dtype.type(1), state.opt_state),
        rng=jax.random.key(42),
    )
    saved = Progress({"best": {"a": 1.5}, "waited": 2}, best_params=state.params)
    with Checkpoints(tmp_path, keep=1, monitor=ACCURACY) as checkpoints:
        checkpoints.save(changed, saved)
        restored, progress = checkpoints.restore(state)
    words = [x.replace(rng=jax.random.key_data(x.rng)) for x in (restored, changed)]
    assert jax.tree.structure(words[0]) == jax.tree.structure(words[1])
    jax.tree.map(np.testing.assert_array_equal, *words)
    assert progress.early_stopping == saved.early_stopping
    jax.tree.map(np.testing.assert_array_equal, progress.best_params, state.params)


@pytest.mark.parametrize(("direction", "best"), [("max", 2), ("min", 1)])
def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path, state, direction, best) -> None:
    monitor = Criterion.parse(f"v/x:{direction}")
    with Checkpoints(tmp_path, keep=2, monitor=monitor) as checkpoints:
        for step, value in enumerate([0.1, 0.9, 0.5, 0.4, 0.3], start=1):
            checkpoints.save(at(state, step), Progress(), {"v/x": value})
        assert checkpoints.latest_step == 5
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 4, 5}


@pytest.mark.fault(
    "A checkpoint holds other parameters",
    "Refused, with their names",
)
def test_other_parameters_are_named(tmp_path, state, aligned) -> None:
    with Checkpoints(tmp_path, keep=1, monitor=ACCURACY) as checkpoints:
        checkpoints.save(at(state, 1), Progress())
        with pytest.raises(CheckpointError, match=r"does not fit.*alignment.*missing"):
            checkpoints.restore(aligned)


def test_another_shape_is_named(tmp_path, state, tiny_config) -> None:
    other = build_experiment(tiny_config("none", model__mlp_size=24)).initial_state()
    with Checkpoints(tmp_path, keep=1, monitor=ACCURACY) as checkpoints:
        checkpoints.save(at(state, 1), Progress())
        with pytest.raises(CheckpointError, match=r"mlp_in/bias has shape \(16,\), expected \(24"):
            checkpoints.restore(other)


def truncated(folder: pathlib.Path) -> None:
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def with_flipped_bits(folder: pathlib.Path) -> None:
    """One in each file of arrays; in one of them it may hit what is not in use."""
    for path in (folder / "arrays").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


def without_metadata(folder: pathlib.Path) -> None:
    for path in [*folder.rglob("_METADATA"), *folder.rglob("_sharding")]:
        path.unlink()


def with_an_array_of_another_time(folder: pathlib.Path) -> None:
    """Whole, readable, and not what was saved: only the sums of the bits tell."""
    shutil.rmtree(folder / "arrays")
    shutil.copytree(folder.parent / "1" / "arrays", folder / "arrays")


@pytest.mark.fault(
    "The newest checkpoint is truncated, has flipped bits, no metadata or other arrays",
    "It is named, moved to `damaged/`, and the one before is used",
)
@pytest.mark.parametrize(
    "damage", [truncated, with_flipped_bits, without_metadata, with_an_array_of_another_time]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, state, capsys, damage
) -> None:
    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at(state, step), Progress())
    damage(tmp_path / "checkpoints" / "2")
    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        assert int(checkpoints.restore(state)[0].step) == 1
        assert not (tmp_path / "damaged").exists()  # who only reads moves nothing
        restored, _ = checkpoints.restore(state, repair=True)
        assert int(restored.step) == 1
        assert "checkpoints/2 is damaged" in capsys.readouterr().err
        assert (tmp_path / "damaged" / "2").is_dir()
        checkpoints.save(at(state, 2), Progress())
    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        assert int(checkpoints.restore(state)[0].step) == 2


@pytest.mark.fault(
    "A checkpoint cannot be read for now (permissions, a network's disk, open files, memory)",
    "An error that says so; it is not taken for damaged, nor moved",
)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (ValueError("DATA_LOSS: read [os_error_code='5']"), "Input/output error"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_a_checkpoint_out_of_reach_is_not_set_aside(
    tmp_path, state, monkeypatch, error, said
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        checkpoints.save(at(state, 1), Progress())
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._manager, "restore", fails)
        with pytest.raises(CheckpointError, match=f"cannot be read: {said}. It was left as it is"):
            checkpoints.restore(state, repair=True)
    assert (tmp_path / "checkpoints" / "1").is_dir()
    assert not (tmp_path / "damaged").exists()


def test_reading_makes_no_folder(tmp_path, state) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Checkpoints(tmp_path, keep=2, monitor=ACCURACY, read_only=True)
    assert list(tmp_path.iterdir()) == []
    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(at(state, step), Progress())
    files = sorted(tmp_path.rglob("*"))
    with Checkpoints(tmp_path, keep=1, monitor=ACCURACY, read_only=True) as checkpoints:
        assert int(checkpoints.restore(state)[0].step) == 3
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.fault(
    "A run saves a checkpoint and deletes the one that another command is about to read",
    "The new one is read, and nothing is called damaged",
)
def test_a_checkpoint_that_a_run_deletes_is_not_damaged(tmp_path, state, capsys) -> None:
    with Checkpoints(tmp_path, keep=1, monitor=ACCURACY) as running:
        running.save(at(state, 1), Progress())
        running.wait()
        with Checkpoints(tmp_path, keep=1, monitor=ACCURACY, read_only=True) as reader:
            running.save(at(state, 2), Progress())
            running.wait()
            assert [x.name for x in (tmp_path / "checkpoints").iterdir()] == ["2"]
            assert int(reader.restore(state)[0].step) == 2
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.fault(
    "No checkpoint is whole",
    "An error that says so and names each",
)
def test_nothing_whole_is_said(tmp_path, state) -> None:
    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        checkpoints.save(at(state, 1), Progress())
    truncated(tmp_path / "checkpoints" / "1")
    with (
        Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints,
        pytest.raises(CheckpointError, match="No checkpoint can be read.*checkpoints/1 is damaged"),
    ):
        checkpoints.restore(state)


@pytest.mark.parametrize(
    ("processes", "error"), [(1, CheckpointError), (2, jax.errors.JaxRuntimeError)]
)
def test_a_process_that_ended_is_not_taken_for_a_full_disk(
    tmp_path, state, monkeypatch, processes, error
) -> None:
    """The command knows what to say of it (`train.cli`); of one process it can only be the save."""

    def save(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("Gloo AllGather failed: Connection reset by peer")

    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", save)
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        with pytest.raises(error, match="Connection reset by peer"):
            checkpoints.save(at(state, 1), Progress())
        monkeypatch.undo()


@pytest.mark.fault(
    "A checkpoint cannot be written (no room)",
    "An error that says so; the checkpoints before are intact",
)
def test_a_full_disk_is_said_and_the_old_checkpoint_stays(tmp_path, state) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        checkpoints.save(at(state, 1), Progress())
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            checkpoints.save(at(state, 2), Progress())  # in the background: the next call tells
            with pytest.raises(
                CheckpointError, match=r"could not be written.*steps \[1\] are intact"
            ):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        assert int(checkpoints.restore(state)[0].step) == 1


def save_and_fail(workdir: pathlib.Path, state, monkeypatch) -> None:
    def close() -> None:
        raise ValueError("RESOURCE_EXHAUSTED: of closing")

    with Checkpoints(workdir, keep=2, monitor=ACCURACY) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", close)
        monkeypatch.setattr(checkpoints._manager, "close", close)
        if state is not None:
            raise KeyboardInterrupt


def test_what_ended_the_run_is_not_buried_by_the_end_of_a_save(
    tmp_path, state, monkeypatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        save_and_fail(tmp_path, state, monkeypatch)
    with pytest.raises(NotWritten, match=r"RESOURCE_EXHAUSTED: of closing. It was the first\."):
        save_and_fail(tmp_path, None, monkeypatch)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RESOURCE_EXHAUSTED: Failed to write 9 bytes [os_error_code='28']", "No space left on"),
        ("[Errno 30] Read-only file system: 'x'", "Read-only file system. It"),
        ("of\nanother  kind", "of another kind. It"),
    ],
)
def test_why_a_checkpoint_was_not_written_is_said_in_short(
    tmp_path, state, monkeypatch, text, said
) -> None:
    def save(*_: object, **__: object) -> None:
        raise ValueError(text)

    with Checkpoints(tmp_path, keep=2, monitor=ACCURACY) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", save)
        with pytest.raises(NotWritten, match=re.escape(f"{tmp_path}/checkpoints: {said}")):
            checkpoints.save(at(state, 1), Progress())


def test_a_deleted_folder_is_not_made_anew(tmp_path, state) -> None:
    with Checkpoints(tmp_path / "run", keep=2, monitor=ACCURACY) as checkpoints:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(NotWritten, match="was deleted or moved while the run wrote to it"):
            checkpoints.save(at(state, 1), Progress())
    assert not (tmp_path / "run").exists()


def test_bit_sums_see_every_bit_and_every_place() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    whole = bit_sums({"x": values})
    assert bit_sums({"x": jnp.asarray(values)}) == whole
    for bit in (0, 31):
        flipped = values.copy()
        flipped.view(np.uint32)[2, 3] ^= np.uint32(1 << bit)
        assert bit_sums({"x": flipped}) != whole
    assert bit_sums({"x": values[::-1].copy()}) != whole
    assert bit_sums({"x": values.astype(jnp.bfloat16)}) != whole


def test_no_checkpoint_is_said(tmp_path, state) -> None:
    with (
        Checkpoints(tmp_path, keep=1, monitor=ACCURACY) as checkpoints,
        pytest.raises(CheckpointError, match="holds no checkpoint"),
    ):
        checkpoints.restore(state)
