"""What a run's folder says for the card of its exported model."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

from align_jax import AlignmentConfig
from align_jax.config import PLAIN
from align_jax.pretrained import Card
from train.run.folder import CONFIG, RESULT, making_sense_of, read_config, read_json


def run_card(folder: pathlib.Path, *, final: bool = True) -> Card:
    """The card of a run's model.

    Args:
        folder: of the run.
        final: whether it is the model that the run ended with; the metrics are that one's.

    Returns:
        Base model, data and alignment; of a run that is complete also metrics and temperature.

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
        base = values["model"].get("pretrained", "")
    card = Card(
        base_model=base,
        data=" ".join(x for x in sources if x),
        alignment=alignment,
        weight=None if method == PLAIN else weight,
    )
    if not final or not (folder / RESULT).exists():
        return card
    result = read_json(folder / RESULT)
    with making_sense_of(folder / RESULT):
        metrics = {split: _numbers(found) for split, found in result["metrics"].items()}
        found = [values.pop("temperature", None) for values in metrics.values()]
        temperature = next((x for x in found if x is not None), None)
        return dataclasses.replace(card, metrics=metrics, temperature=temperature)


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
