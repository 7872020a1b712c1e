"""Alignment for an NNX model that was written without it."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from align_jax import tapping
from align_jax.alignment import NAME
from align_jax.config import AlignmentConfig

__all__ = ["AlignedNNX", "AlignmentParam", "AlignmentSown"]


class AlignmentParam(nnx.Param):
    """A parameter of an alignment network.

    Example:
      See `AlignedNNX`.
    """


class AlignmentSown(nnx.Intermediate):
    """What the attentions of an `AlignedNNX` sowed in its last call, as Linen's collections.

    Example:
      See `AlignedNNX`.
    """


class AlignedNNX(nnx.Module):
    """An NNX model whose attention is measured in each call.

    It is called as the model is, under `nnx.jit`, `nnx.grad` and with `nnx.Optimizer`; a method of
    the model by its name. After a call in training, `alignment_loss` and `alignment_table` read
    what was sown off the converted model; the next call replaces it. After `eval()` it calls the
    model and measures nothing: what it sowed is NaN, as before the first call.

    Attributes:
      model: the original, which trains with it and remains the plain model.
      networks: the parameters of the alignment networks, each an `AlignmentParam`.
      sown: what the last call sowed, an `AlignmentSown`.
      deterministic: True to sow nothing; `train()` and `eval()` set it.

    Example:
      >>> import jax.numpy as jnp
      >>> from align_jax import aligned, alignment_loss
      >>> attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((3, 5, 8))
      >>> converted = aligned(attention, AlignmentConfig("mmd"), x)
      >>> converted(x).shape, alignment_loss(converted).shape
      ((3, 5, 8), ())
    """

    def __init__(
        self,
        model: nnx.Module,
        config: AlignmentConfig,
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        allow_missing: bool | Sequence[str] = False,
        seed: int = 0,
    ) -> None:
        if isinstance(model, AlignedNNX):
            raise ValueError("The model is already aligned; convert the original instead.")
        if not arguments and not keywords:
            raise TypeError(
                "aligned() of an NNX model also takes the arguments of a call, whose shapes tell "
                "those of its queries and keys: aligned(model, config, x)."
            )
        self.model = model
        self.config = config
        self.allow_missing = tapping.patterns_of_missing(allow_missing)
        self.deterministic = False
        draws = config.tokens or config.subsample > 1
        self.rngs = nnx.Rngs(**{NAME: seed}) if draws else None
        traced, traced_arguments, _ = self._traced("__call__", arguments, keywords)
        networks = tapping.init_networks(traced, config, jax.random.key(seed))
        # From flax 0.12 on an attribute that holds variables has to say so.
        as_data = getattr(nnx, "data", lambda tree: tree)
        self.networks = as_data(jax.tree.map(AlignmentParam, networks))
        # Of the shapes that a call has, so that a loop may carry the model from the start.
        call = traced, config, traced_arguments, networks, (NAME,)
        key = None if self.rngs is None else jax.random.key(seed)
        shapes = jax.eval_shape(lambda: tapping.run(*call, key)[1])
        self.sown = AlignmentSown(jax.tree.map(_not_yet, shapes))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model, with its own arguments; raises as `aligned` says."""
        return self._called("__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        model = self.__dict__.get("model")
        if name.startswith("_") or not inspect.isfunction(getattr(type(model), name, None)):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return lambda *args, **kwargs: self._called(name, args, kwargs)

    def _called(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.deterministic:
            outputs = getattr(self.model, method)(*args, **kwargs)
            # What an earlier call sowed says nothing of this one.
            sown = jax.tree.map(_not_yet, _get(self.sown)) if hasattr(self, "sown") else {}
        else:
            outputs, sown = self._measured(method, args, kwargs, (NAME,))
        if hasattr(self, "sown"):
            _set(self.sown, sown)
        else:  # it was popped
            self.sown = AlignmentSown(sown)
        return outputs

    def measure(
        self, *args: Any, collections: Sequence[str] = (NAME,), **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Calls the model, and returns what was sown beside its outputs instead of keeping it.

        `collections` says what to sow, of "alignment" and "alignment_clouds".
        """
        return self._measured("__call__", args, kwargs, collections)

    def _traced(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = traced_call(self.model, method, args, kwargs)
        what = f"The model {type(self.model).__name__}"
        tapping.check(call[0], self.config, self.allow_missing, what)
        return call

    def _measured(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[Any, dict[str, Any]]:
        traced, arguments, (before, after) = self._traced(method, args, kwargs)
        rng = self.rngs[NAME]() if self.rngs is not None else None
        networks = jax.tree.map(
            _get, dict(self.networks), is_leaf=lambda x: isinstance(x, nnx.Variable)
        )
        (outputs, state), sown = tapping.run(traced, self.config, arguments, networks, names, rng)
        if before == after:
            nnx.update(self.model, state)
        else:
            _adopt(self.model, nnx.merge(after, state))
        return outputs, sown


def traced_call(
    model: nnx.Module, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tapping.Traced, tuple[Any, ...], tuple[Any, Any]]:
    """The program of a call, its arguments, and the model's graph before and after it."""
    graph, state = nnx.split(model)
    arrays, put_back = tapping.split_arrays((args, kwargs))
    after: list[Any] = []

    def function(state: Any, arrays: Sequence[Any]) -> Any:
        args, kwargs = put_back(arrays)
        copied = nnx.merge(graph, state)
        outputs = getattr(copied, method)(*args, **kwargs)
        new_graph, new_state = nnx.split(copied)
        after[:] = [new_graph]
        return outputs, new_state

    traced = tapping.trace(function, (state, arrays), (0, None))
    return traced, (state, arrays), (graph, after[0])


def _adopt(model: nnx.Module, changed: nnx.Module) -> None:
    """Gives a model the attributes that a call of its copy has added."""
    for name, value in vars(changed).items():
        mine = getattr(model, name, None)
        if isinstance(value, nnx.Module) and isinstance(mine, nnx.Module):
            _adopt(mine, value)
        elif isinstance(value, nnx.Variable) and isinstance(mine, nnx.Variable):
            _set(mine, _get(value))
        elif isinstance(value, nnx.Variable | bool | int | float | str):
            setattr(model, name, value)


def _not_yet(shape: Any) -> jax.Array:
    """Stands for what was not sown: not a number, of valid samples, so that no loss hides it."""
    value = jnp.nan if jnp.issubdtype(shape.dtype, jnp.inexact) else shape.dtype == bool
    return jnp.full(shape.shape, value, shape.dtype)


def _get(variable: Any) -> Any:
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


def _set(variable: Any, value: Any) -> None:
    if hasattr(variable, "set_value"):
        variable.set_value(value)
    else:
        variable.value = value
