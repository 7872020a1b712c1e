"""The tables and sentences of a study: what was run, what came out, and what the paper has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from align_jax.config import PLAIN, WEIGHTS
from train.comparison import table
from train.comparison.statistics import Difference, differences_to_plain, noise
from train.comparison.table import method_name
from train.report.contents import Section, Table
from train.report.paper import STEP_RATIOS, PaperResult, paper_results
from train.report.pictures import seed_count
from train.report.runs import Run, Study, config_keys

NOTHING = "-"


def facts(study: Study) -> list[tuple[str, str]]:
    """What made the numbers of a study: (name, value) pairs."""
    seeds: dict[str, list[str]] = {}
    for method, runs in study.finished.items():
        seeds.setdefault(", ".join(map(str, runs)), []).append(method_name(method))
    shown = "; ".join(f"{', '.join(names)}: {some}" for some, names in seeds.items())
    if len(seeds) == 1:
        (shown,) = seeds
    machines = dict.fromkeys(x.get("hardware", "not recorded") for x in _all_results(study))
    return [
        ("Command", "; ".join(study.commands) or "not recorded"),
        ("Methods", ", ".join(map(method_name, study.runs))),
        ("Seeds", shown or "none is finished"),
        ("Hardware", "; ".join(machines) or NOTHING),
    ]


def unfinished(study: Study) -> list[str]:
    """A sentence for each run that is not finished, and for what was left aside."""
    sentences = []
    for method, runs in study.runs.items():
        for seed, run in runs.items():
            if run.result is None:
                step = max((record["step"] for record in run.records), default=0)
                sentences.append(
                    f"{method_name(method)}, seed {seed}, is not finished (step {step} of "
                    f"{run.values['train']['steps']}): it is in no table."
                )
    return sentences + study.notes


def results(study: Study) -> tuple[str, Section]:
    """What came out in a few sentences; the metrics over seeds, and which differences count."""
    section = Section("Results", missing=unfinished(study), printed=True)
    finished = study.finished
    if not finished:
        section.missing.append("No run is finished, so there are no results yet.")
        return "", section
    every, report = _all_results(study), study.eval["report"]
    metrics, left_out = table.measured(every, study.split, report)
    section.missing += left_out
    rows = table.comparison(_results(finished), study.times, study.split, metrics)
    columns = [x for x in next(iter(rows.values())) if any(row[x] for row in rows.values())]
    caption = "Mean and sample standard deviation over the seeds."
    if "MMD" in columns:
        caption += (
            f" MMD: squared maximum mean discrepancy of keys and queries on "
            f"{study.eval['mmd_split']}, summed over layers and heads, bandwidth "
            f"{study.eval['mmd_bandwidth']:g}."
        )
    if "scale-free MMD" in columns:
        caption += (
            " Scale-free: over the tokens of all examples, with the median distance for bandwidth, "
            "mean over layers and heads. Classifier: how often a new one separates queries from "
            "keys that it has not seen, 0.5 by chance."
        )
    body = [
        [method_name(method), *(str(row[name] or NOTHING) for name in columns)]
        for method, row in rows.items()
    ]
    section.tables.append(Table(caption, ["method", *columns], body))
    found = _differences(study, metrics, section)
    several = any(one.pairs > 1 for one in found.values())
    section.sentences += (
        [one.sentence(*name) for name, one in found.items()] if several else noise(found)
    )
    return " ".join([*_best(study, rows, metrics, found), *_aligned(rows)]), section


def _best(
    study: Study, rows: Mapping[str, table.Row], metrics: Sequence[str],
    found: Mapping[tuple[str, str], Difference],
) -> list[str]:  # fmt: skip
    """What was compared, and which method is best by the metric that is reported first."""
    names = [method_name(method) for method in rows]
    said = [f"Compared on {study.name}: {', '.join(names)}."]
    if not metrics:
        return said
    column = " ".join(table.place(metrics[0], study.split))
    cells = {method_name(m): cell for m, row in rows.items() if (cell := row[column]) is not None}
    best, *others = sorted(cells, key=lambda name: -cells[name].mean)
    if others and cells[others[0]].mean == cells[best].mean:
        return [*said, f"{best} and {others[0]} are equal by {column} ({cells[best]})."]
    shown, one = f"{best} is best by {column} ({cells[best]})", found.get((best, column))
    if one is None and others:  # the plain model is, or there is none
        one = found.get((others[0], column))
        shown += f"; {others[0]} comes next"
    return [*said, f"{shown}, {one.gain}." if one else f"{shown}."]


def _aligned(rows: Mapping[str, table.Row]) -> list[str]:
    """Whether the methods did what they are for; nothing where it was not measured."""
    cells = {m: cell for m, row in rows.items() if (cell := row["scale-free MMD"]) is not None}
    if PLAIN not in cells or len(cells) < 2:
        return []
    shown = ", ".join(f"{method_name(method)} {cell.mean:.3f}" for method, cell in cells.items())
    half = cells[PLAIN].mean / 2
    aligned = [method_name(m) for m, cell in cells.items() if m != PLAIN and cell.mean < half]
    return [
        f"Keys and queries were brought closer (to less than half of plain's scale-free MMD) by "
        f"{', '.join(aligned) or 'none'}: {shown}; 0 is one distribution."
    ]


def _differences(
    study: Study, metrics: Sequence[str], section: Section
) -> dict[tuple[str, str], Difference]:
    """By method and metric, as people call them; says in the section what cannot be compared."""
    finished = study.finished
    found: dict[tuple[str, str], Difference] = {}
    if PLAIN not in finished:
        section.missing.append(
            "There is no finished plain model to compare with, so nothing is said of differences."
        )
        return {}
    for method in [name for name in finished if name != PLAIN]:
        common = [seed for seed in finished[PLAIN] if seed in finished[method]]
        if not common:
            section.missing.append(
                f"{method_name(method)} has no seed in common with the plain model to be paired by."
            )
            continue
        pairs = {name: {s: finished[name][s] for s in common} for name in (PLAIN, method)}
        values = table.by_seed(_results(pairs), study.split, metrics)
        found |= differences_to_plain({PLAIN: values[PLAIN], method_name(method): values[method]})
    return found


def beside_the_paper(study: Study) -> Section:
    """What was measured, beside what the paper has."""
    section = Section("Beside the paper", printed=True)
    known = paper_results(study.name, study.values["model"].get("pretrained", ""))
    if not known:
        section.missing.append(f"The paper has no numbers on {study.name}.")
        return section
    section.text = (
        "In percent, means and standard deviations over seeds; a gain is the mean difference to "
        "the plain model, paired by seed here. Where the data or the model are others than the "
        "paper's, only the gains can be compared."
    )
    columns = ["method", "here", "gain here", "the paper", "gain in the paper"]
    for result in known:
        split, metric = table.place(result.metric, study.split)
        values = {
            method: {seed: 100 * of[metric] for seed, of in found.items() if metric in of}
            for method, found in _metrics(study, split).items()
        }
        body = [row for method in result.values for row in _paper_rows(result, method, values)]
        caption = f"{result.metric}. The paper: {result.table}, {result.setting}"
        caption += f" ({result.note})." if result.note else "."
        section.tables.append(Table(caption, columns, body))
    return section


def _paper_rows(
    result: PaperResult, method: str, values: Mapping[str, Mapping[int, float]]
) -> list[list[str]]:
    """The rows of one of the paper's methods: one per variant of it that was run, or one empty."""
    mean, base = result.values[method], result.values[PLAIN]
    paper = f"{mean:.2f}" + (f" ± {result.spreads[method]:g}" if method in result.spreads else "")
    gain = NOTHING if method == PLAIN else f"{mean - base:+.2f}"
    rows = []
    for label, here in values.items():
        if label.partition(":")[0] != method or not here:
            continue
        plain, own = values.get(PLAIN, {}), NOTHING
        gains = [x - plain[seed] for seed, x in here.items() if seed in plain]
        if label != PLAIN and gains:
            own = f"{np.mean(gains):+.2f}"
        rows.append([method_name(label), mean_and_spread(list(here.values())), own, paper, gain])
    return rows or [[method_name(method), "no finished run", NOTHING, paper, gain]]


def step_times(study: Study) -> Section:
    """What alignment costs per training step."""
    section = Section("Step time", printed=True)
    caption = (
        "Time of a training step over the plain model's, median of steps taken in turn in one "
        "process. The paper: MCAN small on VQA-v2, Tables 5, 6, 9."
    )
    times = {m: f"{study.times[m].ratio:.2f}x" for m in study.runs if m in study.times}
    paper = {m: f"{x:.2f}x" for m in times if (x := STEP_RATIOS.get(m.partition(":")[0]))}
    rows = [[method_name(m), time, paper.get(m, NOTHING)] for m, time in times.items()]
    if rows:
        section.tables.append(Table(caption, ["method", "here", "the paper"], rows))
    else:
        section.missing.append(
            "Not measured: train.sweep times the steps when all its runs are finished."
        )
    return section


def every_run(study: Study) -> Section:
    """All metrics of all finished runs, one by one."""
    values = [traverse_util.flatten_dict(x["metrics"], sep=" ") for x in _all_results(study)]
    names = dict.fromkeys(name for found in values for name in found)
    heads = [
        [method_name(method), str(seed), str(x["steps"]), f"{x['seconds'] / 60:.1f}"]
        for method, runs in study.finished.items()
        for seed, run in runs.items()
        if (x := run.result)
    ]
    rows = [
        [*head, *(f"{found[name]:.4f}" if name in found else NOTHING for name in names)]
        for head, found in zip(heads, values, strict=True)
    ]
    section = Section("Every run", folded=True)
    if rows:
        columns = ["method", "seed", "steps", "minutes", *names]
        caption = "All metrics of all finished runs; minutes are those of the last start."
        section.tables.append(Table(caption, columns, rows))
    else:
        section.missing.append("No run is finished.")
    return section


def configuration(study: Study) -> list[Section]:
    """What differs between the methods, and all the rest."""
    sections = {m: next(iter(runs.values())).values["alignment"] for m, runs in study.runs.items()}
    active = {method: values for method, values in sections.items() if method != PLAIN}
    for method, values in active.items():
        if values.get("weight") is None:
            active[method] = values | {"weight": WEIGHTS[values["method"]]}  # what it stands for
    keys = dict.fromkeys(key for values in active.values() for key in values)
    differing = [k for k in keys if len({_text(values.get(k)) for values in active.values()}) > 1]
    shown = [active.get(method, {"method": method}) for method in sections]
    rows = [
        [f"alignment.{key}", *(_text(x[key]) if key in x else NOTHING for x in shown)]
        for key in dict.fromkeys(["method", *differing])
    ]
    columns = ["key", *map(method_name, sections)]
    caption = "What differs between the runs, besides the seed."
    first = Section("Configuration", tables=[Table(caption, columns, rows)], printed=True)

    every = {f"alignment.{k}": x for values in active.values() for k, x in values.items()}
    same = {k: x for k, x in every.items() if k.partition(".")[2] not in ("method", *differing)}
    everything = sorted((same | config_keys(study.values)).items())
    caption = "What all runs have in common; the section alignment without effect on a plain model."
    whole = Table(caption, ["key", "value"], [[key, _text(value)] for key, value in everything])
    return [first, Section("Whole configuration", tables=[whole], folded=True)]


def _results(runs: Mapping[str, Mapping[int, Run]]) -> dict[str, list[dict[str, Any]]]:
    return {
        method: [run.result for run in seeds.values() if run.result is not None]
        for method, seeds in runs.items()
    }


def _all_results(study: Study) -> list[dict[str, Any]]:
    return [result for results in _results(study.finished).values() for result in results]


def _metrics(study: Study, split: str) -> dict[str, dict[int, dict[str, float]]]:
    """Of all finished runs on a split: method -> seed -> metric -> its value."""
    return {
        method: {seed: (run.result or {})["metrics"].get(split, {}) for seed, run in runs.items()}
        for method, runs in study.finished.items()
    }


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Such as "81.45 ± 1.44 (3 seeds)"."""
    return f"{table.over_seeds(values, digits)} ({seed_count(len(values))})"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
