"""Drawing tokens: what the benchmark measures is the module's own value."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cases import thorough
from train.benchmarks.token_sampling import draws

SHAPE = (2, 12, 2, 4)


@pytest.mark.parametrize("method", thorough(("gan", "mmd"), "gan"))
def test_drawing_all_tokens_changes_nothing_and_drawing_some_does(method: str) -> None:
    (whole,) = draws(method, 0, 1, SHAPE)
    np.testing.assert_allclose(draws(method, SHAPE[1], 2, SHAPE), whole, rtol=1e-6)
    some = draws(method, 4, 3, SHAPE)
    assert len(np.unique(some)) == 3
    assert not np.isclose(some, whole, rtol=1e-5).any()
