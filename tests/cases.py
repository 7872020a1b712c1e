"""Cases of a parametrised test, some of which are thorough ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thorough(cases: Iterable[str], *names: str) -> list[Any]:
    """All cases, of which the named ones take a path that another takes too."""
    return [pytest.param(x, marks=pytest.mark.thorough) if x in names else x for x in cases]
