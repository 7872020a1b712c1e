"""The plane that clouds are drawn in, also of what has hardly any dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from train.report.picture import _plane


@pytest.mark.parametrize("features", [1, 2, 8])
def test_points_of_any_width_have_a_plane(features) -> None:
    points = np.random.default_rng(0).normal(size=(40, features))
    plane = _plane(points)
    assert plane.shape == (40, 2)
    assert np.isfinite(plane).all()
    assert plane.std(axis=0).min() > 0
