"""What is run, in this order: cheap and telling experiments first.

Models and data are the paper's where a machine without a GPU can train them; else small ones stand
in for them, and only the differences between methods compare (see each config).
"""

from __future__ import annotations

from train.reproduce.entries import Attacks, Entry, Sweep

METHODS = ("none", "gan", "ct")
THREE, TEN = tuple(range(3)), tuple(range(10))
ATTACKS_PER_RUN = 200

# Name, table of the paper, config, methods, seeds, and about how many minutes a run takes on two
# CPU cores.
SWEEPS = (
    Sweep("cora", "Table 4", "train/configs/planetoid.py:cora", METHODS, TEN, 1),
    Sweep("cola", "Table 1", "train/configs/glue.py:cola,minilm", METHODS, THREE, 6),
    Sweep("sst2", "Table 1", "train/configs/glue.py:sst2,minilm", METHODS, THREE, 9),
    Sweep("easy-vqa", "Tables 5, 6", "train/configs/vqa.py:easy", METHODS, THREE, 10),
    Sweep("stsb", "Table 1", "train/configs/glue.py:stsb,minilm", METHODS, THREE, 10),
    Sweep("sentiment", "Table 2", "train/configs/transfer.py:sentiment,minilm", METHODS, THREE, 17),
    Sweep("mrpc", "Table 1", "train/configs/glue.py:mrpc,minilm", METHODS, THREE, 20),
)
_BY_NAME = {sweep.name: sweep for sweep in SWEEPS}


def _attacks(of: str, recipe: str, minutes: float) -> Attacks:
    name = f"{of}-{recipe}"
    return Attacks(name, "Table 3", _BY_NAME[of], recipe, ATTACKS_PER_RUN, minutes)


# The recipes that download nothing; the paper's three can be named to train.attack.
ENTRIES: tuple[Entry, ...] = (
    *SWEEPS,
    _attacks("sst2", "deepwordbug", 1),
    _attacks("sst2", "pwws", 4),
    _attacks("sst2", "pruthi", 12),
    _attacks("mrpc", "deepwordbug", 4),
    _attacks("mrpc", "pwws", 23),
    _attacks("mrpc", "pruthi", 63),
)
