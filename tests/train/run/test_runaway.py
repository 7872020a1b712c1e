"""A game that runs away is named, with layer and head, and nothing else is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import rich.console

from align_jax import AlignmentConfig
from train.run import loop, runaway
from train.run.runaway import distance_notices, objective_notices


def test_a_discriminator_below_a_guess_is_named() -> None:
    divergence = {"layer_0/attention": [-1.38, -0.2], "layer_1/attention": [-1.45, -2.5]}
    (notice,) = objective_notices(AlignmentConfig("gan"), divergence)
    assert "layer_1/attention" in notice
    assert "head 1 -2.50" in notice
    assert "head 0" not in notice  # a guess is -1.39, and a mean over few steps is not exact
    assert "alignment_learning_rate" in notice
    assert "gradient_penalty" not in notice  # there is one
    assert "gradient_penalty=1.0" in objective_notices(AlignmentConfig.paper("gan"), divergence)[0]


@pytest.mark.parametrize("method", ["ct", "ot", "mmd", "energy"])
def test_other_objectives_have_nowhere_to_run(method: str) -> None:
    assert objective_notices(AlignmentConfig(method), {"layer_0": [0.0, 2.0]}) == []


def clouds(query: list[float], key: list[float], mmd: list[float]) -> dict[str, dict[str, list]]:
    values = {"query_norm": query, "key_norm": key, "scale_free_mmd": mmd}
    return {f"{name}_per_head": {"layer_0": values[name]} for name in values}


def test_growing_norms_and_clouds_torn_apart_are_named() -> None:
    config, first = AlignmentConfig("ct"), clouds([2.0, 2.0], [2.0, 2.0], [0.4, 0.4])
    assert distance_notices(config, first, first) == []
    assert distance_notices(config, first, clouds([9.0, 1.0], [6.0, 3.0], [0.6, 0.0])) == []
    grown, apart = distance_notices(config, first, clouds([2.0, 2.0], [2.0, 246.0], [0.9, 0.4]))
    assert "layer_0's key vectors has grown: head 1 123 times" in grown
    assert "layer_0 have come further apart" in apart
    assert "head 0 0.90" in apart


def test_vectors_that_shrink_to_nothing_are_named() -> None:
    """As CT of weight 1 lets them: transport between points in one place costs nothing."""
    config, first = AlignmentConfig("ct"), clouds([2.0, 2.0], [2.0, 2.0], [0.4, 0.4])
    assert distance_notices(config, first, clouds([0.3, 2.0], [2.0, 0.3], [0.1, 0.1])) == []
    query, key = distance_notices(config, first, clouds([0.02, 2.0], [0.1, 0.02], [0.1, 0.1]))
    assert "layer_0's query vectors has shrunk: head 0 0.01 times" in query
    assert "layer_0's key vectors has shrunk: head 0 0.05 times" in key
    assert "head 1 0.01 times" in key
    assert query.endswith("If the task suffers, lower alignment.weight.")


def test_a_run_says_so_once(tmp_path, tiny_config, one_device, monkeypatch) -> None:
    """In the terminal's text; here every objective counts as out of range."""
    monkeypatch.setitem(runaway.LEAST_OBJECTIVE, "gan", np.inf)
    console = rich.console.Console(file=io.StringIO(), width=10_000)
    unmeasured = {"eval__every": 0, "eval__at_start": False, "eval__final": (),
                  "eval__mmd_examples": 0}  # fmt: skip
    loop.run(tiny_config("gan", **unmeasured), tmp_path, console=console)
    text = console.file.getvalue()
    assert text.count("The GAN objective of layer_0/attention has left its range: head 0") == 1
