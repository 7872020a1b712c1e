"""The table of attacks: means over seeds, and what can be said of the difference."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import rich.console

from tests.train.commands import command
from train.attack.summary import print_tables, summarise
from train.registry import ConfigError
from train.report.attacks import NUMBERS

METRIC = NUMBERS["failed_percent"]


def write(folder, method="none", seed=0, failed=1, recipe="pwws", weight=None) -> None:
    """Four attacks, of which some failed, and one example that was wrong already."""
    outcomes = ["failed"] * failed + ["successful"] * (4 - failed) + ["skipped"]
    content = {
        "recipe": recipe, "experiment": "mrpc", "method": method, "weight": weight,
        "run_seed": seed, "split": "validation", "seed": 0,
        "examples": [
            {"row": row, "outcome": name, "queries": 8} for row, name in enumerate(outcomes)
        ],
    }  # fmt: skip
    path = folder / f"{method}-{weight}-seed{seed}"
    path.mkdir(parents=True, exist_ok=True)
    (path / f"attack-{recipe}.json").write_text(json.dumps(content))


def test_seeds_are_averaged_and_paired(tmp_path) -> None:
    for seed, (plain, aligned) in enumerate([(1, 2), (2, 3), (1, 2)]):
        write(tmp_path, "none", seed, plain)
        write(tmp_path, "ct", seed, aligned)
    write(tmp_path, "gan", 0, 4)
    (found,) = summarise([tmp_path])
    assert found.title == "mrpc, validation: pwws"
    assert list(found.rows) == ["none", "ct", "gan"]
    plain = found.rows["none"]
    assert plain[METRIC].mean == pytest.approx(100 / 3)
    assert plain[METRIC].std == pytest.approx(np.std([25, 50, 25], ddof=1))
    assert plain["accuracy under attack, %"].mean == pytest.approx(80 / 3)
    assert (plain["seeds"].mean, plain["attacks"].mean) == (3, 12)
    assert plain["queries per attack"].mean == 8
    ct, ct_by_example, gan, gan_by_example = found.findings
    assert ct.startswith(f"ct, {METRIC}: +25.0000 over plain")
    assert ct.endswith("(no spread, 3 paired seeds): within noise.")
    assert "one seed, which tells nothing" in gan
    assert "+25.0000 over plain" in ct_by_example
    assert "+75.0000 over plain" in gan_by_example
    assert "4 paired examples" in gan_by_example

    console = rich.console.Console(file=io.StringIO(), width=120)
    print_tables([found], console)
    assert "50.0" not in console.file.getvalue().split("ct")[0]
    assert "58.3 ± 14.4" in console.file.getvalue()


def test_recipes_and_weights_are_kept_apart(tmp_path) -> None:
    write(tmp_path, "none")
    write(tmp_path, "none", recipe="pruthi")
    write(tmp_path, "ct", weight=0.1)
    write(tmp_path, "ct")  # of a run that leaves the weight to the method
    tables = {table.title: table for table in summarise([tmp_path])}
    assert list(tables["mrpc, validation: pwws"].rows) == ["none", "ct", "ct:0.1"]
    assert list(tables["mrpc, validation: pruthi"].rows) == ["none"]


def test_nothing_and_the_same_twice_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no attack-.*json under"):
        summarise([tmp_path])
    write(tmp_path / "a")
    write(tmp_path / "b")
    with pytest.raises(ConfigError, match="attack the same method and seed"):
        summarise([tmp_path])


def test_the_command_prints_the_table_without_textattack(tmp_path) -> None:
    write(tmp_path, "none", failed=3)
    done = command(f"--summarise={tmp_path}", module="train.attack", forked=True)
    assert done.returncode == 0, done.stderr
    assert "mrpc, validation: pwws" in done.stdout
    assert "75.0" in done.stdout
