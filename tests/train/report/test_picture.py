"""A method's column: the plane that clouds are drawn in, and the room for its panels."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from train.report import picture
from train.report.gallery import _height
from train.report.picture import _plane
from train.report.pictures import new_figure


@pytest.mark.parametrize("features", [1, 2, 8])
def test_points_of_any_width_have_a_plane(features) -> None:
    points = np.random.default_rng(0).normal(size=(40, features))
    plane = _plane(points)
    assert plane.shape == (40, 2)
    assert np.isfinite(plane).all()
    assert plane.std(axis=0).min() > 0


@pytest.mark.filterwarnings("error")  # Matplotlib's, where nothing is left for the axes
def test_layers_of_long_names_leave_room_for_the_panels(monkeypatch) -> None:
    monkeypatch.setattr(picture, "_plane", lambda points: points[:, :2])
    names = [f"{x}_{n}/self_attention" for n in range(3) for x in ("encoder", "decoder")]
    heads = {name: [0.1, 0.4] for name in names}
    run = SimpleNamespace(
        records=[{"step": s, picture.DISTANCE: heads, "divergence": heads} for s in (0, 9)]
    )
    points = picture.Points(np.ones((9, 2)), np.zeros((9, 2)), None, None)
    figure = new_figure(_height(points, run))
    picture.draw_method(figure, "ct", points, run.records, (names[1], 0), (0.05, 1.0))
    figure.canvas.draw()
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_position().width > 0.6
        assert axes.get_position().height > 0.12
    plt.close(figure)
