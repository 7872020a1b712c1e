"""Running the pure steps on devices.

One way so far, "pmap": the batch is cut into equal shares, one per local device, and the
parameters are copied to all of them. A way of running is a class with the methods of `Pmap`; the
loop knows nothing else about devices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from train.data.base import Batch, pad
from train.registry import ConfigError, nearest
from train.state import TrainState
from train.step import eval_step, stochastic_step, train_step

AXIS = "devices"


class Pmap:
    """`jax.pmap` over local devices; arrays carry a leading device axis D.

    Args:
        devices: the devices to use; all local ones by default.

    Example:
        >>> parallel = Pmap()
        >>> state = parallel.replicate(state)
        >>> state, metrics = parallel.train_step(state, parallel.shard(batch))
        >>> parallel.first(metrics)["loss"].compute()
        2.31
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        self.devices = list(devices or jax.local_devices())
        mesh = jax.sharding.Mesh(np.asarray(self.devices), (AXIS,))
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
        self._train_step = jax.pmap(
            functools.partial(train_step, axis_name=AXIS),
            axis_name=AXIS,
            devices=self.devices,
            donate_argnums=(0,),
        )
        self._eval_step = jax.pmap(
            functools.partial(eval_step, axis_name=AXIS), axis_name=AXIS, devices=self.devices
        )
        self._stochastic_step = jax.pmap(
            functools.partial(stochastic_step, axis_name=AXIS),
            axis_name=AXIS,
            devices=self.devices,
            in_axes=(0, 0, None),
            static_broadcasted_argnums=(3,),
        )

    def train_step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """`train.step.train_step` on all devices. The given state is donated: do not reuse it."""
        return self._train_step(state, batch)

    def eval_step(self, state: TrainState, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """`train.step.eval_step` on all devices."""
        return self._eval_step(state, batch)

    def stochastic_step(
        self, state: TrainState, batch: Any, number: int, passes: int
    ) -> dict[str, Any]:
        """`train.step.stochastic_step` on all devices."""
        return self._stochastic_step(state, batch, number, passes)

    def replicate(self, tree: Any) -> Any:
        """Copies every array of a tree to every device: [...] -> [D, ...]."""
        return jax.tree.map(self._replicate, tree)

    def shard(self, batch: Batch) -> Any:
        """Cuts a batch into one share per device: [B, ...] -> [D, ceil(B / D), ...].

        Rows that are missing for equal shares are filled in with mask False.
        """
        count = len(self.devices)
        if count == 1:  # nothing to cut: also a batch that cannot be, whose arrays differ in length
            return jax.device_put(jax.tree.map(lambda x: x[None], dict(batch)), self._sharding)
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
        return jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), jax.tree.map(np.asarray, jax.device_get(tree))
        )

    def unreplicate(self, state: TrainState) -> TrainState:
        """One copy of a replicated state: [D, ...] -> [...], on the first device."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0], state)

    def _replicate(self, x: Any) -> jax.Array:
        copies = jax.numpy.broadcast_to(x, (len(self.devices), *jax.numpy.shape(x)))
        return jax.device_put(copies, self._sharding)


PARALLEL = {"pmap": Pmap}


def make_parallel(name: str, devices: Sequence[jax.Device] | None = None) -> Pmap:
    """Builds the way of running that a config names.

    Raises:
        ConfigError: unknown name.
    """
    if name not in PARALLEL:
        raise ConfigError(
            f"train.parallel is {name!r}; {nearest(name, PARALLEL)}known: {', '.join(PARALLEL)}."
        )
    return PARALLEL[name](devices)
