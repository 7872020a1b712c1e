"""Reliability diagrams: bars at accuracies, out of what an evaluation recorded."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from tests.train.commands import run_quietly
from tests.train.report.studies import write_run
from train.report.reliability import confidence_records, draw_bins, draw_reliability
from train.report.runs import read_run
from train.run.log import read_records

BINS = {"count": [0, 4, 10], "confidence": [0.0, 2.0, 9.0], "correct": [0.0, 1.0, 9.0]}


def test_bars_are_accuracies_and_counts() -> None:
    figure, (top, bottom) = plt.subplots(2)
    draw_bins(top, bottom, BINS)
    np.testing.assert_allclose([bar.get_height() for bar in top.patches], [0.25, 0.9])
    np.testing.assert_allclose([bar.get_height() for bar in bottom.patches], [0, 4, 10])
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bottom.patches]
    np.testing.assert_allclose(middles, [1 / 6, 1 / 2, 5 / 6])
    np.testing.assert_allclose(top.collections[0].get_offsets(), [[0.5, 0.25], [0.9, 0.9]])
    plt.close(figure)


def test_a_run_records_the_bins_of_its_ece(tmp_path, tiny_config) -> None:
    config = tiny_config("none")
    result = run_quietly(config, tmp_path / "run")
    record = [x for x in read_records(tmp_path / "run") if x["split"] == "test"][-1]
    bins = {name: np.asarray(values) for name, values in record["reliability"].items()}
    assert bins["count"].sum() == 360
    error = np.abs(bins["correct"] - bins["confidence"]).sum() / 360
    np.testing.assert_allclose(error, result["metrics"]["test"]["ece"], rtol=1e-5)
    found = confidence_records([read_run(tmp_path / "run")], "test")
    assert found == [record]
    figure = plt.figure()
    assert f"ECE {100 * error:.1f}%" in draw_reliability(figure, "none", found)
    assert len(figure.axes) == 2
    plt.close(figure)


def test_without_a_calibration_there_is_nothing_to_draw(tmp_path, tiny_config) -> None:
    records = [{"step": 6, "split": "test", "loss": 0.5}]
    folder = write_run(tmp_path, tiny_config("none"), "none", 0, {"test": {}}, records)
    assert confidence_records([read_run(folder)], "test") == []
