"""SQuAD's questions, from the official JSON files or from tensorflow-datasets' prepared ones.

Source: "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (Rajpurkar et al., 2016, arXiv
1606.05250) and "Know What You Don't Know: Unanswerable Questions for SQuAD" (Rajpurkar et al.,
2018, arXiv 1806.03822).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.data.json_text import loads, read_text
from train.data.prepared import prepared_text
from train.registry import ConfigError


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        identity: SQuAD's id.
        question: what is asked.
        context: the text that holds the answer.
        answers: the right answers, as they stand in the context; none where there is no answer.
        starts: the character of the context that each of them begins with.
    """

    identity: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


def read_json(path: Path) -> list[Question]:
    """Reads a file such as train-v2.0.json.

    Raises:
        ConfigError: there is no such file, it is no JSON, or not in SQuAD's format; says where.

    Example:
        >>> read_json(Path("dev-v2.0.json"))[0].question  # doctest: +SKIP
        'In what country is Normandy located?'
    """
    try:
        content = loads(read_text(path))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error}). Get train-v1.1.json, dev-v1.1.json, train-v2.0.json "
            "and dev-v2.0.json from https://rajpurkar.github.io/SQuAD-explorer, or set data.source "
            "to 'tfds'."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}). Download it again.") from error
    try:
        questions = list(_questions(content))
    except _FormatError as error:
        raise ConfigError(f"{path} is not in SQuAD's format: {error}.") from error
    if not questions:
        raise ConfigError(f"{path} holds no questions.")
    return questions


def read_prepared(examples: Sequence[Mapping[str, Any]], where: str) -> list[Question]:
    """What tensorflow-datasets' records of SQuAD say.

    Raises:
        ConfigError: a text is not UTF-8; names the question.
    """
    questions = []
    for number, example in enumerate(examples):
        identity, question, context, *answers = (
            prepared_text(text, where, number)
            for text in (
                *(example[name] for name in ("id", "question", "context")),
                *example["answers"]["text"],
            )
        )
        starts = tuple(int(start) for start in example["answers"]["answer_start"])
        questions.append(Question(identity, question, context, tuple(answers), starts))
    return questions


def check_questions(questions: Sequence[Question], where: str) -> None:
    """Refuses questions that nothing can be learnt or measured from.

    Raises:
        ConfigError: names the first question without text, or whose answer is not in its context.
    """
    for one in questions:
        if not (one.question.strip() and one.context.strip()):
            raise ConfigError(f"{where}: question {one.identity} has no text, or no context.")
        for answer, start in zip(one.answers, one.starts, strict=True):
            found = one.context[start : start + len(answer)] if start >= 0 else ""
            if not answer.strip() or found != answer:
                raise ConfigError(
                    f"{where}: question {one.identity} has the answer {answer!r} at character "
                    f"{start}, where its context reads {found!r}."
                )


class _FormatError(ValueError):
    """Something is missing, or of the wrong type."""


def _questions(content: Any) -> Iterator[Question]:
    for i, article in enumerate(_get(content, "data", list, "the file")):
        paragraphs = _get(article, "paragraphs", list, f"data[{i}]")
        for j, paragraph in enumerate(paragraphs):
            where = f"data[{i}].paragraphs[{j}]"
            context = _get(paragraph, "context", str, where)
            for k, entry in enumerate(_get(paragraph, "qas", list, where)):
                yield _question(entry, context, f"{where}.qas[{k}]")


def _question(entry: Any, context: str, where: str) -> Question:
    answers = _get(entry, "answers", list, where)
    if isinstance(entry.get("is_impossible"), bool) and entry["is_impossible"] and answers:
        raise _FormatError(f"{where} is said to be impossible, but has answers")
    return Question(
        _get(entry, "id", str, where),
        _get(entry, "question", str, where),
        context,
        tuple(_get(answer, "text", str, f"{where}.answers") for answer in answers),
        tuple(_get(answer, "answer_start", int, f"{where}.answers") for answer in answers),
    )


def _get(holder: Any, name: str, kind: type, where: str) -> Any:
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _FormatError(f"{where} should have {name!r}, of type {kind.__name__}")
    return value
