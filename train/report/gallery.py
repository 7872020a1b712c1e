"""Pictures that need a model: clouds of keys and queries, and attention maps."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from train.comparison.table import method_name
from train.report.attention import Maps, draw_maps, example_maps, kinds_of, map_height
from train.report.contents import Section
from train.report.picture import (
    DISTANCE,
    YARDSTICK,
    Points,
    distance_limits,
    draw_method,
    farthest_head,
    head_series,
    legend_of,
    run_points,
)
from train.report.pictures import COLUMN, Draw, new_figure, picture, side_by_side
from train.report.reliability import HEIGHT, confidence_records, draw_reliability
from train.report.runs import Run, Study
from train.run.folder import CheckpointError
from train.run.loop import restore_run

SEARCHED = 16  # examples at the start of a split, for one that all models get right


@dataclasses.dataclass
class Gallery:
    """What is drawn of one run of each method."""

    # Layer and head of the clouds, the same for all: where keys and queries of the first run that
    # has measured them end farthest apart by the scale-free MMD; None if none has.
    place: tuple[str, int] | None
    points: dict[str, Points] = dataclasses.field(default_factory=dict)
    # Number in the split -> method -> its maps.
    examples: dict[int, dict[str, Maps]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)  # what could not be drawn


def visit(runs: Mapping[str, Run], numbers: Iterable[int] | None = None) -> Gallery:
    """Restores finished runs, one after the other, and keeps what is to be drawn.

    Args:
        runs: by method.
        numbers: the examples whose attention is drawn; None draws the first of `SEARCHED` that most
            models get right.
    """
    measured = (head_series(run.records, DISTANCE) for run in runs.values())
    gallery = Gallery(next((farthest_head(series) for series in measured if series), None))
    for method, run in runs.items():
        try:
            experiment, state = restore_run(run.folder, run.config)
            if gallery.place is not None:
                gallery.points[method] = run_points(experiment, state, *gallery.place)
            known = experiment.data.examples[run.config.eval.mmd_split]
            for number in range(min(SEARCHED, known)) if numbers is None else numbers:
                found = example_maps(experiment, state, number)
                if found is None:
                    break
                gallery.examples.setdefault(number, {})[method] = found
        # Edited files, other layers, no data, no such example; ConfigError is a ValueError.
        except (CheckpointError, ValueError, KeyError, OSError) as error:
            gallery.problems.append(
                f"{method_name(method)}, seed {run.seed}, is not drawn in full: {error}"
            )
    if numbers is None and gallery.examples:
        right = {n: sum(bool(x.right) for x in of.values()) for n, of in gallery.examples.items()}
        best = max(right, key=lambda number: right[number])
        gallery.examples = {best: gallery.examples[best]}
    return gallery


def from_models(study: Study, numbers: Sequence[int] | None) -> list[Section]:
    """The sections on clouds and on attention of a study; `numbers` as of `visit`."""
    clouds, attention = Section("Keys and queries"), Section("Attention maps")
    chosen = _one_of_each(study)
    if not chosen:
        clouds.missing = attention.missing = ["No run is finished."]
        return [clouds, attention]
    gallery = visit(chosen, numbers)
    clouds.missing += gallery.problems
    split = study.eval["mmd_split"]
    if gallery.points and gallery.place:
        clouds.text = f"{_which_head(gallery.place, split, chosen)} {YARDSTICK}"
        limits = distance_limits(run.records for run in chosen.values())
        for method, points in gallery.points.items():
            run = chosen[method]
            figure = new_figure(_height(points, run))
            alt = draw_method(figure, method, points, run.records, gallery.place, limits)
            caption = f"{method_name(method)}, seed {run.seed}."
            clouds.pictures.append(picture(figure, f"clouds {method}", alt, caption))
    elif not gallery.place:
        clouds.missing.append("Not drawn: no run has measured keys and queries.")
    for number, drawn in gallery.examples.items():
        kinds = kinds_of(drawn.values())
        for method, maps in drawn.items() if kinds else ():
            figure = new_figure(*map_height(kinds, maps, COLUMN))
            said = draw_maps(figure, method, maps, kinds)
            caption = f"Example {number}: {maps.shown.title}."
            alt = f"Attention map. {caption} {said}"
            attention.pictures.append(picture(figure, f"attention {number} {method}", alt, caption))
    if attention.pictures:
        seeds = ", ".join(sorted({str(run.seed) for run in chosen.values()}))
        attention.text = f"{_which_example(numbers)} Seed {seeds}, on {split}."
    else:
        attention.missing += gallery.problems or [
            f"The data source {study.values['data']['name']} has no examples to show, or the model "
            f"no attention between their words or patches."
        ]
    return [clouds, attention]


def write_pictures(runs: Mapping[str, Run], workdir: pathlib.Path) -> list[str]:
    """Writes picture.png, reliability.png and attention.png, of which it returns a line each.

    Args:
        runs: finished ones, by method; each is a column.
        workdir: the folder that gets them.
    """
    config, gallery = next(iter(runs.values())).config, visit(runs)
    lines, split = list(gallery.problems), config.eval.mmd_split

    def write(file: str, draw: Draw, methods: Iterable[str], title: str, **look: Any) -> None:
        path, title = workdir / f"{file}.png", f"{config.name}, seed {config.seed}: {title}"
        side_by_side(draw, methods, path, title=title, **look)
        lines.append(f"{file.capitalize()}: {path}")

    points, place = gallery.points, gallery.place
    if place and points:
        limits = distance_limits(run.records for run in runs.values())
        write(
            "picture",
            lambda part, m: draw_method(part, m, points[m], runs[m].records, place, limits),
            points, _which_head(place, split, runs), text=YARDSTICK,
            height=max(_height(points[m], runs[m]) for m in points),
        )  # fmt: skip
    else:
        lines.append("No picture: eval.mmd_examples is 0, so no keys and queries were measured.")
    final = config.eval.final[-1]
    bins = {m: records for m, run in runs.items() if (records := confidence_records([run], final))}
    if bins:
        write("reliability", lambda part, m: draw_reliability(part, m, bins[m]), bins,
              f"reliability on {final}", height=HEIGHT)  # fmt: skip
    for number, drawn in gallery.examples.items():  # one at most
        kinds, first = kinds_of(drawn.values()), next(iter(drawn.values()))
        height, width = map_height(kinds, first, COLUMN)
        if kinds:
            title = f"example {number} of {split}, {first.shown.title}. {_which_example(None)}"
            write("attention", lambda part, m: draw_maps(part, m, drawn[m], kinds), drawn,  # noqa: B023
                  title, height=height, width=width)  # fmt: skip
    return lines


def _one_of_each(study: Study) -> dict[str, Run]:
    """A finished run per method, with the first seed that all have, or else the first of each."""
    finished = study.finished
    common = set.intersection(*(set(runs) for runs in finished.values())) if finished else set()
    return {
        m: runs[min(common)] if common else min(runs.items())[1] for m, runs in finished.items()
    }


def _which_head(place: tuple[str, int], split: str, runs: Iterable[str]) -> str:
    return (
        f"t-SNE of queries and keys of {place[0]}, head {place[1]}, on {split}: the head whose "
        f"scale-free MMD is the largest at the end of {method_name(next(iter(runs)))}. Below, a "
        f"line per head over the steps; the thick one is that of this head."
    )


def _which_example(numbers: Iterable[int] | None) -> str:
    """What is drawn, and why this one."""
    chosen = "" if numbers else " The example is the first that all models get right, or most."
    return f"Last layers, mean over the heads, one scale for all methods.{chosen}"


def _height(points: Points, run: Run) -> float:
    """Of a method's column, in inches; a legend of many lines needs room."""
    names, columns = legend_of(list(head_series(run.records, DISTANCE)))
    return (7.6 if points.embeddings is None else 10.6) + 0.2 * (-(-len(names) // columns))
