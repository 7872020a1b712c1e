"""Where an answer lies, for every kind of tokenizer: it reads back from its tokens' characters."""

from __future__ import annotations

import json
import random
import unicodedata

import numpy as np
import pytest

from align_jax.models import BertConfig
from align_jax.pretrained import encode_windows, load_tokenizer
from train.data.squad import answer_tokens
from train.data.squad_files import Question
from train.tasks.answers import exact_match

tokenizers = pytest.importorskip("tokenizers")
pre = tokenizers.pre_tokenizers
LETTERS = sorted(pre.ByteLevel.alphabet())
WORDS = [
    "paris", "x", "Utrecht", "don't", "cafe\u0301", "re\u0301sume\u0301", "o\u0323\u0302n",
    "caf\u00e9", "\u6771\u4eac", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "I\u0307i",
    "\u0915\u094d\u092f\u093e", "\ufb01ne", "\U0001f600", "\u2764\ufe0f", "\ud55c\uad6d",
    unicodedata.normalize("NFD", "\ud55c"),
]  # fmt: skip
SPACES = [" ", "  ", "\t", "\n", "\u3000", " \u00a0"]


def word_piece(**settings):
    plain = "abcdefghijklmnopqrstuvwxyzPUI'"
    pieces = [*plain, *(f"##{x}" for x in plain), "##\u0301", "\u0301", "\u6771"]
    return {
        "vocab.txt": "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces]),
        "tokenizer_config.json": json.dumps(settings),
    }


def byte_level(pre_tokenizer, prefix):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, *(f"\u0120{x}" for x in "pxUd")]
    merges = [("\u0120", x) for x in "pxUd"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={x: n for n, x in enumerate(tokens)}, merges=merges)
    )
    backend.pre_tokenizer = pre_tokenizer
    backend.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), True, prefix
    )
    return {"tokenizer.json": backend.to_str()}


def unigram():
    normal = tokenizers.normalizers
    pieces = ["<pad>", "<unk>", "[CLS]", "[SEP]", "\u2581", *"abcdefghijklmnopqrstuvwxyz'"]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([(x, -1.0) for x in pieces], unk_id=1))
    spaces = normal.Replace(tokenizers.Regex(r"\s"), " ")  # as its compiled rules do
    backend.normalizer = normal.Sequence(
        [normal.NFKD(), normal.StripAccents(), normal.Lowercase(), spaces]
    )
    backend.pre_tokenizer = pre.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return {"tokenizer.json": backend.to_str()}


KINDS = {
    "BERT": word_piece(),
    "BERT cased": word_piece(do_lower_case=False),
    "BERT cased without accents": word_piece(do_lower_case=False, strip_accents=True),
    "RoBERTa": byte_level(pre.ByteLevel(add_prefix_space=False), False),
    "RoBERTa with a space first": byte_level(pre.ByteLevel(add_prefix_space=True), True),
    "words, then bytes": byte_level(
        pre.Sequence([pre.Whitespace(), pre.ByteLevel(add_prefix_space=True)]), True
    ),
    "words, then bytes, then signs": byte_level(
        pre.Sequence([pre.Whitespace(), pre.ByteLevel(add_prefix_space=True), pre.Punctuation()]),
        False,
    ),
    "ALBERT": unigram(),
}


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
    for name, text in KINDS[request.param].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    roberta = {"family": "roberta", "pad_token_id": 1, "token_types": 1}
    more = roberta if "<s>" in KINDS[request.param].get("tokenizer.json", "") else {}
    return load_tokenizer(tmp_path, BertConfig(vocab_size=400, max_positions=300, **more))


@pytest.mark.fault(
    "Answers with decomposed accents, beside any white space, in words that were split before",
    "They read back from their tokens, and in some window, with every kind of tokenizer",
)
def test_every_word_reads_back_from_its_tokens(tokenizer) -> None:
    rng = random.Random(0)
    words = rng.sample(WORDS, len(WORDS)) * 3
    context, starts = "", []
    for word in words:
        context += rng.choice(SPACES)
        starts.append(len(context))
        context += word
    windows = encode_windows(tokenizer, ["x"], [context], max_length=64, stride=30, max_question=8)
    found = set()
    for row, offsets in enumerate(windows.offsets):
        inside = np.flatnonzero(windows.in_context[row])
        for number, (word, start) in enumerate(zip(words, starts, strict=True)):
            question = Question("1", "x", context, (word,), (start,))
            first, last = answer_tokens(question, offsets, (inside[0], inside[-1]))
            if first:
                found.add(number)
                read = context[offsets[first, 0] : offsets[last, 1]]
                assert exact_match(read, [word]), (ascii(read), ascii(word))
                assert read == word
    assert found == set(range(len(words)))


@pytest.mark.parametrize(
    "blank", [" " * 70, "\u3000" * 30, "\t" * 70, "\u200b" * 30, "\ufeff", " \u00a0\n" * 20]
)
@pytest.mark.parametrize("place", ["{blank}who sings?", "who{blank}sings?", "who sings?{blank}"])
def test_white_space_takes_no_questions_place(tokenizer, blank, place) -> None:
    (alone, spaced) = (
        encode_windows(tokenizer, [question], ["Ann sings."], max_length=128, stride=8)
        for question in (place.format(blank=" ").strip(), place.format(blank=blank))
    )
    ids = [x.batch["input_ids"][0][~x.in_context[0]] for x in (alone, spaced)]
    if "who{blank}" not in place:  # white space around a question is none of it
        np.testing.assert_array_equal(ids[0], ids[1])
    wanted = tokenizer.tokenize(["sings?"])[0].input_ids[2:-1].tolist()  # the first may differ
    for one in ids:
        assert "".join(map(chr, wanted)) in "".join(map(chr, one.tolist()))


def test_a_question_never_takes_more_than_its_room(tokenizer) -> None:
    """Cut between the bytes of a letter, it keeps the letters that are whole."""
    for question in ("\U0001f600" * 20, "\u6771\u4eac" * 20, "undon't " * 9, "e\u0301" * 30):
        for room in (1, 2, 3, 6, 7):
            windows = encode_windows(
                tokenizer, [question], ["paris x " * 9], max_length=room + 10, stride=4,
                max_question=room,
            )  # fmt: skip
            special = tokenizer.backend.num_special_tokens_to_add(True)
            used = windows.batch["attention_mask"].sum(1) - windows.in_context.sum(1) - special
            assert (used <= room).all()
            assert (used == used[0]).all()
            assert used[0] > 0 or room < 4
