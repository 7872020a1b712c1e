"""Cases of a parametrised test, some of which are thorough ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def thorough(cases: Iterable[Any], *names: Any) -> list[Any]:
    """All cases, of which the named ones take a path that another takes too."""
    return [_thorough(x) if x in names else x for x in cases]


def kinds_and_heads(kinds: Iterable[str], heads: Iterable[str]) -> list[Any]:
    """All pairs; fast are each architecture as a classifier, and each head on BERT."""
    pairs = list(itertools.product(kinds, heads))
    return thorough(pairs, *(x for x in pairs if x[0] != "bert" and x[1] != "classification"))


def _thorough(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.thorough)
