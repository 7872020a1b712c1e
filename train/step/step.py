"""One step of training, one of evaluation and one with dropout, as pure functions.

All take a whole batch (`axis_name=None`) or one device's share of it, in which case sums and
counts are added over the devices of `axis_name` before anything is divided. N devices therefore
give the numbers of one, also when the shares hold different numbers of examples. Only random
numbers (dropout) differ, since every device draws its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Float

from align_jax import alignment_sums, alignment_table
from train.registry import ConfigError
from train.step.freezing import join, split
from train.step.state import TrainState
from train.tasks.base import Batch
from train.tasks.metrics import Mean


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    axis_name: str | None = None,
    microbatch_size: int = 0,
    shares: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
) -> tuple[TrainState, dict[str, Any]]:
    """Takes one optimiser step on `task loss + weight * alignment`.

    The signs of the alignment's gradients are settled inside the model (gradient reversal), so one
    backward pass and one optimiser train the model and its critics. What `state.freeze` names keeps
    its bits and is not differentiated: with the embeddings and four of MiniLM's six layers frozen,
    a step on 32 x 64 tokens takes 0.54 of the operations.

    Args:
        state: the state before the step.
        batch: arrays with a leading example axis, and "mask".
        axis_name: the device axis when called under `jax.pmap`, else None.
        microbatch_size: rows that a device takes at once. It takes its rows in equal parts of at
            most so many, one after the other, and adds up their gradients: the same step but for
            dropout, which draws anew for each part, in less memory. 0: all at once.
        shares: devices over which a mesh has cut the batch along its rows, so that each of them
            has its rows of every part.
        gather: makes whole parameters of those that each device holds a part of.

    Returns:
        The next state, and sums and counts over all devices: "loss" (task + weighted alignment),
        "task_loss", "gradient_norm", the task's metrics, and with an active alignment
        "alignment", "alignment_weight", "divergence" (per layer, [H]) and, for OT,
        "sinkhorn_iterations", "sinkhorn_residual" and the share of plans that have not converged,
        "sinkhorn_unconverged".
    """
    rng = _step_rng(state, axis_name)
    examples = _sum(batch["mask"].sum().astype(jnp.float32), axis_name)
    rows = len(batch["mask"]) // shares
    number = -(-rows // microbatch_size) if microbatch_size else 1

    trained, frozen = split(state.params, state.freeze)

    def share_of_loss(
        trained: Any, part: Batch, rng: Array, counts: Array | None
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        """This part's share of the loss; the shares add up to the loss of the whole batch."""
        params = gather(join(trained, frozen))
        outputs, collections = _forward(state, params, part, {"dropout": rng})
        losses = _losses(state, outputs, part)
        task_loss = jnp.where(part["mask"], losses, 0.0).sum() / jnp.maximum(examples, 1.0)
        alignment, report = _alignment(state, collections, part, axis_name, counts, number)
        weighted = state.alignment.weight_at(state.step) * alignment
        report |= {"task_loss": Mean.of(losses, part["mask"])}
        report |= state.task.metrics(outputs, part)
        return task_loss + weighted, report

    gradient = jax.value_and_grad(share_of_loss, has_aux=True)
    if number == 1:
        (loss, report), gradients = gradient(trained, batch, rng, None)
    else:
        counts = None
        if state.alignment.active:
            # They depend on masks alone; XLA drops the rest of this pass.
            collections = _forward(state, state.params, batch, {"dropout": rng})[1]
            mask = state.task.sample_mask(batch)
            counts = _sum(alignment_sums(collections, mask).count, axis_name)

        def add(sums: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
            index, part = numbered
            one = gradient(trained, part, jax.random.fold_in(rng, index), counts)
            return jax.tree.map(jnp.add, sums, one), None

        parts = _cut(batch, number, shares)
        first = {name: array[0] for name, array in parts.items()}
        shapes = jax.eval_shape(gradient, trained, first, rng, counts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        numbered = (jnp.arange(number), parts)
        ((loss, report), gradients), _ = jax.lax.scan(add, zeros, numbered)
    loss, report, gradients = _sum((loss, report, gradients), axis_name)

    updates, opt_state = state.tx.update(gradients, state.opt_state, trained)
    report |= {"loss": _once(loss), "gradient_norm": _once(optax.tree.norm(gradients))}
    if state.alignment.active:
        report |= {"alignment_weight": _once(state.alignment.weight_at(state.step))}
    state = state.replace(
        step=state.step + 1,
        params=join(optax.apply_updates(trained, updates), frozen),
        opt_state=opt_state,
    )
    return state, report


def eval_step(
    state: TrainState, batch: Batch, *, axis_name: str | None = None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Evaluates a batch without dropout and without alignment; arguments as for training.

    Returns:
        Sums and counts over all devices ("loss", the task's loss alone, and the task's metrics),
        and this device's predictions [B, ...], padding rows included.
    """
    outputs = state.task.apply(state.model, state.variables, batch, train=False)
    report = {"loss": Mean.of(_losses(state, outputs, batch), batch["mask"])}
    report |= state.task.metrics(outputs, batch)
    return _sum(report, axis_name), state.task.predictions(outputs, batch)


def stochastic_step(
    state: TrainState, batch: Batch, number: Array, passes: int, *, axis_name: str | None = None
) -> dict[str, Any]:
    """Evaluates a batch several times with dropout: how much do its predictions vary?

    Args beyond those of training:
        number: of the batch, so that each has other random numbers.
        passes: how often.

    Returns:
        Sums and counts over all devices, the task's stochastic metrics.
    """
    rng = jax.random.fold_in(_step_rng(state, axis_name), number)

    def outputs(rng: Array) -> Any:
        rngs = {"dropout": rng}
        return state.task.apply(state.model, state.variables, batch, train=True, rngs=rngs)

    stacked = jax.lax.map(outputs, jax.random.split(rng, passes))
    return _sum(state.task.stochastic_metrics(stacked, batch), axis_name)


def _cut(batch: Batch, number: int, shares: int) -> Batch:
    """So many equal parts: [B, ...] -> [number, B / number, ...].

    Each part has rows of every share. What is missing for equal parts are copies of rows, masked
    out, as in `train.data.base.pad`.
    """
    rows = len(batch["mask"]) // shares
    missing = -(-rows // number) * number - rows

    def parts(array: Array, masked: bool) -> Array:
        cut = array.reshape(shares, rows, *array.shape[1:])
        copies = jnp.repeat(cut[:, :1], missing, axis=1)
        cut = jnp.concatenate([cut, jnp.zeros_like(copies) if masked else copies], axis=1)
        cut = cut.reshape(shares, number, -1, *array.shape[1:]).swapaxes(0, 1)
        return cut.reshape(number, -1, *array.shape[1:])

    return {name: parts(array, name == "mask") for name, array in batch.items()}


def _losses(state: TrainState, outputs: Any, batch: Batch) -> Float[Array, "B"]:
    """The task's; of another shape they would be broadcast against the mask, silently."""
    losses = state.task.loss(outputs, batch)
    message = f"{type(state.task).__name__}.loss must return one number per example."
    chex.assert_equal_shape([losses, batch["mask"]], custom_message=message)
    return losses


def _forward(
    state: TrainState, params: Any, batch: Batch, rngs: dict[str, Array]
) -> tuple[Any, Mapping[str, Any]]:
    """Outputs and what was sown; a plain model is not asked to sow, so that it costs nothing."""
    variables = state.replace(params=params).variables
    if not state.alignment.active:
        return state.task.apply(state.model, variables, batch, train=True, rngs=rngs), {}
    outputs, collections = state.task.apply(
        state.model, variables, batch, train=True, rngs=rngs, mutable=["alignment"]
    )
    if not collections:
        raise ConfigError(
            f"config.alignment.layers is {state.alignment.config.layers!r}, which no attention of "
            f"the model has in its path; expected such as ('layer_0/',), or None for all."
        )
    return outputs, collections


def _alignment(
    state: TrainState,
    collections: Mapping[str, Any],
    part: Batch,
    axis_name: str | None,
    counts: Array | None,
    number: int,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """This part's share of the mean divergence, and its report as sums and counts.

    `collections` is what the part's forward pass has sown, one of a `number` of parts on this
    device. `counts` are the valid samples of each attention call in the whole batch; None if the
    part is all that this device has.
    """
    if not state.alignment.active:
        return jnp.float32(0.0), {}
    mask = state.task.sample_mask(part)
    sums = alignment_sums(collections, mask)
    if counts is None:
        counts = _sum(sums.count, axis_name)

    # A layer counts if any device has a valid sample for it; counts carry no gradient.
    layers = jnp.maximum((counts > 0).sum(), 1)
    share = (sums.total / jnp.maximum(counts, 1.0)).sum() / layers

    table = alignment_table(collections, mask)
    report = {
        "alignment": Mean(total=share, count=jnp.float32(1.0 / _sum(1.0, axis_name) / number)),
        "divergence": {
            layer: Mean(total=heads * sums.count[index], count=sums.count[index])
            for index, (layer, heads) in enumerate(table.items())
        },
    }
    return share, report | _sinkhorn(collections, mask)


def _sinkhorn(collections: Mapping[str, Any], mask: Array | None) -> dict[str, Mean]:
    """Iterations, residual and share of plans not converged of Sinkhorn, where there is one."""
    names = "sinkhorn_iterations", "sinkhorn_residual", "sinkhorn_unconverged"
    found: dict[str, list[Array]] = {name: [] for name in names}
    for path, calls in traverse_util.flatten_dict(dict(collections)).items():
        if path[-1] in found:
            # nn.scan puts the layers in front of a call's [B, H].
            found[path[-1]] += [x.reshape(-1, *x.shape[-2:]) for x in jax.tree.leaves(calls)]
    return {
        name: Mean.of(jnp.concatenate([x.mean(axis=-1) for x in values]).mean(axis=0), mask)
        for name, values in found.items()
        if values
    }


def _step_rng(state: TrainState, axis_name: str | None) -> Array:
    """A key of this step and this device."""
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    return jax.random.fold_in(jax.random.fold_in(state.rng, state.step), device)


def _sum(tree: Any, axis_name: str | None) -> Any:
    """Adds over the devices."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _once(value: Array) -> Mean:
    """A number that is already that of all devices, counted once per step."""
    return Mean(total=value, count=jnp.float32(1.0))
