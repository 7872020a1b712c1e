"""Running the pure steps under `jax.jit` on a mesh of devices, of one process or of many.

The mesh has two axes: "data", along which a batch is cut, and "model", along which heads and hidden
layers are (`train.devices.partition`). The step is written for the whole batch; where its parts
lie, and what they must send each other, XLA derives from where its inputs lie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align_jax import placement
from train.data.base import Batch, pad
from train.devices.partition import DATA, MODEL, shardings
from train.registry import ConfigError
from train.step.state import TrainState
from train.step.step import eval_step, stochastic_step, train_step


class MeshRunner:
    """The way of running called "mesh"; its methods are those of `train.devices.parallel.Parallel`.

    Args:
        devices: of the mesh; all devices of all processes by default.
        model: size of the axis "model"; 1 leaves every parameter whole.
        fsdp: whether parameters and moments are cut along "data" too.
        microbatch_size: rows that a device takes at once in training; 0 for all of its rows.

    Raises:
        ConfigError: `model` does not divide the devices of each process.
    """

    def __init__(
        self,
        devices: Sequence[jax.Device] | None = None,
        *,
        model: int = 1,
        fsdp: bool = False,
        microbatch_size: int = 0,
    ) -> None:
        chosen = list(devices or jax.devices())
        local = sum(device.process_index == jax.process_index() for device in chosen)
        if model < 1 or local % model:
            raise ConfigError(
                f"train.mesh_model is {model}; expected a divisor of {local}, the number of "
                f"devices of each process."
            )
        grid = np.asarray(chosen).reshape(-1, model)
        self._mesh = Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))
        self._fsdp = fsdp
        self._local_shares = local // model
        self._rows = NamedSharding(self._mesh, PartitionSpec(DATA))
        self._programs = _programs(self._mesh, fsdp, microbatch_size)

    def train_step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """`step.train_step` on all devices. The given state is donated: do not reuse it."""
        with jax.set_mesh(self._mesh):
            return self._programs.train_step(state, batch)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """`train_step` for a state and a batch of all processes, or their shapes, lowered."""

        def placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        state = jax.tree.map(placed, state, shardings(state, self._mesh, self._fsdp))
        batch = jax.tree.map(lambda x: placed(x, self._rows), batch)
        with jax.set_mesh(self._mesh):
            return self._programs.train_step.lower(state, batch)

    def eval_step(self, state: TrainState, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """`step.eval_step` on all devices."""
        with jax.set_mesh(self._mesh):
            return self._programs.eval_step(state, batch)

    def stochastic_step(
        self, state: TrainState, batch: Any, number: int, passes: int
    ) -> dict[str, Any]:
        """`step.stochastic_step` on all devices."""
        with jax.set_mesh(self._mesh):
            return self._programs.stochastic_step(state, batch, np.int32(number), passes)

    def place(self, tree: Any) -> Any:
        """Cuts or copies every array of a tree, as `train.devices.partition` says."""
        return jax.tree.map(_put, tree, shardings(tree, self._mesh, self._fsdp))

    def shard(self, batch: Batch) -> Any:
        """Cuts this process's rows into equal shares: [B, ...] -> [B of all processes, ...].

        Rows that are missing for equal shares are filled in with mask False.
        """
        count = self._local_shares
        if count > 1:
            batch = pad(batch, -(-len(batch["mask"]) // count) * count)
        # A batch that cannot be cut, whose arrays differ in length, is on one device as it is.
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self._rows, np.asarray(x)),
            dict(batch),
        )

    def first(self, tree: Any) -> Any:
        """Whole arrays, as NumPy arrays."""
        return jax.device_get(self._replicated(tree))

    join = first  # the rows of all processes, padding included

    def gather(self, state: TrainState) -> TrainState:
        """The whole state on this process's first device."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data, self._replicated(state))

    def to_save(self, state: TrainState) -> TrainState:
        """The state as it lies: each process writes its part."""
        return state

    def _replicated(self, tree: Any) -> Any:
        """Every array as a copy on each device; reports are so already."""
        leaves, structure = jax.tree.flatten(tree)
        cut = [x for x in leaves if not x.is_fully_replicated]
        copies = iter(self._programs.replicate(cut)) if cut else iter(())
        whole = [x if x.is_fully_replicated else next(copies) for x in leaves]
        return jax.tree.unflatten(structure, whole)


class _Programs(NamedTuple):
    """What is compiled for a mesh."""

    train_step: jax.stages.Wrapped
    eval_step: Callable[..., Any]
    stochastic_step: Callable[..., Any]
    replicate: Callable[..., Any]


@functools.cache  # runs that differ in their seeds alone trace and compile once
def _programs(mesh: Mesh, fsdp: bool, microbatch_size: int) -> _Programs:
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((DATA,), ()))

    constrain = jax.lax.with_sharding_constraint

    def gather(params: Any) -> Any:
        used, cut = (shardings(params, mesh, fsdp, in_use=each) for each in (True, False))
        return jax.tree.map(_gathered, params, used, cut)

    def placed(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def on_mesh(state: TrainState, batch: Any, *arguments: Any) -> Any:
            # Left to itself, the partitioner gathers the batch rather than the parameters.
            batch = constrain(batch, jax.tree.map(lambda _: rows, batch))
            words = DATA if fsdp else None
            with placement.cut_along(samples=DATA, heads=MODEL, words=words):
                return step(state, batch, *arguments)

        return on_mesh

    @placed
    def training(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        shares = mesh.shape[DATA]
        state, report = train_step(
            state, batch, microbatch_size=microbatch_size, shares=shares, gather=gather
        )
        where = shardings(state, mesh, fsdp)
        return constrain(state, where), constrain(report, jax.tree.map(lambda _: whole, report))

    return _Programs(
        train_step=jax.jit(training, donate_argnums=(0,)),
        eval_step=jax.jit(placed(eval_step), out_shardings=(whole, rows)),
        stochastic_step=jax.jit(placed(stochastic_step), static_argnums=(3,), out_shardings=whole),
        replicate=jax.jit(lambda arrays: arrays, out_shardings=whole),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: Any, used: NamedSharding, cut: NamedSharding) -> Any:
    """A parameter gathered for its use; each device gets the sum of its part of the gradient."""
    return jax.lax.with_sharding_constraint(x, used)


def _gathered_forward(x: Any, used: NamedSharding, cut: NamedSharding) -> tuple[Any, None]:
    return _gathered(x, used, cut), None


def _gathered_backward(_: NamedSharding, cut: NamedSharding, __: None, gradient: Any) -> Any:
    return (jax.lax.with_sharding_constraint(gradient, cut),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, as one whose parts lie where they belong."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
