"""A run's records, where they cannot be written, and TensorBoard's files."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import struct

import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from train.run.events import EventFile
from train.run.folder import CheckpointError
from train.run.log import RunLog, read_records

VALUES = {"loss": 0.5, "steps_per_second": 2.0, "divergence": {"layer_0": [1.0, 2.0]}}
FULL = pathlib.Path("/dev/full")
has_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def run_log(workdir: pathlib.Path, start: int = 0) -> RunLog:
    return RunLog(workdir, 10, start, rich.console.Console(file=io.StringIO()), "title")


def events(path: pathlib.Path) -> list[Event]:
    """What a file of TensorBoard's holds, its checksums checked."""
    content, found = path.read_bytes(), []
    while content:
        head, length = content[:8], struct.unpack("<Q", content[:8])[0]
        data = content[12 : 12 + length]
        assert content[8:12] == struct.pack("<I", masked_crc32c(head))
        assert content[12 + length : 16 + length] == struct.pack("<I", masked_crc32c(data))
        found.append(Event.FromString(data))
        content = content[16 + length :]
    return found


@pytest.mark.parametrize(("start", "purged"), [(0, 0), (4, 5)])
def test_tensorboard_gets_the_records(tmp_path, start, purged) -> None:
    with run_log(tmp_path, start) as log:
        log.write(6, "train", VALUES)
        (path,) = (tmp_path / "tensorboard").iterdir()
        version, begin, *points = events(path)  # already while the run goes on
        log.notice(6, "Look: here")
    assert version.file_version == "brain.Event:2"
    assert (begin.step, begin.session_log.status) == (purged, SessionLog.START)
    values = {x.summary.value[0].tag: (x.step, x.summary.value[0].simple_value) for x in points}
    assert values == {
        "train/loss": (6, 0.5),
        "train/steps_per_second": (6, 2.0),
        "train/divergence/layer_0/head_0": (6, 1.0),
        "train/divergence/layer_0/head_1": (6, 2.0),
    }
    assert "Look: here" in str(events(path)[-1])
    assert [record["step"] for record in read_records(tmp_path)] == [6]


def test_off_a_terminal_there_are_lines_for_training_and_the_evaluation_after_it(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    output = io.StringIO()
    console = rich.console.Console(file=output)
    with RunLog(tmp_path / "a", 190, 0, console, "digits ct seed 0") as log:
        log.write(10, "train", VALUES)
        log.write(10, "validation", {"loss": 0.25, "accuracy": 0.9, "reliability": [1]})
        for step in range(11, 20):  # a graph's run has one for each epoch
            log.write(step, "validation", {"loss": 0.25, "accuracy": 0.9})
        log.write(20, "train", VALUES)
        log.write(20, "validation", {"loss": 0.25, "accuracy": 0.8})
    assert output.getvalue().splitlines() == [
        "digits ct seed 0: step 10 of 190, loss 0.5000, 2 steps/s, compilation included",
        "digits ct seed 0: step 10 of 190, validation: loss 0.2500, accuracy 0.9000",
        "digits ct seed 0: step 20 of 190, loss 0.5000, 2 steps/s, 0:01:25 left",
        "digits ct seed 0: step 20 of 190, validation: loss 0.2500, accuracy 0.8000",
    ]
    terminal = rich.console.Console(file=(output := io.StringIO()), force_terminal=True)
    with RunLog(tmp_path / "b", 190, 0, terminal, "digits") as log:  # it has a bar
        log.write(10, "train", VALUES)
    assert "step 10 of" not in output.getvalue()


def test_a_run_goes_on_when_nobody_reads_it(tmp_path) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    with RunLog(tmp_path, 10, 0, rich.console.Console(file=Closed()), "title") as log:
        log.write(6, "train", VALUES)
    assert [record["step"] for record in read_records(tmp_path)] == [6]


def fill_up(file) -> None:
    """From now on an open file has no room."""
    os.dup2(os.open(FULL, os.O_WRONLY), file.fileno())


def write_to_full(workdir: pathlib.Path, part: str) -> None:
    with run_log(workdir) as log:
        fill_up((log if part == "metrics.jsonl" else log._events)._file)
        log.write(1, "train", VALUES)


@has_full
@pytest.mark.parametrize("part", ["metrics.jsonl", "events.out"])
def test_a_full_disk_is_said_once_with_the_file(tmp_path, part) -> None:
    with pytest.raises(OSError, match=f"No space left on device: '.*{part}") as error:
        write_to_full(tmp_path, part)
    assert error.value.__context__ is None  # no second error, of closing the files


def end_on_a_full_disk(workdir: pathlib.Path, error: Exception | None) -> None:
    with run_log(workdir) as log:
        for file in (log._file, log._events._file):
            fill_up(file)
        log._file.write("x")  # which is only found out when the file is closed
        log._events.scalar("x", 1.0, 1)
        if error:
            raise error


@has_full
def test_closing_the_logs_does_not_bury_what_ended_the_run(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="first"):
        end_on_a_full_disk(tmp_path, RuntimeError("first"))
    with pytest.raises(OSError, match="No space left"):
        end_on_a_full_disk(tmp_path, None)


def write_to_deleted(workdir: pathlib.Path) -> None:
    with run_log(workdir) as log:
        log.write(1, "train", VALUES)
        shutil.rmtree(workdir)
        log.write(2, "train", VALUES)


def test_a_folder_that_was_deleted_meanwhile_is_said(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="was deleted or moved while the run wrote to it"):
        write_to_deleted(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_event_file_that_cannot_be_made_is_said(tmp_path) -> None:
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(OSError, match="tensorboard"):
        EventFile(tmp_path / "tensorboard", 0)
