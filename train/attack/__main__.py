"""Attacks a trained run's texts, and counts how many attacks fail: the paper's Table 3.

    python -m train.attack --checkpoint=runs/glue-mrpc-minilm-sweep/ct-seed0 --recipe=deepwordbug
    python -m train.attack --summarise=runs/glue-mrpc-minilm-sweep

An attack changes the words of an example that the model has right, by TextAttack's recipe, until
the model has it wrong (a success) or the recipe has nothing left to try (a failure). What the model
has wrong from the start is skipped. The examples are drawn from the split in an order that is the
same for all runs. One JSON file, RUN_DIR/attack-RECIPE.json, holds each example, what the recipe
made of it, the probabilities before and after, and the number of queries; it is written after each
example, and the same command goes on where it stopped.

The second command puts the files under some folders into a table, means over seeds, and says of
each difference to the plain model whether it is more than noise: between seeds (what another
training would bring), and between the examples that both models of a seed had right (whether these
very models differ).

TextAttack needs a virtual environment of its own (`train.attack.resources`).
"""

from __future__ import annotations

import importlib.metadata
import itertools
import pathlib

import numpy as np
import rich.console
import rich.progress
from absl import flags

from train import cli
from train.attack import summary
from train.attack.recipes import RECIPES, make_attack
from train.attack.records import AttackFile, run_attacks, targets_of
from train.attack.victim import restore_victim
from train.places import place_of
from train.registry import ConfigError, check_known
from train.run.folder import CONFIG, making_sense_of, read_config
from train.run.lock import LOCK, locked

CHECKPOINT = cli.define_checkpoint_flag()
RECIPE = flags.DEFINE_string("recipe", None, f"How to attack: {', '.join(RECIPES)}.")
EXAMPLES = flags.DEFINE_integer(
    "examples", 0, "Attacks, skipped examples not counted; 0 for the whole split.", lower_bound=0
)
SPLIT = flags.DEFINE_string("split", None, "Whose examples; by default what training evaluated.")
SEED = flags.DEFINE_integer("seed", 0, "Of the examples' order, and of what the recipe draws.")
OUTPUT = flags.DEFINE_string("output", None, "The JSON file; by default in the run's folder.")
SUMMARISE = flags.DEFINE_list("summarise", [], "Folders whose attacks to put into a table.")


def attack_run(folder: pathlib.Path, recipe: str, console: rich.console.Console) -> None:
    """Attacks one run by one of `RECIPES`.

    Raises:
        ConfigError: the run cannot be attacked, or something is missing.
        CheckpointError: the folder is no run's, or nothing can be made of its config.
    """
    check_known("--recipe is", recipe, RECIPES)
    victim = restore_victim(folder)
    attack = make_attack(recipe, victim, SEED.value)
    with making_sense_of(folder / CONFIG):
        config = read_config(folder)
        split = SPLIT.value or config["eval"]["mmd_split"]
        header = {  # what determines the outcomes
            "recipe": recipe,
            "experiment": config["name"],
            "method": config["alignment"]["method"],
            "weight": config["alignment"]["weight"],
            "alignment": config["alignment"],
            "run_seed": config["seed"],
            "step": int(victim.state.step),
            "split": split,
            "seed": SEED.value,
            "textattack": importlib.metadata.version("textattack"),
        }
        examples = victim.data.read(split)
    path = place_of(OUTPUT.value or folder / f"attack-{recipe}.json", "--output")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, f".{path.name}{LOCK}"):
        file = AttackFile(path, header)
        order = np.random.default_rng(SEED.value).permutation(len(examples)).tolist()
        targets = targets_of(examples, order)
        with rich.progress.Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"{recipe} on {folder}", total=EXAMPLES.value or len(targets))
            for _ in itertools.chain([None], run_attacks(targets, attack, file, EXAMPLES.value)):
                done = file.attacks if EXAMPLES.value else len(file.examples)
                progress.update(task, completed=done)
    console.print(summary.sentence(file.header, file.examples), highlight=False, soft_wrap=True)
    console.print(f"Examples: {path}", highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the command."""
    console = rich.console.Console()
    if SUMMARISE.value:
        folders = [place_of(folder, "--summarise") for folder in SUMMARISE.value]
        summary.print_tables(summary.summarise(folders), console)
        return
    if not CHECKPOINT.value or not RECIPE.value:
        raise ConfigError("give --checkpoint=RUN_DIR and --recipe=NAME, or --summarise=DIR,DIR.")
    attack_run(place_of(CHECKPOINT.value, "--checkpoint"), RECIPE.value, console)


if __name__ == "__main__":
    cli.run_command(main, "Interrupted. The same command goes on after the last example.")
