"""No process outlives the test that started it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.processes import kill_all


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    kill_all()
