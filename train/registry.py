"""Looking up the parts of an experiment by the names that a config gives them.

A registry maps a name to "module:attribute" rather than to the object, so that a run imports only
what it uses: training on digits must not need the packages that other data sources need.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Mapping
from typing import Any

from train.process import UserError


class ConfigError(UserError, ValueError):
    """The config asks for something that does not exist or does not fit; says what and why."""


def look_up(kind: str, name: str, registry: Mapping[str, str]) -> Any:
    """Imports what `registry` holds under `name`; `kind` is a section of the config, for messages.

    Raises:
        ConfigError: unknown name; names the nearest one.

    Example:
        >>> look_up("data", "digits", {"digits": "train.data.digits:Digits"})
        <class 'train.data.digits.Digits'>
    """
    check_known(f"{kind}.name is", name, registry)
    module, attribute = registry[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Refuses a name that is none of `known`.

    Raises:
        ConfigError: begins with `what`, such as "data.version is"; names the nearest one, and all.
    """
    if name not in known:
        near = nearest(name, known)
        raise ConfigError(f"{what} {name!r}; {near}known: {', '.join(known)}.")


def nearest(name: str, known: Any) -> str:
    """'did you mean "x"? ' for the likeliest of `known`, or nothing when none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f'did you mean "{matches[0]}"? ' if matches else ""
