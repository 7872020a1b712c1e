"""Curves and maps over training, from made-up records."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest

from tests.train.report.studies import write_run
from train.report.curves import POINTS, mean_curve, training
from train.report.head_maps import head_maps, moments
from train.report.runs import read_studies

# Of seed 0 twelve steps, of seed 1 nine.
STEPS = {0: range(0, 13, 3), 1: range(0, 10, 3)}


def loss(record):
    return record.get("loss")


def records(seed: int, slope: float) -> list[dict]:
    found = []
    for step in STEPS[seed]:
        heads = {"layer_10": [step, step + 1.0], "layer_9": [2.0 * step]}
        found.append(
            {"step": step, "split": "validation", "loss": slope * step + seed, "accuracy": 0.5,
             "mmd_per_head": heads}
        )  # fmt: skip
        if step:
            found.append(
                {"step": step, "split": "train", "task_loss": 1.0, "alignment": 2.0,
                 "alignment_weight": 0.01, "divergence": heads}
            )  # fmt: skip
    return found


@pytest.fixture
def study(tmp_path, tiny_config):
    for method in ("none", "ct"):
        for seed in STEPS:
            write_run(tmp_path, tiny_config("none"), method, seed, records=records(seed, 2.0))
    return read_studies([tmp_path])[0]


def test_a_curve_is_the_mean_over_the_seeds_where_all_of_them_are(study) -> None:
    curve = mean_curve(study.runs["ct"], "validation", loss)
    assert curve.steps.tolist() == [0, 3, 6, 9]
    np.testing.assert_allclose(curve.mean, [0.5, 6.5, 12.5, 18.5])
    np.testing.assert_allclose(curve.std, [np.sqrt(0.5)] * 4)
    assert curve.seeds == 2
    assert mean_curve(study.runs["ct"], "test", loss) is None


def test_a_long_curve_is_drawn_as_means_over_windows(tmp_path, tiny_config) -> None:
    long = [{"step": step, "split": "train", "loss": step % 2} for step in range(3 * POINTS)]
    write_run(tmp_path, tiny_config("none"), "none", 0, records=long)
    curve = mean_curve(read_studies([tmp_path])[0].runs["none"], "train", loss)
    assert len(curve.steps) == POINTS
    assert curve.steps[:2].tolist() == [1.0, 4.0]
    np.testing.assert_allclose(curve.mean[:2], [1 / 3, 2 / 3])


def test_the_parts_of_the_loss_are_drawn_and_what_is_not_recorded_is_said(study) -> None:
    section = training(study)
    names = [picture.name for picture in section.pictures]
    assert names == [
        "train-task-loss", "train-weighted-alignment", "validation-loss", "validation-accuracy",
    ]  # fmt: skip
    assert section.missing == ["validation ece is not drawn: it was recorded less than twice."]
    assert "CT from 0.02 to 0.02" in section.pictures[1].alt
    for picture in section.pictures:
        assert matplotlib.image.imread(io.BytesIO(picture.png)).std() > 0.05


def test_maps_have_layers_in_order_and_holes_where_there_is_no_head(study) -> None:
    found = moments(study.runs["ct"], "mmd_per_head")
    assert found.layers == ["layer_9", "layer_10"]
    # Each seed counts at the same fraction of its own records.
    assert found.titles == ["step 0", "step 3", "steps 6 to 9", "steps 9 to 12"]
    np.testing.assert_allclose(found.values[-1], [[21.0, np.nan], [10.5, 11.5]])


def test_maps_are_drawn_for_each_method_and_a_plain_one_has_no_divergence(study) -> None:
    mmd, divergence = head_maps(study)
    assert [picture.name for picture in mmd.pictures] == ["mmd-none", "mmd-ct"]
    assert [picture.name for picture in divergence.pictures] == ["divergence-ct"]
    assert "from 1 at step 0 to 43 at steps 9 to 12" in mmd.pictures[0].alt
    del study.runs["ct"]
    for run in study.runs["none"].values():
        run.records.clear()
    mmd, divergence = head_maps(study)
    assert mmd.missing == ["Not measured, or not yet: plain."]
    assert divergence.missing == ["A plain model has no divergence."]
