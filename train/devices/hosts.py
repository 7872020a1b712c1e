"""Many processes that train one model: starting them, and who does what only one may do.

Each process has its own devices, reads its own rows of every batch, and takes part in every step
and every checkpoint. The first one alone writes the log and the results.
"""

from __future__ import annotations

import jax
from jax.experimental import multihost_utils

from train.data.base import Share
from train.registry import ConfigError

# How long a process may be silent before the others give it up. JAX's own default is 100 s.
HEARTBEAT_SECONDS = 20


def connect(coordinator: str = "", processes: int = 0, number: int = -1) -> None:
    """Joins the other processes; call it before anything else uses JAX.

    Args:
        coordinator: address of the first process, "HOST:PORT". Without any, what runs the
            processes is asked: SLURM, Open MPI, Kubernetes or a TPU pod slice.
        processes, number: how many there are, and this one's, from 0; 0 and -1 to ask.

    Raises:
        ConfigError: only a part is given, they do not fit, or the others could not be reached.
    """
    given = (bool(coordinator), processes > 0, number >= 0)
    if any(given) and not all(given):
        raise ConfigError(
            f"--coordinator is {coordinator!r}, --processes {processes} and --process {number}; "
            f"expected all three, or only --distributed where SLURM or a TPU knows them."
        )
    if any(given) and number >= processes:
        raise ConfigError(f"--process is {number}; expected 0 to {processes - 1}.")
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes or None,
            number if number >= 0 else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The processes could not find each other: {' '.join(str(error).split())}. Check that "
            f"--coordinator can be reached from every host and that all processes were started."
        ) from error


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def share() -> Share:
    """The rows of every batch that this process reads."""
    return Share(jax.process_index(), jax.process_count())


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
