"""Alignment for a Linen model that was written without it."""

import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.core import Scope, unfreeze
from flax.core.scope import DenyList, subtract_filters

from align_jax import tapping
from align_jax.alignment import CLOUDS, NAME, refuse_what_was_sown_before
from align_jax.collection import strip_alignment
from align_jax.config import AlignmentConfig


def aligned(
    model: Any,
    config: AlignmentConfig | str,
    *arguments: Any,
    allow_missing: bool | Sequence[str] = False,
    **keywords: Any,
) -> Any:
    """Converts a Linen or NNX model, without editing it.

    Every attention in it, whatever module it is written in, sows the alignment of its queries and
    keys: `attention_report` shows which are found. What is found are softmaxes (or sigmoids) of
    products of queries and keys that weigh values, in the program that JAX traces of the model:
    through `nn.remat`, `nn.scan`, `nn.vmap` and `nn.jit`, with rotated, grouped and normalised
    queries and keys. Which tokens take part is read off the masks as `token_masks` says.

    The names of the model's parameters do not change: in evaluation the converted model calls the
    original, and `strip_alignment` of its parameters gives exactly the original's tree.

    Args:
      model: a Linen module, not yet bound; or an NNX module, for which see
        `align_jax.convert_nnx.AlignedNNX`.
      config: what to align, and how; the name of a method, such as "ct", for its defaults.
      *arguments: of an NNX model, the arguments of a call, to know the shapes of its queries and
        keys by. Of a Linen model none: `init` gets them.
      allow_missing: True to leave out attentions that cannot be aligned, or patterns of the names
        of those that may be left out. By default one that cannot be aligned is an error.
      **keywords: of the call of an NNX model.

    Returns:
      A module of the same library that is called as the model is, other methods by their name:
      `converted.apply(variables, x, method="encode")`.

    Raises:
      TypeError: if `model` is no Linen or NNX module, or `config` is no configuration.
      ValueError: if it is already aligned, or an attention in it is; at `init`, and when it trains,
        if it contains no attention, or one that cannot be aligned.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = nn.SelfAttention(num_heads=2)
      >>> converted = aligned(model, AlignmentConfig("ct"))
      >>> variables = jax.jit(converted.init)(jax.random.key(0), jnp.ones((1, 3, 4)))
      >>> sorted(variables["params"]["alignment"])
      ['critic', 'navigator']
    """
    if isinstance(model, AlignedModel):
        raise ValueError("The model is already aligned; convert the original instead.")
    config = AlignmentConfig.of(config)
    if isinstance(model, nn.Module):
        if arguments or keywords:
            raise TypeError(
                "aligned() of a Linen model takes no arguments of a call: init() gets them."
            )
        _check_ownership(model)
        return AlignedModel(_Original(model), config, tapping.patterns_of_missing(allow_missing))
    from flax import nnx

    if isinstance(model, nnx.Module):
        from align_jax.convert_nnx import AlignedNNX

        return AlignedNNX(model, config, arguments, keywords, allow_missing)
    raise TypeError(
        f"aligned() takes a flax.linen or flax.nnx module, got {type(model).__name__}. Pass the "
        "model itself, not its class or its apply function; for a function there is "
        "aligned_function()."
    )


@dataclasses.dataclass(frozen=True)
class _Original:
    """Hides a module from the one that holds it: its names stay free, and its scope the model's."""

    model: nn.Module


class AlignedModel(nn.Module):
    """What `aligned` returns of a Linen model: the same, with its attention measured.

    Attributes:
      original: holds the model.
      config: what to align, and how.
      allow_missing: patterns of names, see `aligned`.

    Example:
      See `aligned`.
    """

    original: _Original
    config: AlignmentConfig
    allow_missing: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model, with its own arguments; raises as `aligned` says."""
        return self._called("__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = type(getattr(self.__dict__.get("original"), "model", None))
            if name.startswith("__") or not inspect.isfunction(getattr(model, name, None)):
                raise

        def method(module: "AlignedModel", *args: Any, **kwargs: Any) -> Any:
            return module._called(name, args, kwargs)

        # Flax unbinds what it finds under a method's name and passes the bound module itself.
        return types.MethodType(method, self)

    @nn.nowrap
    def _bound(self, scope: Any) -> nn.Module:
        # As Linen's own apply does it: the model becomes the owner of the scope.
        return self.original.model.clone(parent=scope, _deep_clone=True)

    @nn.compact
    def _called(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scope = self.scope
        assert scope is not None
        collections = [name for name in (NAME, CLOUDS) if self.is_mutable_collection(name)]
        if self.is_initializing():
            # Networks may be there from an earlier call of this module.
            before = _has_networks(self.variables.get("params", {}))
            outputs = getattr(self._bound(scope), method)(*args, **kwargs)
            if not before:
                self._init_networks(method, args, kwargs)
            return outputs
        if not collections:
            return getattr(self._bound(scope), method)(*args, **kwargs)
        refuse_what_was_sown_before(self)
        traced, arguments = self._traced(method, args, kwargs)
        tapping.check(traced, self.config, self.allow_missing, self._name())
        rng = None
        streams = [name for name in (NAME, "dropout") if self.has_rng(name)]
        if streams:
            rng = jax.random.fold_in(scope.rngs[streams[0]].as_jax_rng(), 0)
        params = self.variables.get("params", {})
        (outputs, changed), sown = tapping.run(
            traced, self.config, arguments, params, collections, rng
        )
        for collection, values in (changed | sown).items():
            for name, value in values.items():
                before = scope.get_variable(collection, name, {}) if collection in sown else {}
                scope.put_variable(collection, name, _merged(before, value))
        return outputs

    @nn.nowrap
    def _name(self) -> str:
        return f"The model {type(self.original.model).__name__}"

    @nn.nowrap
    def _refuse_own(self) -> None:
        raise ValueError(
            f"{self._name()} already has an alignment of its own. Leave that out, or do not "
            "convert the model."
        )

    @nn.nowrap
    def _traced(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tapping.Traced, tuple[Any, ...]]:
        """The model's program, and its arguments: variables, and the arrays of the call."""
        scope = self.scope
        assert scope is not None
        variables = _without_alignment(self.variables)
        arrays, put_back = tapping.split_arrays((args, kwargs))
        mutable: Any = (NAME,)  # to see whether the model sows on its own
        if not self.is_initializing():
            mutable = subtract_filters(scope.mutable, (NAME, CLOUDS))
        elif "cache" in variables:
            # What decodes step by step from now on has seen whole sequences at init.
            rngs = {name: rng.as_jax_rng() for name, rng in scope.rngs.items()}
            model, params = self.original.model, variables["params"]
            return traced_init(model, params, rngs, method, args, kwargs), (variables, arrays)

        def function(variables: Any, arrays: Sequence[Any]) -> Any:
            args, kwargs = put_back(arrays)
            inside = Scope(variables, scope.rngs, mutable=mutable, path=scope.path)
            outputs = getattr(self._bound(inside), method)(*args, **kwargs)
            changed = unfreeze(dict(inside.mutable_variables()))
            if NAME in changed:
                self._refuse_own()
            return outputs, changed

        traced = tapping.trace(function, (variables, arrays), (1, None))
        return traced, (variables, arrays)

    @nn.nowrap
    def _init_networks(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scope = self.scope
        assert scope is not None
        own = unfreeze(dict(self.variables.get("params", {})))
        if _has_networks(own):
            self._refuse_own()
        traced, _ = self._traced(method, args, kwargs)
        tapping.check(traced, self.config, self.allow_missing, self._name())
        rng = scope.rngs["params"].as_jax_rng()
        networks = tapping.init_networks(traced, self.config, rng)
        for name, value in networks.items():
            scope.put_variable("params", name, _merged(own.get(name), value))


def traced_module(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tapping.Traced:
    """The program of a Linen module that has no parameters yet."""
    streams = ("params", "dropout", NAME)
    rngs = {name: jax.random.key(number) for number, name in enumerate(streams)}

    def init(*arrays: Any) -> Any:
        args, kwargs = put_back(arrays)
        return _without_alignment(model.init(rngs, *args, **kwargs))

    arrays, put_back = tapping.split_arrays((args, kwargs))
    variables = jax.eval_shape(init, *arrays)
    if "cache" in variables:
        return traced_init(model, variables["params"], rngs, "__call__", args, kwargs)

    def function(variables: Any, *arrays: Any) -> Any:
        args, kwargs = put_back(arrays)
        return model.apply(variables, *args, **kwargs, rngs=rngs, mutable=True)

    return tapping.trace(function, (variables, *arrays), (1, *(None for _ in arrays)))


def traced_init(
    model: nn.Module,
    params: Any,
    keys: Any,
    method: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> tapping.Traced:
    """The program of a module's initialisation, with its parameters as given."""
    arrays, put_back = tapping.split_arrays((args, kwargs))

    def function(params: Any, *arrays: Any) -> Any:
        args, kwargs = put_back(arrays)
        flags = {"initializing": True}
        scope = Scope({"params": params}, keys, mutable=DenyList("params"), flags=flags)
        return getattr(model.clone(parent=scope, _deep_clone=True), method)(*args, **kwargs)

    return tapping.trace(function, (params, *arrays), (0, *(None for _ in arrays)))


def _check_ownership(model: nn.Module) -> None:
    """Raises for a module that holds another one's: the copy of it would not be tied to it."""
    for name, value in vars(model).items():
        for leaf in jax.tree.leaves(value, is_leaf=lambda x: isinstance(x, nn.Module)):
            owner = getattr(leaf, "parent", None) if isinstance(leaf, nn.Module) else None
            if name != "parent" and isinstance(owner, nn.Module) and leaf.name is not None:
                raise ValueError(
                    f"{type(model).__name__}.{name} belongs to {type(owner).__name__}, so its "
                    "parameters would no longer be shared. Convert the outermost model, and choose "
                    "its attentions by AlignmentConfig.layers."
                )


def _without_alignment(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A model's own variables."""
    own = {name: unfreeze(dict(x)) for name, x in variables.items() if name not in (NAME, CLOUDS)}
    return own | {"params": strip_alignment(own.get("params", {}))}


def _has_networks(tree: Any) -> bool:
    return strip_alignment(tree) != tree if isinstance(tree, Mapping) else False


def _merged(before: Any, new: Any) -> Any:
    """A tree over another; what was sown, a tuple, after what an earlier call has sown."""
    if isinstance(new, tuple) and isinstance(before, tuple):
        return (*before, *new)
    if not isinstance(new, Mapping):
        return new
    before = before if isinstance(before, Mapping) else {}
    return {**before, **{name: _merged(before.get(name), x) for name, x in new.items()}}
