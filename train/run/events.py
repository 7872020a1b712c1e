"""TensorBoard's event files, written at once.

tensorboardX's own writer does it in a thread: when the disk is full the thread ends, with its trace
on the terminal, and whoever writes waits for it for ever.
"""

from __future__ import annotations

import pathlib
import socket
import struct
import sys
import time
from types import ModuleType
from typing import Any

from train.process import naming


class EventFile:
    """A new event file.

    Args:
        folder: TensorBoard's; made if missing.
        start: the step at which this process starts: what the files before it hold of later steps
            is hidden.

    Raises:
        OSError: it cannot be written, also by the methods.
    """

    def __init__(self, folder: pathlib.Path, start: int) -> None:
        self._tensorboard = _tensorboardx()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file = self.path.open("wb")
        self._add(file_version="brain.Event:2")
        purged = start + 1 if start else 0
        log = self._tensorboard.proto.event_pb2.SessionLog
        self._add(step=purged, session_log=log(status=log.START))
        self.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point of a curve."""
        self._add(step=step, summary=self._tensorboard.summary.scalar(name, value))

    def text(self, name: str, text: str, step: int) -> None:
        """Adds a text."""
        self._add(step=step, summary=self._tensorboard.summary.text(name, text))

    def flush(self) -> None:
        """Hands what was added to the operating system."""
        with naming(self.path):
            self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        with naming(self.path):
            self._file.close()

    def _add(self, **fields: Any) -> None:
        event = self._tensorboard.proto.event_pb2.Event(wall_time=time.time(), **fields)
        data = event.SerializeToString()
        checksum = self._tensorboard.record_writer.masked_crc32c
        length = struct.pack("<Q", len(data))
        with naming(self.path):
            self._file.write(length + struct.pack("<I", checksum(length)))
            self._file.write(data + struct.pack("<I", checksum(data)))


def _tensorboardx() -> ModuleType:
    """The library, without PyTorch, which it imports for the name of a type: seconds of a run."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails
    try:
        import tensorboardX
        import tensorboardX.proto.event_pb2
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX
