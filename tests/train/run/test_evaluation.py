"""What is measured over the examples of a split."""

from __future__ import annotations

from unittest import mock

import numpy as np

from train.data.base import Metadata, ordered_batches
from train.run import evaluation


def test_mmd_is_a_mean_over_the_first_examples(monkeypatch) -> None:
    """They may fill several batches, the last one in part."""

    def cloud_mmd(state, batch, bandwidth):
        return {"layer_0": np.full(2, batch["x"].mean())}

    data = mock.Mock(metadata=Metadata())
    data.eval_batches.return_value = ordered_batches({"x": np.arange(10.0)}, 4)
    monkeypatch.setattr(evaluation, "_cloud_mmd", cloud_mmd)
    found = evaluation.measure_mmd(None, data, "validation", 6, 1.0)
    np.testing.assert_allclose(found["layer_0"], np.arange(6.0).mean())
