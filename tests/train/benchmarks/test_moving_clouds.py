"""The testbed of moving clouds: a row per setting, and numbers made once more by hand."""

from __future__ import annotations

import dataclasses
import functools
import sys

import jax
import numpy as np
import optax
import pytest

from align_jax.divergences import maximum_mean_discrepancy
from train.benchmarks import moving_clouds
from train.benchmarks.moving_clouds import SCENES, Outcome, Row, measure

STEPS = 3
SMALL = dataclasses.replace(SCENES["plane"], samples=2, tokens=8, batch=2)
ATTENTION = dataclasses.replace(
    SCENES["attention"], samples=4, tokens=4, heads=1, features=2, width=4, batch=2
)


def median_mmd(query: np.ndarray, key: np.ndarray) -> float:
    """Without bias, each point with all others, one head."""
    both = np.concatenate([query, key]).astype(np.float64)
    squared = ((both[:, None] - both) ** 2).sum(-1)
    others = ~np.eye(len(both), dtype=bool)
    kernel = np.exp(-squared / np.median(squared[others]))
    n = len(query)

    def mean(rows: slice, columns: slice) -> float:
        return kernel[rows, columns][others[rows, columns]].mean()

    queries, keys = slice(None, n), slice(n, None)
    return mean(queries, queries) + mean(keys, keys) - 2 * mean(queries, keys)


def test_a_row_for_each_setting_and_the_numbers_of_a_loop_by_hand() -> None:
    plain, *rows = measure({"plane": SMALL}, ["mmd"], [0.25, "default"], seeds=1, steps=STEPS)
    assert [(row.method, row.weight) for row in rows] == [("mmd", 0.25), ("mmd", 1.0)]
    assert [row.cells()[2] for row in rows] == ["0.25", "1*"]
    seed = jax.random.split(jax.random.key(0), 3)[0]
    begun, _ = jax.jit(functools.partial(moving_clouds.start, SMALL))(seed)
    clouds = begun[:, 0], begun[:, 1]

    def distance(clouds: tuple[jax.Array, jax.Array]) -> float:
        query, key = (np.asarray(x).reshape(-1, 2) for x in clouds)
        return median_mmd(query, key)

    assert plain.method == "none"
    np.testing.assert_allclose(plain.outcome.before, distance(clouds), rtol=1e-4)
    np.testing.assert_allclose(plain.outcome.after, distance(clouds), rtol=1e-4)

    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(SMALL.learning_rate))

    @jax.jit
    def step(clouds, state):
        objective, gradients = jax.value_and_grad(
            lambda x: maximum_mean_discrepancy(*x, bandwidth=None).mean()
        )(clouds)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(clouds, updates), state, objective

    state, objectives = adam.init(clouds), []
    for _ in range(STEPS):
        clouds, state, objective = step(clouds, state)
        objectives.append(float(objective))
    found = rows[1].outcome
    np.testing.assert_allclose(found.after, distance(clouds), rtol=1e-4)
    np.testing.assert_allclose(found.objective, np.mean(objectives), rtol=1e-4)
    for norm, cloud in zip((found.query_norm, found.key_norm), clouds, strict=True):
        np.testing.assert_allclose(norm, np.linalg.norm(cloud, axis=-1).mean(), rtol=1e-5)
    assert found.in_range.tolist() == [1.0]
    assert found.task.tolist() == [0.0]


def test_the_task_is_to_match_the_teacher() -> None:
    (plain,) = measure({"attention": ATTENTION}, [], [], seeds=1, steps=2)
    data, init, _ = jax.random.split(jax.random.key(0), 3)
    tokens, taught = jax.jit(functools.partial(moving_clouds.start, ATTENTION))(data)
    np.testing.assert_allclose(taught.sum(-1), 1.0, rtol=1e-5)
    entropy = -(taught * np.log(taught)).sum(-1).mean()
    assert entropy < plain.outcome.task[0] < 10 * entropy
    model = moving_clouds.Clouds(ATTENTION, moving_clouds.AlignmentConfig("none"))
    (query, key), _ = jax.jit(model.init_with_output)(init, tokens)
    by_hand = median_mmd(*(np.asarray(x).reshape(-1, 2) for x in (query, key)))
    np.testing.assert_allclose(plain.outcome.before, by_hand, rtol=1e-3, atol=1e-5)


def row(method: str, weight: float, after: float) -> Row:
    """Beside a plain model that ends at 0.5, one seed."""

    def outcome(after: float) -> Outcome:
        return Outcome(*(np.array([x]) for x in (0.7, after, 1.0, 2.0, 0.0, -0.25, 0.5)))

    return Row("plane", method, "default", weight, outcome(after), outcome(0.5))


def test_the_command_prints_one_table(monkeypatch, capsys) -> None:
    rows = [row("none", 0.0, 0.5), row("gan", 0.1, 0.1)]
    asked = {}

    def measured(scenes, methods, weights, **rest):
        asked.update(rest, scenes=list(scenes), methods=methods, weights=weights)
        return iter(rows)

    monkeypatch.setattr(moving_clouds, "measure", measured)
    flags = ["--scenes=plane,wide", "--methods=gan", "--weights=0.5,default", "--form=paper",
             "--seeds=2", "--steps=7"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["moving_clouds", *flags])
    moving_clouds.main()
    assert asked == {
        "scenes": ["plane", "wide"], "methods": ["gan"], "weights": [0.5, "default"],
        "form": "paper", "seeds": 2, "steps": 7,
    }  # fmt: skip
    (line,) = [
        x.split() for x in capsys.readouterr().out.splitlines() if x.startswith("plane  gan")
    ]
    assert line == ["plane", "gan", "0.1*", "0.7000", "0.5000", "0.1000", "0.1000", "0.200",
                    "1.00", "2.00", "-", "-", "-0.250", "50%"]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--scenes=plain", "'plain' is none of plane, wide"),
        ("--methods=gna", "'gna' is none of gan, ot"),
        ("--steps=0", "--steps: must be at least 1, got 0."),
        ("--weights=-1", "--weights: must be at least 0, got -1."),
    ],
)
def test_bad_arguments_are_named(monkeypatch, capsys, flag: str, message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["moving_clouds", flag])
    with pytest.raises(SystemExit) as status:
        moving_clouds.main()
    assert status.value.code == 2
    assert message in capsys.readouterr().err


def test_the_papers_networks_are_trained_as_the_model_is() -> None:
    paper = moving_clouds.optimizer_of(SCENES["attention"], "paper")
    assert paper.alignment_learning_rate == paper.learning_rate
    assert paper.alignment_beta1 == paper.beta1
    default = moving_clouds.optimizer_of(SCENES["attention"], "default")
    assert default.alignment_learning_rate > default.learning_rate
