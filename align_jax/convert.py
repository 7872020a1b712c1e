"""Alignment for a Linen model that was written without it."""

import inspect
import types
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from align_jax.attention import (
    MultiHeadDotProductAttention,
    is_self_attention,
    observe,
    sow_alignment,
)
from align_jax.config import AlignmentConfig


def aligned(model: nn.Module, config: AlignmentConfig) -> "AlignedModel":
    """Converts a Linen model whose attention is flax's, without editing it.

    Every `nn.MultiHeadDotProductAttention` (or subclass, such as `nn.SelfAttention`) in it sows
    the alignment of its queries and keys, also under `nn.remat`, in nested and in shared modules.
    Under `nn.scan` and `nn.vmap`, let the transformation carry the collection and the new
    parameters: `variable_axes={"params": 0, "alignment": 0}`.

    The names of the model's parameters do not change: the converted model runs on the original's
    parameters (in evaluation, where it gives the original's outputs bit for bit), and
    `strip_alignment` of its own gives exactly the original's tree.

    A mask of the keys alone is taken for padding of the queries too where both are the same array.
    As two arguments of an attention that is itself under `nn.remat` or `nn.jit` they never are:
    call it there as `attention(x)`, or remat the layer around it.

    Args:
      model: a Linen module, not yet bound.
      config: what to align, and how.

    Returns:
      A Linen module that is called as the model is. Other methods work by their name:
      `converted.apply(variables, x, method="encode")`.

    Raises:
      TypeError: if `model` is no Linen module.
      ValueError: if it is already aligned; at `init`, if it contains no flax attention.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = nn.SelfAttention(num_heads=2)
      >>> converted = aligned(model, AlignmentConfig("ct"))
      >>> variables = converted.init(jax.random.key(0), jnp.ones((1, 3, 4)))
      >>> sorted(variables["params"]["alignment"])
      ['critic', 'navigator']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"aligned() takes a flax.linen module, got {type(model).__name__}. Pass the model "
            "itself, not its class or its apply function."
        )
    if isinstance(model, AlignedModel):
        raise ValueError("The model is already aligned; convert the original instead.")
    return AlignedModel(model, config)


class AlignedModel(nn.Module):
    """What `aligned` returns: the model, with its attention observed from outside.

    Attributes:
      model: the original.
      config: what to align, and how.

    Example:
      >>> AlignedModel(nn.SelfAttention(num_heads=2), AlignmentConfig("ot")).config.method
      'ot'
    """

    model: nn.Module
    config: AlignmentConfig

    def setup(self) -> None:
        """Shares one scope with the model: the parameters keep the names they have there."""
        nn.share_scope(self, self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model, with its own arguments.

        Raises:
          ValueError: at `init`, if the model contains no flax attention; and for an attention that
            has an alignment of its own.
        """
        return self._observed(self.model)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or not inspect.isfunction(
                getattr(type(self.__dict__.get("model")), name, None)
            ):
                raise

        def method(module: "AlignedModel", *args: Any, **kwargs: Any) -> Any:
            return module._observed(getattr(module.model, name))(*args, **kwargs)

        # Flax unbinds what it finds under a method's name and passes the bound module itself.
        return types.MethodType(method, self)

    def _observed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*args: Any, **kwargs: Any) -> Any:
            interceptor = _Interceptor(self.config)
            # Entered here, inside whatever traces the model, because a jit around it would
            # otherwise keep the interceptor out of its cached trace.
            with nn.intercept_methods(interceptor):
                outputs = call(*args, **kwargs)
            if self.is_initializing() and not interceptor.calls:
                raise ValueError(
                    f"aligned() found no flax.linen.MultiHeadDotProductAttention in "
                    f"{type(self.model).__name__}. For attention of another kind, call "
                    "align_jax.Alignment on its queries and keys inside the attention module."
                )
            return outputs

        return observed


class _Interceptor:
    """Runs the alignment after every call of a flax attention module."""

    def __init__(self, config: AlignmentConfig) -> None:
        self.config = config
        self.calls = 0

    def __call__(
        self,
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(
            module, nn.MultiHeadDotProductAttention
        ):
            return next_fun(*args, **kwargs)
        if isinstance(module, MultiHeadDotProductAttention) and module.alignment is not None:
            raise ValueError(
                f"The attention {'/'.join(module.path)!r} already has an alignment of its own. "
                "Leave that out, or do not convert the model."
            )
        with observe(module) as observation:
            outputs = next_fun(*args, **kwargs)
        # A subclass that calls its parent's __call__ comes through here twice, the parent's call
        # first: that one knows the arguments by flax's names.
        if not observation.handled:
            self.calls += 1
            bound = inspect.signature(context.orig_method).bind(*args, **kwargs).arguments
            sow_alignment(self.config, observation, is_self_attention(**bound))
        return outputs
