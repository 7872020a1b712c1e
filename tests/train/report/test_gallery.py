"""Which head and which example are drawn."""

from __future__ import annotations

import types

import numpy as np

from tests.train.report.studies import write_run
from train.data.base import Illustration
from train.report import gallery
from train.report.attention import Maps
from train.report.runs import read_run

HEADS = {"layer_0": [0.1, 0.2], "layer_1": [0.4, 0.3]}


def test_the_head_is_the_plain_models_farthest_and_the_example_one_that_all_get_right(
    tmp_path, tiny_config, monkeypatch
) -> None:
    records = [{"step": 6, "split": "validation", "scale_free_mmd_per_head": HEADS}]
    runs = {
        method: read_run(write_run(tmp_path, tiny_config(), method, 0, {"test": {}}, records))
        for method in ("none", "ct")
    }
    right = {"none": [True, False, True, True], "ct": [False, True, True, True]}
    data = types.SimpleNamespace(examples={"validation": 4})
    experiment = types.SimpleNamespace(data=data)
    monkeypatch.setattr(
        gallery, "restore_run", lambda _, config: (experiment, config.alignment.method)
    )
    monkeypatch.setattr(gallery, "run_points", lambda *given: given[2:])
    shown = Illustration("a 5", (), ("5",))

    def example_maps(_, method: str, number: int) -> Maps:
        return Maps(shown, None, np.ones((2, 2)), "5", right[method][number])

    monkeypatch.setattr(gallery, "example_maps", example_maps)
    found = gallery.visit(runs)
    assert found.points == {"none": ("layer_1", 0), "ct": ("layer_1", 0)}
    assert list(found.examples) == [2]
    assert list(found.examples[2]) == ["none", "ct"]
    assert list(gallery.visit(runs, [0, 1]).examples) == [0, 1]
