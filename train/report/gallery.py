"""Pictures that need a model: clouds of keys and queries, and attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm

from train.data.base import Illustration
from train.report.attention import LABELS, Maps, draw_patches, draw_words, example_maps, illustrated
from train.report.contents import Picture, Section
from train.report.picture import (
    Points,
    draw_classes,
    draw_clouds,
    farthest_head,
    head_series,
    run_points,
)
from train.report.pictures import COLUMN, WRITTEN, picture, write_values
from train.report.runs import Run, Study
from train.report.style import method_name
from train.run.folder import CheckpointError
from train.run.loop import restore_run

Examples = dict[int, dict[str, tuple[Illustration, Maps]]]  # number -> method -> what is drawn


def from_models(study: Study, numbers: Sequence[int]) -> list[Section]:
    """The sections on clouds and on attention, of one run of each method.

    Args:
        study: whose runs are restored, one after the other.
        numbers: the examples whose attention is drawn.
    """
    clouds, attention = Section("Keys and queries"), Section("Attention maps")
    chosen = _one_of_each(study)
    if not chosen:
        for section in (clouds, attention):
            section.missing.append("No run is finished.")
        return [clouds, attention]
    place = _place(chosen)
    if place is None:
        clouds.missing.append("Not drawn: no run has measured keys and queries.")

    points: dict[str, Points] = {}
    examples: Examples = {number: {} for number in numbers}
    for method, run in chosen.items():
        who = f"{method_name(method)}, seed {run.seed}, is not drawn: "
        try:
            shown = illustrated(run.config)
            if not shown and place is None:
                continue
            experiment, state = restore_run(run.folder, run.config)
        except (CheckpointError, ValueError, OSError) as error:  # ConfigError is a ValueError
            clouds.missing.append(f"{who}{error}")
            attention.missing.append(f"{who}{error}")
            continue
        if place is not None:
            try:
                points[method] = run_points(experiment, state, *place)
            except (ValueError, KeyError, OSError) as error:  # other layers, no data
                clouds.missing.append(f"{who}{error}")
        for number in numbers if shown else ():
            try:
                found = example_maps(experiment, state, number)
            except (ValueError, OSError) as error:
                attention.missing.append(f"{who}{error}")
            else:
                examples[number] |= {method: found} if found else {}
    if points and place:
        _add_clouds(clouds, study, chosen, points, place)
    for number, drawn in examples.items():
        attention.pictures += _draw_example(number, drawn)
    if attention.pictures:
        seeds = {run.seed for run in chosen.values()}
        attention.text = (
            f"Mean over the heads of the last layer, seed {', '.join(map(str, sorted(seeds)))}, "
            f"examples of {study.eval['mmd_split']}; one scale for all methods."
        )
    elif not attention.missing:
        attention.missing.append(
            f"The data source {study.values['data']['name']} has no examples to show, or the model "
            f"no attention between their words or patches."
        )
    return [clouds, attention]


def _one_of_each(study: Study) -> dict[str, Run]:
    """A finished run per method, with the first seed that all have, or else the first of each."""
    finished = study.finished
    common = set.intersection(*(set(runs) for runs in finished.values())) if finished else set()
    return {
        m: runs[min(common)] if common else min(runs.items())[1] for m, runs in finished.items()
    }


def _place(chosen: Mapping[str, Run]) -> tuple[str, int] | None:
    """The layer and head that the first run's keys and queries are farthest apart in."""
    for run in chosen.values():
        series = head_series(run.records, "mmd_per_head")
        if series:
            return farthest_head(series)
    return None


def _add_clouds(
    section: Section, study: Study, chosen: Mapping[str, Run], points: Mapping[str, Points],
    place: tuple[str, int],
) -> None:  # fmt: skip
    layer, head = place
    section.text = (
        f"t-SNE of the queries and keys of {layer}, head {head}, on examples of "
        f"{study.eval['mmd_split']}: the head where keys and queries of the first method end "
        f"farthest apart. Each picture is an embedding of its own: what is near is near, but "
        f"distances between groups mean little. The MMD is measured in the space of the head."
    )
    for method, found in points.items():
        name, seed = method_name(method), chosen[method].seed
        series = head_series(chosen[method].records, "mmd_per_head")
        mmd = f", MMD {series[layer][1][-1, head]:.3g}" if layer in series else ""
        figure, axes = plt.subplots(figsize=(COLUMN, 3.9), layout="constrained")
        draw_clouds(axes, found.queries, found.keys)
        axes.set_title(f"{name}{mmd}")
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)
        alt = (
            f"t-SNE of {len(found.queries)} queries, circles, and {len(found.keys)} keys, crosses, "
            f"of {name}{mmd}."
        )
        section.pictures.append(picture(figure, f"clouds {method}", alt, f"{name}, seed {seed}."))
    for method, found in points.items():
        if found.embeddings is not None and found.labels is not None:
            seed = chosen[method].seed
            section.pictures.append(_draw_classes(method, seed, found.embeddings, found.labels))


def _draw_classes(method: str, seed: int, points: np.ndarray, labels: np.ndarray) -> Picture:
    figure, axes = plt.subplots(figsize=(COLUMN, 3.9), layout="constrained")
    draw_classes(axes, points, labels)
    axes.set_title(f"{method_name(method)}: nodes by class")
    figure.legend(fontsize=8, loc="outside lower center", ncols=5, markerscale=2.5)
    alt = (
        f"t-SNE of what {method_name(method)} makes of {len(points)} examples, a colour and a "
        f"marker for each of {len(np.unique(labels))} classes."
    )
    caption = f"{method_name(method)}, seed {seed}: examples before the last layer, by class."
    return picture(figure, f"classes {method}", alt, caption)


def _draw_example(number: int, found: Mapping[str, tuple[Illustration, Maps]]) -> list[Picture]:
    """An example's maps, a picture per method and kind, and its image if there is one."""
    pictures = []
    for kind, label in LABELS.items():
        drawn = {
            method: values
            for method, (_, maps) in found.items()
            if (values := getattr(maps, kind)) is not None
        }
        if not drawn:
            continue
        shown = next(iter(found.values()))[0]
        if kind == "patches" and shown.image is not None:
            pictures.append(_draw_image(number, shown))
        limits = min(x.min() for x in drawn.values()), max(x.max() for x in drawn.values())
        for method, values in drawn.items():
            side = max(COLUMN, 1.2 + 0.13 * len(shown.words)) if kind == "words" else COLUMN
            figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
            if kind == "words":
                mappable = draw_words(axes, values, shown.words)
            else:
                mappable = draw_patches(axes, values)
                if values.shape[1] <= WRITTEN:
                    write_values(axes, values, limits)
            # A few words get most of the attention: a root keeps the rest apart.
            mappable.set_norm(PowerNorm(0.5 if kind == "words" else 1.0, *limits))
            figure.colorbar(mappable, ax=axes, label=label, location="bottom", shrink=0.8)
            axes.tick_params(labelsize=7.5)
            axes.set_title(method_name(method))
            said = f"{method_name(method)} answers {found[method][1].prediction}"
            caption = f"Example {number}: {shown.title}. {said}."
            alt = f"Attention map. {caption} {_most(kind, values, shown)}"
            pictures.append(picture(figure, f"attention {number} {kind} {method}", alt, caption))
    return pictures


def _draw_image(number: int, shown: Illustration) -> Picture:
    figure, axes = plt.subplots(figsize=(COLUMN, COLUMN), layout="constrained")
    axes.imshow(np.asarray(shown.image))
    axes.set_xticks([])
    axes.set_yticks([])
    caption = f"Example {number}: {shown.title}. The image."
    return picture(figure, f"attention {number} image", caption, caption)


def _most(kind: str, values: np.ndarray, shown: Illustration) -> str:
    """Where most of the attention goes, in a sentence."""
    place = np.unravel_index(values.argmax(), values.shape)
    if kind == "words":
        query, key = (shown.words[index] for index in place)
        return f"The largest weight, {values.max():.2f}, is that of {key} for {query}."
    row, column = place
    return f"The patch in row {row + 1}, column {column + 1} gets most: {values.max():.1f} shares."
