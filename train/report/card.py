"""What a run's folder says for the card of its exported model."""

from __future__ import annotations

import dataclasses
import math
import pathlib

from align_jax import AlignmentConfig
from align_jax.config import PLAIN
from align_jax.pretrained import Card
from train.run.folder import CONFIG, RESULT, making_sense_of, read_config, read_json


def run_card(folder: pathlib.Path, *, final: bool = True) -> Card:
    """The card of a run's model: base model, data and alignment.

    Args:
        folder: of the run.
        final: whether it is the model that the run ended with; of a run that is complete, its card
            has metrics and temperature too.

    Raises:
        CheckpointError: the folder is no run's, or a file in it was edited.
    """
    values = read_config(folder)
    with making_sense_of(folder / CONFIG):
        method, layers = values["alignment"]["method"], values["alignment"]["layers"]
        alignment = AlignmentConfig(method, layers=None if layers is None else tuple(layers))
        weight = values["alignment"]["weight"]
        if weight is None:
            weight = alignment.default_weight
        data = values["data"]
        train = data.get("train")  # a file of the user's, whose folder is nobody's business
        file = pathlib.Path(train).name if isinstance(train, str) else ""
        sources = [data["name"], data.get("dataset", ""), file]
        base, weight = values["model"].get("pretrained", ""), None if method == PLAIN else weight
    known = " ".join(filter(None, sources))
    card = Card(base_model=base, data=known, alignment=alignment, weight=weight)
    if not final or not (folder / RESULT).exists():
        return card
    result = read_json(folder / RESULT)
    with making_sense_of(folder / RESULT):
        metrics = {
            split: {n: x for n, x in of.items() if isinstance(x, int | float) and math.isfinite(x)}
            for split, of in result["metrics"].items()
        }
        found = [values.pop("temperature", None) for values in metrics.values()]
        temperature = next((x for x in found if x is not None), None)
        return dataclasses.replace(card, metrics=metrics, temperature=temperature)
