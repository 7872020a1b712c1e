"""What is run, in this order: cheap and telling experiments first.

Models and data are the paper's where a machine without a GPU can train them; else small ones stand
in for them, and only the differences between methods compare (see each config).
"""

from __future__ import annotations

from train.reproduce.entries import Entry, Sweep

METHODS = ("none", "gan", "ct")
THREE, TEN = tuple(range(3)), tuple(range(10))

# Name, table of the paper, config, methods, seeds, and about how many minutes a run takes on two
# CPU cores.
ENTRIES: tuple[Entry, ...] = (
    Sweep("cora", "Table 4", "train/configs/planetoid.py:cora", METHODS, TEN, 1),
    Sweep("cola", "Table 1", "train/configs/glue.py:cola,minilm", METHODS, THREE, 6),
    Sweep("easy-vqa", "Tables 5, 6", "train/configs/vqa.py:easy", METHODS, THREE, 7),
    Sweep("sst2", "Table 1", "train/configs/glue.py:sst2,minilm", METHODS, THREE, 9),
    Sweep("stsb", "Table 1", "train/configs/glue.py:stsb,minilm", METHODS, THREE, 10),
    Sweep("mrpc", "Table 1", "train/configs/glue.py:mrpc,minilm", METHODS, THREE, 20),
)
