"""Folders that look like those of runs, with made-up numbers: nothing is trained."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from train.run.folder import to_json
from train.sweep import run_folder, variant


def write_run(
    workdir: pathlib.Path,
    config: ConfigDict,
    method: str,
    seed: int,
    metrics: dict[str, dict[str, float]] | None = None,
    records: list[dict[str, Any]] = (),  # type: ignore[assignment]
    **result: Any,
) -> pathlib.Path:
    """Writes a run's folder; without metrics it is not finished."""
    folder = run_folder(workdir, method, seed)
    folder.mkdir(parents=True)
    values = to_json(variant(config, method, seed))
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
    if metrics is not None:
        whole = {
            "metrics": metrics, "mmd": 1.0, "alignment": None, "parameters": 1000, "steps": 6,
            "seconds": 30.0, "hardware": "2 cores of a kind", **result, "config": values,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(whole))
    return folder
