r"""Labels texts, or answers questions, with a trained run; or exports it for `transformers`.

    python -m train.predict --checkpoint=runs/glue-mrpc/ct-seed0 --input=pairs.jsonl
    python -m train.predict --checkpoint=runs/reviews --input=new.csv > labels.jsonl
    python -m train.predict --checkpoint=runs/glue-mrpc/ct-seed0 --export=exported
    python -m train.predict --checkpoint=runs/glue-mrpc/ct-seed0 --export=exported \
        --export_stablehlo --push_to_hub=OWNER/NAME

A line of the input is a JSON object with the texts that the task has, such as {"sentence1": "...",
"sentence2": "..."} for MRPC, or a row of a *.csv, *.tsv or *.parquet with columns of these names;
"-" reads JSON lines on standard input. For each, a line goes to standard output:
{"label": "equivalent", "probabilities": {"not_equivalent": 0.1, "equivalent": 0.9}}; for a
regression {"score": 3.8}; for a question and its context {"answer": "France", "start": 159, "end":
165, "probability": 0.8, "n_best": [...]}, the answer "" where there is none. A question about a
picture names the picture's file as "image" and gets a label; of more than ten, the probabilities
of the best ten are written.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from align_jax.pretrained import Card, PretrainedError, push_to_hub, save
from train import cli, process
from train.data.base import Batch
from train.data.json_text import loads
from train.data.squad_files import Question
from train.data.tables import Problems, read_rows
from train.places import place_of
from train.predictor import PredictSource, batch_outputs, restore_predictor
from train.registry import ConfigError
from train.report.card import run_card
from train.step.state import TrainState
from train.tasks.answers import Answers, best_answers
from train.tasks.span import SpanExtraction
from train.tasks.text import MultipleChoice, TextRegression
from train.tasks.vqa import QuestionAnswering

CHECKPOINT = cli.define_checkpoint_flag()
INPUT = flags.DEFINE_string(
    "input", None, "The texts: JSON lines, *.csv, *.tsv or *.parquet; or - for JSON lines on stdin."
)
STEP = flags.DEFINE_integer(
    "step", None, "Of the checkpoint; by default the last. The folder checkpoints/ names them."
)
EXPORT = flags.DEFINE_string("export", None, "A folder to write for transformers.")
EXPORT_STABLEHLO = flags.DEFINE_bool(
    "export_stablehlo", False, "Write model.stablehlo there too, which JAX runs by itself."
)
PUSH_TO_HUB = flags.DEFINE_string(
    "push_to_hub", None, "OWNER/NAME of a repository on the hub to upload the export to."
)
PRIVATE = flags.DEFINE_bool("private", True, "Whether a repository made there is private.")
TABLES = (".csv", ".tsv", ".parquet")  # of --input; all else is JSON lines
SHOWN = 10  # labels whose probabilities are written
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts labelled at once.", lower_bound=1)


def read_texts(
    lines: Iterable[str], fields: tuple[str, ...], where: str, *, every: bool = False
) -> Iterator[tuple[str, ...]]:
    """The texts `fields` of each line, a JSON object, but for empty lines.

    None of the texts may be empty if `every` says so; else one must not be.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = loads(line)
        except ValueError as error:
            raise ConfigError(f"{where}, line {number} is not JSON: {error}.") from error
        found = [values.get(name, 0) for name in fields] if isinstance(values, dict) else []
        found = ["" if text is None else text for text in found]  # as in what is trained on
        texts = tuple(text for text in found if isinstance(text, str))
        if len(texts) < len(fields):
            raise ConfigError(
                f"{where}, line {number}: expected an object with the texts {', '.join(fields)}, "
                f"got {line.strip()[:80]}."
            )
        if not (all if every else any)(text.strip() for text in texts):
            raise ConfigError(f"{where}, line {number} has no text in {' or '.join(fields)}.")
        yield texts


def predict(
    data: PredictSource, state: TrainState, texts: Iterable[tuple[str, ...]], batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """Labels texts, a batch at a time: yields what the command writes in a line.

    The texts of an example are in the order of `data.fields`; the last batch is filled up.
    """
    examples = iter(texts)
    while chunk := list(itertools.islice(examples, batch_size)):
        if isinstance(state.task, SpanExtraction):
            yield from _answered(data, state, state.task, chunk, batch_size)
            continue
        for row in batch_outputs(data, state, chunk, batch_size):
            yield _labelled(row, data.label_names)


def _answered(
    data: Any, state: TrainState, task: SpanExtraction, texts: list[tuple[str, ...]], rows: int
) -> Iterator[dict[str, Any]]:
    """The answers to some questions; their windows make batches of `rows`."""
    windows = data.windows([Question(str(i), pair[0], pair[1]) for i, pair in enumerate(texts)])
    batches = [jax.device_get(_spans(state, x)) for x in data.ordered(windows.texts, rows)]
    joined = {  # the rows that only fill up the last batch come last
        name: np.concatenate([batch[name] for batch in batches])[: len(windows.offsets)]
        for name in batches[0]
    }
    contexts = [one.context for one in windows.questions]
    for answers in best_answers(joined, contexts, windows.offsets, task.n_best):
        yield _answer(answers, task)


@jax.jit
def _spans(state: TrainState, batch: Batch) -> Any:
    outputs = state.task.apply(state.model, state.variables, batch, train=False)
    return state.task.predictions(outputs, batch)


def _answer(answers: Answers, task: SpanExtraction) -> dict[str, Any]:
    chances = answers.probabilities(unanswerable=task.unanswerable).tolist()
    spans = [
        {"answer": x.text, "start": x.start, "end": x.end, "probability": chance}
        for x, chance in zip(answers.best, chances, strict=False)  # the last may be that of none
    ]
    if not spans or (task.unanswerable and answers.null_margin > task.null_threshold):
        none = chances[-1] if task.unanswerable else 1.0
        return {"answer": "", "start": 0, "end": 0, "probability": none, "n_best": spans}
    return {**spans[0], "n_best": spans}


def _labelled(row: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    if not names:
        return {"score": float(row[0])}
    shown = range(len(names)) if len(names) <= SHOWN else (-row).argsort(kind="stable")[:SHOWN]
    return {
        "label": names[int(row.argmax())],
        "probabilities": {names[place]: float(row[place]) for place in shown},
    }


def export(
    data: PredictSource,
    state: TrainState,
    folder: pathlib.Path,
    *,
    card: Card | None = None,
    stablehlo: bool = False,
) -> None:
    """Writes a run's model, without alignment networks, as a folder for `transformers`.

    Args:
        data, state: the run's.
        folder: one that is empty or does not exist.
        card: what the model's card is to say, as of `train.report.card.run_card`.
        stablehlo: write model.stablehlo too.

    Raises:
        ConfigError: the folder is not empty or cannot be written to, or `transformers` has no such
            model.
    """
    if not hasattr(data, "text_tokenizer"):
        raise ConfigError(
            f"--export: {type(state.model).__name__} is no model that transformers has; only runs "
            f"on texts can be exported."
        )
    _check_is_free(folder)
    # A choice has one logit for each text, and so no classes.
    choice = isinstance(state.task, MultipleChoice)
    names = None if choice else data.label_names or None
    name, pairs = folder.resolve().name, len(data.fields) > 1
    card = dataclasses.replace(card or Card(), name=name, pairs=pairs)
    params = state.variables["params"]
    if isinstance(state.task, TextRegression):  # whoever loads it knows no task
        params = state.task.in_units(params)
    # Whoever loads it is to cut texts where the run does.
    source: Any = data
    tokenizer = source.text_tokenizer.with_usual_length(source.max_length)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{os.getpid()}"  # what could not be written whole is not left behind
    try:
        with process.naming(folder):
            save(
                part,
                state.model,
                params,
                tokenizer,
                label_names=names,
                card=card,
                stablehlo=stablehlo,
            )
            for file in part.iterdir():
                os.replace(file, folder / file.name)
    except (PretrainedError, ImportError) as error:
        raise ConfigError(f"--export: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_is_free(folder: pathlib.Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--export: {folder} is not an empty folder; name a new one.")


def _upload(folder: pathlib.Path, repo_id: str, *, private: bool) -> str:
    try:
        return push_to_hub(folder, repo_id, private=private)
    except (PretrainedError, ImportError) as error:
        again = f"The export is complete: hf upload {repo_id} {folder} uploads it."
        raise ConfigError(f"--push_to_hub: {error} {again}") from error


def main() -> None:
    """Runs the command."""
    for flag in (EXPORT_STABLEHLO, PUSH_TO_HUB):
        if flag.value and not EXPORT.value:
            raise ConfigError(f"--{flag.name} takes what --export=FOLDER writes; give that too.")
    if not CHECKPOINT.value or not (INPUT.value or EXPORT.value):
        raise ConfigError("give --checkpoint=RUN_DIR, and --input=FILE.jsonl|- or --export=FOLDER.")
    # Both are looked at before anything takes time.
    target = place_of(EXPORT.value, "--export") if EXPORT.value else None
    source = INPUT.value if INPUT.value in (None, "", "-") else place_of(INPUT.value, "--input")
    folder = place_of(CHECKPOINT.value, "--checkpoint", bucket=True)
    if target:
        _check_is_free(target)
    if source not in (None, "", "-"):
        os.stat(source)  # not opened yet: it may be a pipe
    data, state = restore_predictor(folder, STEP.value)
    if target:
        card = run_card(folder, final=STEP.value is None)
        export(data, state, target, card=card, stablehlo=EXPORT_STABLEHLO.value)
        print(f"Exported to {EXPORT.value}", file=sys.stderr)
        if PUSH_TO_HUB.value:
            address = _upload(target, PUSH_TO_HUB.value, private=PRIVATE.value)
            print(f"Uploaded to {address}", file=sys.stderr)
    rows = BATCH_SIZE.value
    if source == "-":
        _write(data, state, sys.stdin.buffer if sys.stdin else None, "standard input")
    elif source and pathlib.Path(source).suffix.lower() in TABLES:
        _print(predict(data, state, table_texts(pathlib.Path(source), data.fields), rows))
    elif source:
        with open(source, "rb") as file:
            _write(data, state, file, str(source))


def table_texts(path: pathlib.Path, fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The texts in the columns `fields` of a file of CSV, TSV or Parquet; none may be missing."""
    problems, texts = Problems(), []
    names = {f"text {number} of the run": name for number, name in enumerate(fields, start=1)}
    for row in read_rows(path, names, problems):
        values = tuple("" if value is None else value for value in row.values)
        if not all(isinstance(value, str) for value in values):
            problems.add(path, row.place, f"has no text but {row.values!r:.60}")
        elif not any(value.strip() for value in values):
            problems.add(path, row.place, f"has no text in {' or '.join(map(repr, fields))}")
        texts.append(values)
    problems.raise_any()
    return texts


def decoded(lines: Iterable[bytes], where: str) -> Iterator[str]:
    """Lines of UTF-8 as text, whatever the terminal's encoding is; errors name `where`."""
    with process.naming(where):
        for number, line in enumerate(lines, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"{where}, line {number} is not UTF-8: {error}.") from error


def _write(
    data: PredictSource, state: TrainState, lines: Iterable[bytes] | None, where: str
) -> None:
    if lines is None:
        raise ConfigError(f"--input: {where} is closed; give it the texts, or name a file.")
    every = isinstance(state.task, SpanExtraction | QuestionAnswering)
    texts = read_texts(decoded(lines, where), data.fields, where, every=every)
    _print(predict(data, state, texts, BATCH_SIZE.value))


def _print(answers: Iterable[dict[str, Any]]) -> None:
    try:
        for answer in answers:
            print(json.dumps(answer), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough, such as head
        process.abandon_output()


if __name__ == "__main__":
    cli.run_command(main)
