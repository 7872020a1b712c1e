"""Being told to stop: SIGTERM, which schedulers send before they take a machine away."""

from __future__ import annotations

import signal
import threading

import jax
from jax.experimental import multihost_utils

from train.process import UserError


class Interrupted(UserError, RuntimeError):
    """A run was told to stop, saved its state and ended before its last step."""

    status = 128 + signal.SIGTERM
    label = ""  # it is no error


class OutOfTime(Interrupted):
    """A run's deadline has passed."""


class Interruption:
    """Notices SIGTERM while it is open, instead of dying of it.

    With many processes JAX's own service takes the signal, whichever of them gets it, and names a
    step at which all of them stop.

    Example:
        >>> with Interruption() as interruption:
        ...     interruption.reached(step=1)
        False
    """

    def __init__(self) -> None:
        self.asked = False  # whether SIGTERM came, to this one process
        self._previous: object = None

    def __enter__(self) -> Interruption:
        # Python allows handlers in the main thread alone; elsewhere a run just cannot be asked.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)  # type: ignore[arg-type]

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; every process must ask after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked

    def _ask(self, *_: object) -> None:
        self.asked = True
