"""MiniLM with fewer layers: its tokenizer, its words and its first layers, of a third of the cost.

What a test of a whole program asks of a pretrained encoder, each of its layers would answer anew.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil

from tests.pretrained import checkpoints

LAYERS = 2  # so that there is a layer after another


def write_first_layers(folder: pathlib.Path) -> None:
    """Writes the checkpoint to a new folder; skips where no real weights are installed."""
    from safetensors.numpy import load_file, save_file

    whole = checkpoints.minilm()
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))
    weights = load_file(whole / "model.safetensors")
    kept = {
        name: array for name, array in weights.items()
        if not (layer := re.search(r"layer\.(\d+)\.", name)) or int(layer[1]) < LAYERS
    }  # fmt: skip
    save_file(kept, folder / "model.safetensors")
