"""Alignment for any function of arrays: Haiku, Equinox, Keras, penzai, or plain JAX."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array

from align_jax import tapping
from align_jax.alignment import NAME
from align_jax.config import AlignmentConfig


def aligned_function(
    function: Callable[..., Any],
    config: AlignmentConfig | str,
    *,
    parameters: int | Sequence[int] = 0,
    allow_missing: bool | Sequence[str] = False,
) -> "AlignedFunction":
    """Measures the alignment of every attention in a function of arrays.

    The function is any that `jax.jit` could take, with its parameters as an argument. See `aligned`
    for which attentions are found.

    Args:
      function: called with positional arguments.
      config: what to align, and how; see `aligned`.
      parameters: which arguments hold parameters, state or random keys, and no data.
      allow_missing: see `aligned`.

    Returns:
      An object with `init`, which makes the networks' parameters, and `apply`.

    Raises:
      TypeError: if `function` is none, or `config` is no configuration.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def attend(params, x):
      ...     q, k = x @ params["query"], x @ params["key"]
      ...     return jax.nn.softmax(q @ k.mT) @ x
      >>> params = {"query": jnp.eye(4), "key": jnp.eye(4)}
      >>> x = jax.random.normal(jax.random.key(0), (2, 5, 4))
      >>> converted = aligned_function(attend, AlignmentConfig("ct"))
      >>> networks = jax.jit(converted.init)(jax.random.key(1), params, x)
      >>> outputs, sown = jax.jit(converted.apply)(networks, params, x)
      >>> sown["alignment"]["alignment"]["divergence"][0].shape
      (2, 1)
    """
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"aligned_function() takes a function, got {type(function).__name__}.")
    numbers = tuple(parameters) if isinstance(parameters, Sequence) else (parameters,)
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in numbers):  # or it is a text
        raise TypeError(f"parameters must be numbers of arguments, got {parameters!r}.")
    missing = tapping.patterns_of_missing(allow_missing)
    return AlignedFunction(function, AlignmentConfig.of(config), numbers, missing)


@dataclasses.dataclass(frozen=True)
class AlignedFunction:
    """What `aligned_function` returns: see there.

    Attributes:
      function: the original.
      config: what to align, and how.
      parameters: the numbers of the arguments that hold no data.
      allow_missing: patterns of names, see `aligned`.

    Example:
      See `aligned_function`.
    """

    function: Callable[..., Any]
    config: AlignmentConfig
    parameters: tuple[int, ...] = (0,)
    allow_missing: tuple[str, ...] = ()

    def init(self, rng: Array, *arguments: Any) -> dict[str, Any]:
        """Makes the networks' parameters, by the shapes of a call's arguments; empty without any.

        They are trained with the function's own: `game_optimizer(...).init((own, networks))`.

        Raises:
          ValueError: if the function contains no attention, or one that cannot be aligned.
        """
        return tapping.init_networks(self._checked(arguments), self.config, rng)

    def apply(
        self,
        networks: Any,
        *arguments: Any,
        collections: Sequence[str] = (NAME,),
        rng: Array | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Calls the function.

        Args:
          networks: of `init`.
          *arguments: the function's own.
          collections: what to sow: "alignment", "alignment_clouds".
          rng: a random key for `AlignmentConfig.tokens` and `subsample`; None for all.

        Returns:
          The function's outputs, and what was sown, for `alignment_loss` and its like.
        """
        traced = self._checked(arguments)
        return tapping.run(traced, self.config, arguments, networks, collections, rng)

    def _checked(self, arguments: Sequence[Any]) -> tapping.Traced:
        traced = self.traced(arguments)
        what = f"The function {getattr(self.function, '__name__', type(self.function).__name__)}"
        tapping.check(traced, self.config, self.allow_missing, what)
        return traced

    def traced(self, arguments: Sequence[Any]) -> tapping.Traced:
        """The program of a call, and its attentions."""
        for number in self.parameters:
            if not 0 <= number < len(arguments):
                raise ValueError(
                    f"parameters={number} names an argument that a call with {len(arguments)} "
                    "arguments does not have."
                )
        skipped = [0 if i in self.parameters else None for i in range(len(arguments))]
        return tapping.trace(self.function, arguments, skipped)
