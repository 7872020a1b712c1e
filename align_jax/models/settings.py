"""What the models' configurations refuse alike, each with a ValueError that names the setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from align_jax.config import AlignmentConfig
from align_jax.numerics import check_choice

DTYPES = ("float32", "bfloat16", "float16")


def check_counts(config: Any, least: Mapping[str, int]) -> None:
    """Refuses settings that are no whole number, or below the least that each may be."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise ValueError(
                f"{type(config).__name__}.{name} is {value!r}; expected a whole number >= "
                f"{smallest}."
            )


def name_alignment(config: Any) -> None:
    """Lets a method's name stand for its configuration."""
    if config.alignment is not None:
        object.__setattr__(config, "alignment", AlignmentConfig.of(config.alignment))


def check_probabilities(config: Any, names: Iterable[str]) -> None:
    """Refuses probabilities of dropping something that are not in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
            raise ValueError(
                f"{type(config).__name__}.{name} is {value!r}; expected a number in [0, 1)."
            )


def check_transformer(config: Any) -> None:
    """Refuses a `hidden_size` that `heads` do not divide, and an unknown `dtype`."""
    kind = type(config).__name__
    if config.hidden_size % config.heads:
        raise ValueError(
            f"{kind}.hidden_size is {config.hidden_size}, which {config.heads} heads do not "
            f"divide; choose a multiple of heads."
        )
    check_choice(f"{kind}.dtype", config.dtype, DTYPES)
