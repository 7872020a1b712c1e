"""Running the pure steps on devices.

Two ways, by the config's `train.parallel`: "pmap" cuts the batch into equal shares, one per local
device, and copies the parameters to all of them; "mesh" (`train.devices.mesh`) leaves both to the
compiler, may cut the parameters as well, and reaches over many hosts. Where there is one device,
both are `jax.jit`. The loop knows nothing else about devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from train.data.base import Batch, pad
from train.devices.mesh import MeshRunner
from train.registry import ConfigError, check_known
from train.step.state import TrainState
from train.step.step import eval_step, stochastic_step, train_step

AXIS = "devices"
WAYS = "pmap", "mesh"


class Pmap:
    """`jax.pmap` over local devices; arrays carry a leading device axis D.

    Args:
        devices: the devices to use; all local ones by default.
        microbatch_size: rows that a device takes at once in training; 0 for all of its rows.
    """

    def __init__(
        self, devices: Sequence[jax.Device] | None = None, *, microbatch_size: int = 0
    ) -> None:
        self.devices = list(devices or jax.local_devices())
        mesh = jax.sharding.Mesh(np.asarray(self.devices), (AXIS,))
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
        # The steps of `train.step.step` on all devices; states that are trained are donated.
        steps = _programs(tuple(self.devices), microbatch_size)
        self.train_step, self.eval_step, self.stochastic_step = steps

    def place(self, tree: Any) -> Any:
        """Copies every array of a tree to every device: [...] -> [D, ...]."""
        count = len(self.devices)
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), tree)
        return jax.device_put(copies, self._sharding)

    def shard(self, batch: Batch) -> Any:
        """Cuts a batch into one share per device: [B, ...] -> [D, ceil(B / D), ...].

        Rows that are missing for equal shares are filled in with mask False.
        """
        count = len(self.devices)
        rows = -(-len(batch["mask"]) // count)
        padded = pad(batch, rows * count)
        shares = {name: x.reshape(count, rows, *x.shape[1:]) for name, x in padded.items()}
        return jax.device_put(shares, self._sharding)

    def first(self, tree: Any) -> Any:
        """One device's copy of a replicated tree, as NumPy arrays: [D, ...] -> [...]."""
        shards = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
        return jax.tree.map(lambda x: x[0], jax.device_get(shards))

    def join(self, tree: Any) -> Any:
        """Undoes `shard`, padding included: [D, B, ...] -> [D * B, ...], as NumPy arrays."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree))

    def gather(self, state: TrainState) -> TrainState:
        """One copy of a replicated state: [D, ...] -> [...], on the first device."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0], state)

    to_save = gather


@functools.cache  # runs that differ in their seeds alone trace and compile once
def _programs(devices: tuple[jax.Device, ...], microbatch_size: int) -> list[Callable[..., Any]]:
    pmap = functools.partial(jax.pmap, axis_name=AXIS, devices=devices)
    training, evaluation, stochastic = (
        functools.partial(step, axis_name=AXIS) for step in (train_step, eval_step, stochastic_step)
    )
    training = functools.partial(training, microbatch_size=microbatch_size)
    return [
        pmap(training, donate_argnums=(0,)),
        pmap(evaluation),
        pmap(stochastic, in_axes=(0, 0, None), static_broadcasted_argnums=(3,)),
    ]


# A way of running; states, batches and reports are as it places them.
Parallel: TypeAlias = Pmap | MeshRunner


def make_parallel(
    name: str,
    devices: Sequence[jax.Device] | None = None,
    *,
    model: int = 1,
    fsdp: bool = False,
    microbatch_size: int = 0,
) -> Parallel:
    """The way of running of a name: "pmap", which on one device is a mesh of one, or "mesh".

    On all devices if none are given; the other arguments as of `MeshRunner`.

    Raises:
        ConfigError: unknown name, what only a mesh can do, or a size below 0.
    """
    if microbatch_size < 0:
        raise ConfigError(
            f"train.microbatch_size is {microbatch_size}; expected 0 (all rows at once) or more."
        )
    check_known("train.parallel is", name, WAYS)
    if name == "mesh":
        return MeshRunner(devices, model=model, fsdp=fsdp, microbatch_size=microbatch_size)
    for wanted, what in (
        (model > 1, f"train.mesh_model is {model}"),
        (fsdp, "train.mesh_fsdp is True"),
        (jax.process_count() > 1, f"there are {jax.process_count()} processes"),
    ):
        if wanted:
            raise ConfigError(f"{what}, which needs --config.train.parallel=mesh, not 'pmap'.")
    devices = devices or jax.local_devices()
    # With a device axis of 1, XLA copies the whole state in every step: 8 % of one of MiniLM's.
    runner = Pmap if len(devices) > 1 else MeshRunner
    return runner(devices, microbatch_size=microbatch_size)


def parallel_of(
    config: ConfigDict,
    devices: Sequence[jax.Device] | None = None,
    *,
    splittable: bool = True,
) -> Parallel:
    """The way of running that an experiment's config describes; see `make_parallel`.

    Data that are not `splittable`, as their metadata say, run whole, on the first local device.

    Raises:
        ConfigError: as of `make_parallel`, or parts are asked for of what has none.
    """
    train = config.train
    if not splittable:
        if train.microbatch_size:
            raise ConfigError(
                f"train.microbatch_size is {train.microbatch_size}, but {config.name} is trained "
                f"on one whole graph, which has no parts; expected 0."
            )
        devices = list(devices or jax.local_devices())[:1]
    platform = (devices or jax.devices())[0].platform
    whole = train.microbatch_cpu_only and platform != "cpu"
    return make_parallel(
        train.parallel,
        devices,
        model=train.mesh_model,
        fsdp=train.mesh_fsdp,
        microbatch_size=0 if whole else train.microbatch_size,
    )
