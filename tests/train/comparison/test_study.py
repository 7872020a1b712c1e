"""A study's table, against the tests of scipy on the same made-up runs."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
import scipy.stats
from matplotlib import pyplot

from train.comparison.statistics import detectable_difference, holm
from train.comparison.study import (
    ALIKE,
    Runs,
    baselines,
    compare,
    name_of,
    read_csv,
    to_csv,
    to_markdown,
    with_metrics,
)
from train.registry import ConfigError
from train.report import differences

PLAIN, ENERGY, DROPOUT = ("", "none", ""), ("", "energy", "1"), ("dropout=0.5", "none", "")


def made_up(rng: np.random.Generator) -> Runs:
    gain = {PLAIN: 0.0, ENERGY: 0.05, DROPOUT: 0.0}
    base = rng.normal(0.8, 0.05, size=6)
    return {
        arm: {
            seed: {
                "accuracy": round(base[seed] + more + rng.normal(0, 0.01), 6),
                "loss": round(rng.normal(1.0, 0.1), 6),
                "scale_free_mmd": 0.25,
            }
            for seed in range(6)
        }
        for arm, more in gain.items()
    }


def test_every_comparison_is_the_paired_t_test_corrected_for_all_of_them(rng) -> None:
    runs = made_up(rng)
    found = compare(runs)
    assert [(one.arm, one.metric) for one in found] == [
        (arm, metric) for arm in (ENERGY, DROPOUT) for metric in ("accuracy", "loss")
    ]
    tests = []
    for one in found:
        values, base = ([runs[arm][x][one.metric] for x in range(6)] for arm in (one.arm, PLAIN))
        test = scipy.stats.ttest_rel(values, base)
        interval = test.confidence_interval(0.95)
        assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
        assert one.spread == pytest.approx(np.std(np.subtract(values, base), ddof=1))
        tests.append(test.pvalue)
    assert [one.adjusted for one in found] == pytest.approx(holm(tests))
    assert found[0].adjusted < 0.05 < found[1].adjusted


def test_only_seeds_that_the_plain_model_has_are_compared(rng) -> None:
    runs = made_up(rng)
    runs[ENERGY] = {9: runs[ENERGY][0], **{x: runs[ENERGY][x] for x in (4, 2, 1)}}
    assert [one.pairs for one in compare(runs)] == [3, 3, 6, 6]
    expected = np.mean([runs[ENERGY][x]["loss"] - runs[PLAIN][x]["loss"] for x in (1, 2, 4)])
    assert compare(runs)[1].mean == pytest.approx(expected)
    runs[ENERGY] = {1: runs[ENERGY][1], 9: runs[ENERGY][9]}
    with pytest.raises(ConfigError, match=r"plain have too few seeds in common, 1; expected 2"):
        compare(runs)
    for arm, value in ((PLAIN, -1.7e308), (ENERGY, 1.7e308)):
        runs[arm] = {seed: {"accuracy": value} for seed in range(3)}
    with pytest.raises(ConfigError, match="differ in accuracy by more than a number can hold"):
        compare(runs)
    del runs[PLAIN]
    with pytest.raises(
        ConfigError, match="no run of 'plain' to compare with; the study has energy"
    ):
        compare(runs)


def test_an_aligned_arm_is_compared_with_the_plain_one_of_its_config(rng) -> None:
    runs = made_up(rng)
    both, alone = ("dropout=0.5", "energy", "1"), ("steps=9", "energy", "1")
    runs[both] = {x: {"accuracy": 0.5, "loss": 0.125, "scale_free_mmd": 0.5} for x in range(6)}
    runs[alone] = runs[both]
    assert baselines(runs, ALIKE) == {ENERGY: PLAIN, both: DROPOUT}
    found = {(one.arm, one.metric): one for one in compare(runs, ALIKE)}
    assert len(found) == 4
    expected = 0.125 - np.mean([values["loss"] for values in runs[DROPOUT].values()])
    assert found[both, "loss"].mean == pytest.approx(expected)
    rows = re.findall(r"^\| (\w[^|]*) \| 6 \|", to_markdown(runs, ALIKE), flags=re.MULTILINE)
    assert rows == ["plain", "energy (weight 1)", "plain, dropout=0.5",
                    "energy (weight 1), dropout=0.5"]  # fmt: skip
    text = to_markdown(runs, ALIKE)
    assert text.endswith("\nLeft out, for no plain model has their settings: "
                         "energy (weight 1), steps=9.\n")  # fmt: skip
    assert "Left out" not in to_markdown(runs, ALIKE, "dropout") + to_markdown(runs)
    with pytest.raises(ConfigError, match="no arm that '' is found in is left to compare"):
        compare({alone: runs[alone]}, ALIKE)


def test_a_plain_partner_needs_no_settings_of_alignment(rng) -> None:
    runs = made_up(rng)
    settings = ("alignment.over=heads,energy", "alignment.layers=[0, 1] dropout=0.5",
                "dropout=0.5 alignment.over=a alignment.cost=l 2", "x.alignment.x=1")  # fmt: skip
    arms = [(config, "energy", "1") for config in settings]
    runs |= dict.fromkeys(arms, runs[ENERGY])
    expected = {ENERGY: PLAIN, arms[0]: PLAIN, arms[1]: DROPOUT, arms[2]: DROPOUT}
    assert baselines(runs, ALIKE) == expected


def test_any_arm_may_be_the_baseline(rng) -> None:
    runs = made_up(rng)
    there, back = compare(runs)[0], compare(runs, "energy (weight 1)")[0]
    assert (back.arm, back.mean) == (PLAIN, pytest.approx(-there.mean))
    with pytest.raises(
        ConfigError, match="no run of 'energy' to compare .* energy .weight 1.; plain"
    ):
        compare(runs, "energy")


def test_a_part_of_a_study_is_corrected_for_what_it_shows(rng) -> None:
    runs = with_metrics(made_up(rng), ["loss"])
    assert set(runs[ENERGY][0]) == {"loss", "scale_free_mmd"}
    (one,) = compare(runs, arms="^energy")
    values, base = ([runs[arm][x]["loss"] for x in range(6)] for arm in (ENERGY, PLAIN))
    assert one.adjusted == pytest.approx(scipy.stats.ttest_rel(values, base).pvalue)
    with pytest.raises(ConfigError, match="no metric 'los'; it has loss, scale_free_mmd"):
        with_metrics(runs, ["los"])
    with pytest.raises(ConfigError, match=r"'\(' is no regular expression"):
        compare(runs, arms="(")
    with pytest.raises(ConfigError, match="no arm that 'ct' is found in .* the study has plain; "):
        compare(runs, arms="ct")


def test_the_picture_has_a_panel_for_each_metric_and_its_interval(
    rng, tmp_path, monkeypatch
) -> None:
    runs, drawn = made_up(rng), []
    monkeypatch.setattr(differences.plt, "close", drawn.append)
    differences.draw_differences(runs, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 1000
    (figure,) = drawn
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["accuracy, points", "loss"]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == [
        "energy (weight 1)", "plain, dropout=0.5",
    ]  # fmt: skip
    one, (bars,) = compare(runs)[0], panels[0].containers[0].lines[2]
    (ends,) = bars.get_segments()
    np.testing.assert_allclose(ends[:, 0], [100 * one.low, 100 * one.high])
    pyplot.close(figure)


def test_the_picture_has_a_row_for_each_split(rng, tmp_path, monkeypatch) -> None:
    of_splits = {
        arm: {seed: {"a/loss": x["loss"], "b/loss": 2 * x["loss"]} for seed, x in seeds.items()}
        for arm, seeds in made_up(rng).items()
        if arm in (PLAIN, ENERGY)
    }
    drawn = []
    monkeypatch.setattr(differences.plt, "close", drawn.append)
    differences.draw_differences(of_splits, tmp_path / "study.png")
    (panel,) = drawn[0].axes
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == ["a: energy (weight 1)", "b: energy (weight 1)"]
    first, second = (bars.lines[0].get_xydata()[0] for bars in panel.containers)
    assert (second[0], second[1] - first[1]) == (pytest.approx(2 * first[0]), 1.0)
    pyplot.close(drawn[0])


def test_the_table_of_the_file_is_the_one_of_the_runs(rng, tmp_path) -> None:
    runs, path = made_up(rng), tmp_path / "study.csv"
    path.write_text("\ufeff" + to_csv(runs), "utf-8")  # as Excel begins a file
    assert read_csv(path) == runs
    path.write_text(to_csv(runs))
    assert read_csv(path) == runs
    assert to_markdown(read_csv(path)) == to_markdown(runs)


def test_the_table_says_points_intervals_and_what_could_have_been_found(rng) -> None:
    runs = made_up(rng)
    one, text = compare(runs)[0], to_markdown(runs)
    rows = [line for line in text.splitlines() if line.startswith("| energy")]
    shown = f"{100 * one.mean:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]"
    assert f"| 6 | {shown}, p = {one.adjusted:.2g} |" in rows[0]
    assert rows[0].endswith("| 0.250 ± 0.000 |")
    alone, of_four = (
        100 * detectable_difference(one.spread, 6, significance=0.05 / count) for count in (1, 4)
    )
    assert f"| {alone:.2f} / {of_four:.2f} |" in rows[1]
    assert "the 4 comparisons shown" in text
    assert re.search(r"^\| plain \| 6 \| \d\d\.\d\d ± ", text, flags=re.MULTILINE)


def test_differences_without_spread_show_nothing() -> None:
    """Two seeds that both gain a point, but for what rounding leaves."""
    gains = {PLAIN: (0.7, 0.9), ENERGY: (0.71, 0.91), DROPOUT: (0.7, 0.9)}
    runs = {
        arm: {seed: {"accuracy": x, "loss": x * x} for seed, x in enumerate(values)}
        for arm, values in gains.items()
    }
    found = compare(runs)
    assert [(one.spread, one.adjusted) for one in found if one.metric == "accuracy"] == 2 * [(0, 1)]
    test = scipy.stats.ttest_rel([0.71**2, 0.91**2], [0.7**2, 0.9**2])
    assert found[1].adjusted == pytest.approx(min(1.0, 4 * test.pvalue))
    text = to_markdown(runs)
    assert "| energy (weight 1) | 2 | +1.00 [+1.00, +1.00], p = - | +0.016 [" in text
    assert "| energy (weight 1) | - | 0." in text
    assert "| plain, dropout=0.5 | - | - |" in text


def test_arms_have_names() -> None:
    assert [name_of(arm) for arm in (PLAIN, ENERGY, DROPOUT)] == [
        "plain", "energy (weight 1)", "plain, dropout=0.5",
    ]  # fmt: skip


HEAD = "config,method,weight,seed,accuracy\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no study: expected the columns config, method"),
        (HEAD, "0 runs"),
        ("config,method,weight,seed\n,none,,0\n", "one for each metric"),
        ("seed," + HEAD + "0,,none,,0,0.9\n", "has the column 'seed' twice; expected it once"),
        (HEAD[:-1] + ",accuracy\n,none,,0,0.9,0.8\n", "has the column 'accuracy' twice"),
        (HEAD + ",none,,0,0.9\n,none,,0,0.8\n", "line 3: this run is there twice"),
        (HEAD + ",none,,x,0.9\n", "line 2: 'seed' is 'x'; expected a whole number"),
        (HEAD + ",none,,0,high\n", "line 2: 'accuracy' is 'high'; expected a finite"),
        (HEAD + ",none,,0,0_6\n", "line 2: 'accuracy' is '0_6'; expected a finite"),
        (HEAD + ",none,,1_0,0.9\n", "line 2: 'seed' is '1_0'; expected a whole number"),
        (HEAD + ",none,,0,nan\n", "line 2: 'accuracy' is 'nan'; expected a finite"),
        (HEAD + ",none,,0,0.9,0.9\n", "line 2: .* more fields than columns"),
        (HEAD + ",none,,0\n", "line 2: 'accuracy' is not there; expected a finite number"),
        (HEAD + ",none,,1.0,0.9\n", "line 2: 'seed' is '1.0'; expected a whole number"),
        (HEAD + ",none,,0,0.9\n,none\n", "line 3: 'weight' is not there; expected text"),
        (HEAD + ',none,,"0\n', "cannot be read as a table"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, text, message) -> None:
    path = pathlib.Path(tmp_path, "study.csv")
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_csv(path)
    assert str(path) in str(raised.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_csv(path.with_name("none.csv"))
