"""The comparison table against numbers worked out by hand."""

from __future__ import annotations

import io

import pytest
import rich.console

from train.benchmarks.step_time import StepTime
from train.comparison.table import Cell, brief, comparison, measured, to_json, to_markdown, to_rich


def result(accuracy: float, mmd: float, alignment: float | None) -> dict:
    return {
        "metrics": {"test": {"accuracy": accuracy}, "noisy": {"accuracy": accuracy / 2}},
        "mmd": mmd,
        "alignment": alignment,
        "parameters": 1_234_567,
    }


ROWS = comparison(
    {
        "none": [result(0.9, 2.0, None) | {"scale_free_mmd": 0.8, "classifier_accuracy": 0.97}],
        # As runs of old have it.
        "ct": [result(0.8, 1.0, 0.5), result(0.9, 3.0, 0.7), result(1.0, 2.0, 0.6)],
    },
    {"none": StepTime(10.0, 1.0), "ct": StepTime(15.0, 1.5)},
    "test",
    ["accuracy", "noisy/accuracy"],
)


def test_several_seeds_have_mean_and_sample_deviation() -> None:
    cell = ROWS["ct"]["test accuracy"]
    assert (cell.mean, cell.std) == (pytest.approx(0.9), pytest.approx(0.1))
    assert ROWS["none"]["test accuracy"].std is None


def test_markdown_has_a_line_per_method() -> None:
    assert to_markdown(ROWS).splitlines() == [
        "| method | test accuracy | noisy accuracy | MMD | scale-free MMD | classifier "
        "| divergence | parameters | ms per step | over plain |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| plain | 0.9000 | 0.4500 | 2.0000 | 0.8000 | 0.970 | - | 1.235M | 10.00 | 1.00x |",
        "| CT | 0.9000 ± 0.1000 | 0.4500 ± 0.0500 | 2.0000 ± 1.0000 | - | - | 0.6000 ± 0.1000 "
        "| 1.235M | 15.00 | 1.50x |",
    ]


def test_json_keeps_numbers() -> None:
    assert to_json(ROWS)["none"]["MMD"] == {"mean": 2.0, "std": None}
    assert to_json(ROWS)["none"]["divergence"] is None


def test_metrics_that_some_runs_lack_are_named_and_left_out() -> None:
    runs = [{"metrics": {"test": {"a": 1.0, "b": 2.0}}}, {"metrics": {"test": {"a": 1.0}}}]
    assert measured(runs, "test", ["a", "b", "dev/a"]) == (
        ["a"],
        [
            "b is left out: 1 of the finished runs do not have it.",
            "dev/a is left out: 2 of the finished runs do not have it.",
        ],
    )


def test_the_terminals_table_fits_into_eighty_columns() -> None:
    """With the spread over seeds in every column."""
    row = dict.fromkeys(["test accuracy", "test ece", *list(ROWS["ct"])[2:]], Cell(0.9667, 0.0034))
    row |= {"classifier": Cell(0.972, 0.012, digits=3), "over plain": Cell(3.59, digits=2)}
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(to_rich(brief({"none": row, "energy": row}), "digits"))
    lines = console.file.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    (line,) = (" ".join(line.split()) for line in lines if "energy" in line)
    assert line == "energy" + 3 * " 0.967 ± 0.003" + " 0.972 ± 0.012 3.59"
