"""Draws the picture of the README: keys and queries of one head, without and with alignment.

    python -m train --config=train/configs/digits.py --workdir=runs/plain
    python -m train --config=train/configs/digits.py --config.alignment.method=energy --workdir=runs/energy
    python -m docs.picture runs/plain runs/energy docs/queries_and_keys.png

The head is the one whose queries and keys lie farthest apart in the first run.
"""  # noqa: E501

import pathlib
import sys

import matplotlib.pyplot as plt

from train.report.picture import DISTANCE, draw_clouds, farthest_head, head_series, run_points
from train.report.style import method_name
from train.run.log import read_records
from train.run.loop import restore_run


def main(plain: str, aligned: str, picture: str) -> None:
    """Draws the clouds of two finished runs side by side."""
    folders = [pathlib.Path(plain), pathlib.Path(aligned)]
    distances = [head_series(read_records(run), DISTANCE) for run in folders]
    layer, head = farthest_head(distances[0])
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.6), layout="constrained")
    for panel, folder, distance in zip(panels, folders, distances, strict=True):
        experiment, state = restore_run(folder)
        points = run_points(experiment, state, layer, head)
        draw_clouds(panel, points.queries, points.keys)
        apart = max(distance[layer][1][-1, head], 0.0)
        panel.set_title(f"{method_name(experiment.config.alignment.method)}: distance {apart:.3f}")
    figure.savefig(picture, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
