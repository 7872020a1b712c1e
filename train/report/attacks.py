"""How many attacks on a study's runs failed, from the files that `train.attack` leaves in them."""

from __future__ import annotations

from typing import Any

from train.attack.records import checked_summary
from train.attack.summary import NUMBERS, differences
from train.comparison.table import method_name
from train.report.contents import Section, Table
from train.report.paper import FAILED_ATTACKS
from train.report.runs import Study
from train.report.summary import NOTHING, mean_and_spread
from train.run.folder import CheckpointError, read_json


def attacks(study: Study) -> list[Section]:
    """A section with a table per recipe and split; none where no run was attacked.

    Raises:
        CheckpointError: a file is damaged, or two of a run hold attacks of one recipe and split.
    """
    tables: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for method, runs in study.finished.items():
        for seed, run in runs.items():
            for path in sorted(run.folder.glob("attack-*.json")):
                content = read_json(path)
                lacking = {"recipe", "split", "attacks", "examples", *NUMBERS} - content.keys()
                if lacking:
                    raise CheckpointError(
                        f"{path} is damaged, or no file of train.attack: {min(lacking)!r}."
                    )
                checked_summary(path, content["examples"])
                if not content["attacks"]:
                    continue
                group = content["recipe"], content["split"]
                of_method = tables.setdefault(group, {}).setdefault(method, {})
                if seed in of_method:
                    raise CheckpointError(
                        f"{run.folder} holds two files of attacks by {group[0]} on {group[1]}; "
                        f"move one away."
                    )
                of_method[seed] = content
    if not tables:
        return []
    section = Section("Attacks", printed=True)
    section.text = (
        "A failed attack left the model's right answer right. Means and standard deviations over "
        "seeds; what the model had wrong from the start is not attacked. Pairs of seeds tell what "
        "another training would bring; pairs of examples, whether these very models differ."
    )
    for (recipe, split), found in tables.items():
        section.tables.append(_table(recipe, split, found))
        section.sentences += [f"{recipe}: {said}" for said in differences(found, method_name)]
    return [section]


def _table(recipe: str, split: str, found: dict[str, dict[int, dict[str, Any]]]) -> Table:
    paper = FAILED_ATTACKS.get(recipe, {})
    columns = ["method", "seeds", "attacks", *NUMBERS.values()]
    rows = []
    for method, of_seeds in found.items():
        contents = of_seeds.values()
        counts = " + ".join(str(content["attacks"]) for content in contents)
        row = [method_name(method), ", ".join(map(str, of_seeds)), counts]
        row += [mean_and_spread([x[name] for x in contents], digits=1) for name in NUMBERS]
        if paper:
            row.append(f"{paper[method]:.1f}" if method in paper else NOTHING)
        rows.append(row)
    caption = f"{recipe}, examples of {split}."
    if paper:
        columns.append("the paper, %")
        caption += " The paper: Table 3, mean over five tasks, 1000 attacks each."
    return Table(caption, columns, rows)
