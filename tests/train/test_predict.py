"""Predicting with a trained run and exporting it, on the tiny checkpoint."""

from __future__ import annotations

import errno
import functools
import json

import jax
import numpy as np
import pytest

from tests.pretrained import hub_server
from tests.train.commands import command, run_quietly
from tests.train.tiny_glue import fake_glue, tiny_run
from tests.train.tiny_glue import tiny_config as tiny_glue_config
from tests.train.tiny_squad import CONTEXT, write_squad
from tests.train.tiny_squad import tiny_config as tiny_squad_config
from train.experiment.experiment import build_experiment
from train.predict import _labelled, _upload, _write, export, predict, read_texts
from train.predictor import restore_predictor
from train.registry import ConfigError
from train.report.card import run_card
from train.run.folder import CheckpointError

PAIRS = [("The cat sat.", "A dog ran?"), ("dogs", ""), ("the mat", "the mat on a hill")]


@pytest.fixture(scope="module")
def mrpc_run(checkpoint, tmp_path_factory):
    return tiny_run(checkpoint, tmp_path_factory.mktemp("run"), "mrpc", "ct")


@pytest.fixture(scope="module")
def mrpc(mrpc_run):
    return restore_predictor(mrpc_run)


def test_each_text_gets_a_label_and_probabilities_in_order(mrpc) -> None:
    answers = list(predict(*mrpc, PAIRS, batch_size=2))
    assert len(answers) == 3
    for answer in answers:
        assert list(answer["probabilities"]) == ["not_equivalent", "equivalent"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    alone = next(predict(*mrpc, PAIRS[2:], batch_size=1))
    assert alone["probabilities"] == pytest.approx(answers[2]["probabilities"], abs=1e-6)


def test_of_many_labels_the_ten_most_probable_are_shown() -> None:
    answer = _labelled(np.arange(12) / 66, tuple("abcdefghijkl"))
    assert answer["label"] == "l"
    assert list(answer["probabilities"]) == list("lkjihgfedc")


def test_a_regression_gives_scores(checkpoint, monkeypatch) -> None:
    fake_glue(monkeypatch, "stsb")
    experiment = build_experiment(tiny_glue_config(checkpoint, "stsb"))
    answers = list(predict(experiment.data, experiment.initial_state(), PAIRS))
    assert [list(answer) for answer in answers] == [["score"]] * 3
    json.dumps(answers)


def test_transformers_loads_the_export_and_agrees(mrpc, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    export(*mrpc, tmp_path / "export")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    texts = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**texts).logits.softmax(-1).numpy()
    ours = [list(answer["probabilities"].values()) for answer in predict(*mrpc, PAIRS)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert model.config.id2label[1] == "equivalent"
    with pytest.raises(ConfigError, match="not an empty folder"):
        export(*mrpc, tmp_path / "export")


def test_the_card_of_a_run_says_what_the_run_knows(mrpc, mrpc_run, tmp_path) -> None:
    export(*mrpc, tmp_path / "mine", card=run_card(mrpc_run))
    lines = (tmp_path / "mine" / "README.md").read_text().splitlines()
    metrics = json.loads((mrpc_run / "result.json").read_text())["metrics"]
    for line in (
        "# mine",
        "| Training data | glue mrpc |",
        "| Alignment | ct, weight 0.1, every layer |",
        "| 1 | equivalent |",
        f"| validation | accuracy | {metrics['validation']['accuracy']:.4g} |",
        'batch = loaded.tokenizer.encode(["A sentence."], ["Another one."])',
    ):
        assert line in lines
    assert not [line for line in lines if str(tmp_path.parent) in line]
    # Of an earlier step the run's metrics say nothing.
    assert run_card(mrpc_run, final=False).metrics == {}


def test_the_temperature_of_a_run_comes_from_where_it_was_used(mrpc_run, tmp_path) -> None:
    (tmp_path / "config.json").write_bytes((mrpc_run / "config.json").read_bytes())
    assert run_card(tmp_path).temperature is None  # it is not complete
    metrics = {"validation": {"ece": 0.1}, "test": {"ece": 0.2, "temperature": 1.5, "mmd": None}}
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"metrics": metrics}))
    card = run_card(tmp_path)
    assert card.temperature == 1.5
    assert card.metrics == {"validation": {"ece": 0.1}, "test": {"ece": 0.2}}
    for wrong in ({"metrics": 3}, {}, {"metrics": {"test": {"temperature": -1.0}}}):
        result.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=r"result.json does not hold what a run writes"):
            run_card(tmp_path)


def test_an_export_is_uploaded_and_a_refusal_is_one_line(mrpc_run, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "mine"
    with hub_server.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        flags = f"--checkpoint={mrpc_run}", f"--export={folder}", "--push_to_hub=ann/reviews"
        done = command(*flags, module="train.predict", forked=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == f"Uploaded to {hub.url}/ann/reviews"
        assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
        assert hub.repositories["ann/reviews"]["visibility"] == "private"
    done = command(*flags[:2], flags[2] + "/x", module="train.predict", forked=True)
    assert done.returncode == 2
    assert "is not an empty folder" in done.stderr
    done = command(flags[0], flags[2], module="train.predict", forked=True)
    assert done.returncode == 2
    assert "--push_to_hub takes what --export=FOLDER writes" in done.stderr
    with pytest.raises(
        ConfigError, match="--push_to_hub: Could not upload .* HFValidationError.* hf upload"
    ):
        _upload(folder, "a/b/c", private=True)


@pytest.fixture(scope="module")
def answering(checkpoint, tmp_path_factory):
    """A run that has learnt the tiny SQuAD by heart; its files are gone when it is restored."""
    files, folder = tmp_path_factory.mktemp("squad"), tmp_path_factory.mktemp("run")
    write_squad(files)
    config = tiny_squad_config(checkpoint, files, "ct")
    result = run_quietly(config, folder)
    for path in files.iterdir():
        path.unlink()
    return result, restore_predictor(folder)


def test_questions_are_answered_from_their_contexts(answering) -> None:
    result, (data, state) = answering
    assert result["metrics"]["validation"]["f1"] > 0.7  # by heart; guessing "no answer" gives 0.5
    questions = [("two the dale?", CONTEXT), ("dogs sat?", CONTEXT), ("two a mat?", CONTEXT * 3)]
    answers = list(predict(data, state, questions, batch_size=2))
    json.dumps(answers)
    assert len(answers) == 3
    for (_, context), answer in zip(questions, answers, strict=True):
        assert answer["answer"] == context[answer["start"] : answer["end"]]
        for span in answer["n_best"]:
            assert span["answer"] == context[span["start"] : span["end"]]
        spans = [span["probability"] for span in answer["n_best"]]
        assert spans == sorted(spans, reverse=True)
        assert sum(spans) < 1.0  # the rest is that of there being no answer
    assert answers[0]["answer"] == "the dale"
    assert answers[1]["answer"] == ""
    alone = next(predict(data, state, questions[1:2], batch_size=1))
    assert alone["probability"] == pytest.approx(answers[1]["probability"], abs=1e-5)


def test_a_question_needs_a_context() -> None:
    lines = ['{"question": "two?", "context": " "}']
    with pytest.raises(ConfigError, match="line 1 has no text in question or context"):
        list(read_texts(lines, ("question", "context"), "standard input", every=True))


def test_transformers_loads_the_exported_span_model_and_agrees(answering, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    data, state = answering[1]
    export(data, state, tmp_path / "export")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "export")
    batch = data.text_tokenizer.encode(["two the dale?"], [CONTEXT])
    with torch.no_grad():
        theirs = model.eval()(**{k: torch.tensor(v).long() for k, v in batch.items()})
    apply = jax.jit(functools.partial(state.task.apply, state.model, train=False))
    ours = apply({"params": state.params}, batch)
    valid = batch["attention_mask"][0].astype(bool)
    for mine, other in zip(ours, (theirs.start_logits, theirs.end_logits), strict=True):
        np.testing.assert_allclose(mine[0][valid], other[0].numpy()[valid], atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        pytest.param("[" * 100_000, "line 2 is not JSON", id="nested without end"),
        ("[1]", "expected an object with the texts sentence1, sentence2"),
        ('{"sentence1": "a"}', "expected an object with the texts"),
        ('{"sentence1": "a", "sentence2": 3}', "expected an object with the texts"),
        ('{"sentence1": " ", "sentence2": ""}', "line 2 has no text in sentence1 or sentence2"),
    ],
)
def test_bad_lines_are_named(line, message) -> None:
    with pytest.raises(ConfigError, match=message):
        list(read_texts(["\n", line], ("sentence1", "sentence2"), "pairs.jsonl"))


def test_of_a_pair_one_text_may_be_null_as_in_training() -> None:
    names = ("sentence1", "sentence2")
    assert list(read_texts(['{"sentence1": "a", "sentence2": null}'], names, "x")) == [("a", "")]
    with pytest.raises(ConfigError, match="line 1 has no text in sentence1 or sentence2"):
        list(read_texts(['{"sentence1": null, "sentence2": null}'], names, "x"))
    with pytest.raises(ConfigError, match="line 1 has no text in sentence1 or sentence2"):
        list(read_texts(['{"sentence1": "a", "sentence2": null}'], names, "x", every=True))


def test_lines_are_read_and_empty_ones_left_out() -> None:
    lines = ['{"sentence": "a", "label": 1}\n', "\n", '{"sentence": "b"}']
    assert list(read_texts(lines, ("sentence",), "x")) == [("a",), ("b",)]


def test_a_run_on_pictures_is_refused(tmp_path, tiny_config) -> None:
    config = tiny_config(
        "none", train__steps=0, eval__at_start=False, eval__mmd_examples=0, eval__final=()
    )
    run_quietly(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="'digits', which holds no texts"):
        restore_predictor(tmp_path / "run")


@pytest.mark.fault(
    "A run's JSON that was edited and is still JSON",
    "The report, predicting, attacks and what starts from it say which file and what is wrong",
)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", None), ("model", 3), ("data", {}), ("alignment", []), ("seed", "x"),
        ("train", "x"), ("model", {"name": "pretrained_text", "pretrained": 3}),
    ],
)  # fmt: skip
def test_a_runs_config_that_was_edited_is_named(mrpc_run, tmp_path, key, value) -> None:
    config = json.loads((mrpc_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        restore_predictor(tmp_path)
    assert "checkpoint" not in str(caught.value).lower()  # that there is none does not come first


def test_the_command_answers_line_by_line_and_exports(mrpc_run, mrpc, tmp_path) -> None:
    file, run = tmp_path / "pairs.jsonl", f"--checkpoint={mrpc_run}"
    pairs = [{"sentence1": first, "sentence2": second} for first, second in PAIRS]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = command(
        run, f"--input={file}", f"--export={tmp_path / 'out'}", module="train.predict", forked=True
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer, expected in zip(answers, predict(*mrpc, PAIRS), strict=True):
        assert answer["label"] == expected["label"]
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert (tmp_path / "out" / "model.safetensors").exists()

    piped = command(
        run, "--input=-", module="train.predict", standard_input=file.read_text(), forked=True
    )
    assert [json.loads(line)["label"] for line in piped.stdout.splitlines()] == [
        answer["label"] for answer in answers
    ]


@pytest.mark.fault(
    "An export that cannot be written whole",
    "An error with the reason; nothing of it is left behind",
)
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space"),
        Exception("I/O error: No space (os error 28)"),
        OSError("model.safetensors cannot be written: No space (os error 28)"),
    ],
)
def test_an_export_without_room_leaves_nothing_behind(mrpc, tmp_path, monkeypatch, error) -> None:
    def fails(folder, *_, **__) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("train.predict.save", fails)
        with pytest.raises(OSError, match=f"No space.*: '{tmp_path}'"):
            export(*mrpc, tmp_path)
    assert list(tmp_path.iterdir()) == []
    export(*mrpc, tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_closed_standard_input_is_said(mrpc) -> None:
    with pytest.raises(ConfigError, match="--input: standard input is closed"):
        _write(*mrpc, None, "standard input")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"sentence1": "\xff"}', "is not UTF-8"), (None, "No such file"), ("", "give --checkpoint")],
)
def test_a_command_without_readable_input_says_why(mrpc_run, tmp_path, content, message) -> None:
    file = tmp_path / "pairs.jsonl"
    if content:
        file.write_bytes(content)
    given = [] if content == "" else [f"--input={file}"]
    done = command(f"--checkpoint={mrpc_run}", *given, module="train.predict", forked=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
