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

from train.data import json_text
from train.data.json_text import field
from train.data.prepared import prepared_text
from train.registry import ConfigError

ADVICE = (
    "Get train-v1.1.json, dev-v1.1.json, train-v2.0.json and dev-v2.0.json from "
    "https://rajpurkar.github.io/SQuAD-explorer, or set data.source to 'tfds'."
)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a text."""

    identity: str
    question: str
    context: str  # the text that holds the answer
    answers: tuple[str, ...] = ()  # the right ones, as they stand in the context, if there are any
    starts: tuple[int, ...] = ()  # the character of the context that each of them begins with


def read_json(path: Path) -> list[Question]:
    """Reads a file such as train-v2.0.json."""
    content = json_text.read_json(path, ADVICE)
    questions = list(_questions(content, f"{path} is not in SQuAD's format: "))
    if not questions:
        raise ConfigError(f"{path} holds no questions.")
    return questions


def read_prepared(examples: Sequence[Mapping[str, Any]], where: str) -> list[Question]:
    """What tensorflow-datasets' records of SQuAD say."""
    questions = []
    for number, example in enumerate(examples):
        said = example["answers"]
        texts = [*(example[name] for name in ("id", "question", "context")), *said["text"]]
        identity, question, context, *answers = (prepared_text(x, where, number) for x in texts)
        starts = tuple(int(start) for start in said["answer_start"])
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


def _questions(content: Any, form: str) -> Iterator[Question]:
    for i, article in enumerate(field(content, "data", list, f"{form}the file")):
        for j, paragraph in enumerate(field(article, "paragraphs", list, f"{form}data[{i}]")):
            where = f"{form}data[{i}].paragraphs[{j}]"
            context = field(paragraph, "context", str, where)
            for k, entry in enumerate(field(paragraph, "qas", list, where)):
                yield _question(entry, context, f"{where}.qas[{k}]")


def _question(entry: Any, context: str, where: str) -> Question:
    answers = field(entry, "answers", list, where)
    if entry.get("is_impossible") is True and answers:
        raise ConfigError(f"{where} is said to be impossible, but has answers.")
    return Question(
        field(entry, "id", str, where),
        field(entry, "question", str, where),
        context,
        tuple(field(answer, "text", str, f"{where}.answers") for answer in answers),
        tuple(field(answer, "answer_start", int, f"{where}.answers") for answer in answers),
    )
