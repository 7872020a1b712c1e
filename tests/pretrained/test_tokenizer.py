"""Tokenizers: padding, truncation, windows, and the files they come from."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from align_jax import pretrained
from align_jax.models.albert import AlbertConfig
from align_jax.models.bert import BertConfig
from align_jax.pretrained import PretrainedError
from align_jax.pretrained.tokenizer import bucket_length
from tests.pretrained import checkpoints

tokenizers = pytest.importorskip("tokenizers")

CONFIG = BertConfig(vocab_size=len(checkpoints.VOCAB), hidden_size=8, heads=2, max_positions=100)


@pytest.fixture
def tokenizer(tmp_path):
    checkpoints.write_word_piece(tmp_path)
    return pretrained.load_tokenizer(tmp_path, CONFIG)


def test_special_tokens_types_and_padding(tokenizer) -> None:
    batch = tokenizer.encode(["The cat.", ""], ["a dog", "dogs sat"])
    tokens = [[tokenizer.backend.id_to_token(x) for x in row] for row in batch["input_ids"]]
    assert tokens[0][:9] == ["[CLS]", "the", "cat", ".", "[SEP]", "a", "d", "##o", "##g"]
    assert tokens[1][:5] == ["[CLS]", "[SEP]", "dogs", "sat", "[SEP]"]
    assert tokens[1][5:] == ["[PAD]"] * 27
    assert batch["token_type_ids"][1].tolist() == [0, 0, 1, 1, 1] + [0] * 27
    assert batch["attention_mask"].sum(1).tolist() == [10, 5]
    assert {x.dtype for x in batch.values()} == {np.dtype("int32")}


def test_lengths_are_buckets(tokenizer) -> None:
    def length(words, **options):
        return tokenizer.encode(["cat " * words], **options)["input_ids"].shape[1]

    assert [length(n) for n in (0, 30, 31, 62, 63, 94)] == [32, 32, 64, 64, 96, 96]
    assert length(1000) == 100  # the model's maximum, past the last bucket below it
    assert length(1000, max_length=40) == 64
    assert length(3, buckets=(7,)) == 7
    assert length(3, length=50) == 50
    assert length(1000, length=50) == 50
    assert bucket_length(101, (50, 128), 100) == 101
    with pytest.raises(ValueError, match="12 tokens, more than the length 8"):
        tokenizer.pad(tokenizer.tokenize(["cat " * 10]), length=8)


def test_the_longer_of_a_pair_is_truncated_first(tokenizer) -> None:
    first, second = tokenizer.tokenize(
        ["cat " * 5, "cat " * 60], ["dogs " * 60, "dogs " * 60], max_length=23
    )
    assert (first.token_type_ids == 0).sum() == 5 + 2
    assert len(first.input_ids) == 23
    assert (second.token_type_ids == 0).sum() == 10 + 2
    assert len(second.input_ids) == 23


def test_settings_in_the_file_are_reset(tmp_path) -> None:
    checkpoints.write_word_piece(tmp_path)
    backend = pretrained.load_tokenizer(tmp_path, CONFIG).backend
    backend.enable_truncation(5)
    backend.enable_padding(length=40)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").unlink()
    again = pretrained.load_tokenizer(tmp_path, CONFIG)
    assert again.encode(["cat " * 50])["attention_mask"].sum() == 52
    assert (again.backend.truncation, again.backend.padding) == (None, None)


def test_the_real_tokenizer_is_not_cut_at_128_and_agrees_with_transformers() -> None:
    folder = checkpoints.minilm()
    config = BertConfig(hidden_size=384, layers=6, mlp_size=1536)
    tokenizer = pretrained.load_tokenizer(folder, config)
    texts = ["A sentence of Zürich, naïve 漢字 and émigrés — 3.14!", "word " * 300, ""]
    pairs = ["Another one?", "second " * 400, "x"]
    batch = tokenizer.encode(texts, pairs)
    assert batch["attention_mask"].sum(1)[1] == 512
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = other(
        texts, pairs, padding="max_length", max_length=512, truncation="longest_first",
        return_tensors="np",
    )  # fmt: skip
    for name, expected in batch.items():
        np.testing.assert_array_equal(theirs[name], expected)
    # vocab.txt alone says as much as tokenizer.json here.
    from_vocabulary = _only(folder, "vocab.txt", config)
    for name, expected in from_vocabulary.encode(texts, pairs).items():
        np.testing.assert_array_equal(batch[name], expected)


def _only(folder, file, config):
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as other:
        shutil.copy(folder / file, other)
        return pretrained.load_tokenizer(other, config)


def test_bad_texts_are_named(tokenizer) -> None:
    with pytest.raises(ValueError, match="Text 1 is None, of type NoneType"):
        tokenizer.encode(["a", None])
    with pytest.raises(ValueError, match="put it into a list"):
        tokenizer.encode("a text")
    with pytest.raises(ValueError, match="2 texts and 1 second texts"):
        tokenizer.encode(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="no texts"):
        tokenizer.encode([])
    with pytest.raises(ValueError, match="sequence of texts, got None"):
        tokenizer.encode(None)
    with pytest.raises(ValueError, match="sequence of texts, got 3"):
        tokenizer.encode(["a"], 3)
    for length in (0, 2, 101, 8.0, True):
        with pytest.raises(ValueError, match=f"max_length is {length}; expected a whole number"):
            tokenizer.encode(["a"], max_length=length)


def test_texts_may_come_one_by_one(tokenizer) -> None:
    texts, pairs = ["the cat", "a dog sat"], ["on a mat", "the hill"]
    one_by_one = tokenizer.encode(iter(texts), map(str, pairs), max_length=np.int64(16))
    for name, expected in tokenizer.encode(texts, pairs, max_length=16).items():
        np.testing.assert_array_equal(one_by_one[name], expected)
    windows = {"max_length": 32, "stride": 2, "max_question": 8}
    expected = pretrained.encode_windows(tokenizer, texts, pairs, **windows)
    found = pretrained.encode_windows(tokenizer, iter(texts), iter(pairs), **windows)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


@pytest.mark.parametrize("bad", ["who \ud83d sings", "Z\udcfcrich", "\udc00"])
def test_half_a_surrogate_pair_is_no_text(tokenizer, bad) -> None:
    windows = {"max_length": 32, "stride": 2, "max_question": 8}
    for call in (
        lambda: tokenizer.encode(["a", bad]),
        lambda: tokenizer.encode(["a", "cat"], ["cat", bad]),
        lambda: pretrained.encode_windows(tokenizer, ["a", "a"], ["cat", bad], **windows),
        lambda: pretrained.encode_windows(tokenizer, ["a", bad], ["cat", "cat"], **windows),
    ):
        with pytest.raises(ValueError, match=r"Text 1 holds half of a surrogate pair, '\\ud"):
            call()
    tokenizer.encode(["an emoji \U0001f600"], ["\ufffd"])


def test_a_vocabulary_larger_than_the_models_is_an_error(tmp_path) -> None:
    checkpoints.write_word_piece(tmp_path)
    config = dataclasses.replace(CONFIG, vocab_size=CONFIG.vocab_size - 1)
    with pytest.raises(PretrainedError, match="They do not belong together"):
        pretrained.load_tokenizer(tmp_path, config)


def test_a_tokenizer_without_special_tokens_is_an_error(tmp_path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PretrainedError, match="adds no special tokens"):
        pretrained.load_tokenizer(tmp_path, CONFIG)
    with pytest.raises(PretrainedError, match="holds no tokenizer"):
        pretrained.load_tokenizer(tmp_path / "nowhere", CONFIG)


def test_one_token_type_means_all_zero(tmp_path) -> None:
    checkpoints.write_word_piece(tmp_path)
    tokenizer = pretrained.load_tokenizer(tmp_path, dataclasses.replace(CONFIG, token_types=1))
    assert not tokenizer.encode(["a"], ["cat"])["token_type_ids"].any()


def test_threads_do_not_disturb_each_other(tokenizer) -> None:
    lengths = {}

    def work(length):
        lengths[length] = {
            len(tokenizer.tokenize(["cat " * 200], max_length=length)[0].input_ids)
            for _ in range(50)
        }

    threads = [threading.Thread(target=work, args=(n,)) for n in (10, 20, 30, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == {n: {n} for n in (10, 20, 30, 40)}


def test_windows_cover_the_context_and_point_into_it(tokenizer) -> None:
    context = " ".join(checkpoints.WORDS * 6)
    windows = pretrained.encode_windows(
        tokenizer,
        ["The cat?", "a"],
        [context, "two dogs"],
        max_length=40,
        stride=10,
        max_question=8,
    )
    assert windows.example.tolist() == [0] * (len(windows.example) - 1) + [1]
    assert windows.batch["input_ids"].shape == windows.in_context.shape
    assert windows.batch["attention_mask"].sum(1).max() == 40
    covered = np.zeros(len(context), bool)
    ends = []
    for row in np.flatnonzero(windows.example == 0):
        ids = windows.batch["input_ids"][row]
        spans = windows.offsets[row][windows.in_context[row]]
        for token, (start, end) in zip(ids[windows.in_context[row]], spans, strict=True):
            piece = tokenizer.backend.id_to_token(int(token)).removeprefix("##")
            assert context[start:end] == piece
            covered[start:end] = True
        ends.append((spans[0][0], spans[-1][1], len(spans)))
    assert covered[np.array([x != " " for x in context])].all()
    assert ends[1][0] < ends[0][1]  # they overlap
    assert not windows.offsets[~windows.in_context].any()
    assert windows.batch["token_type_ids"][windows.in_context].all()


def test_a_long_question_is_cut_and_leaves_room(tokenizer) -> None:
    windows = pretrained.encode_windows(
        tokenizer,
        ["cat " * 90, "the"],
        ["two dogs ran", ""],
        max_length=40,
        stride=5,
        max_question=12,
    )
    in_question = windows.batch["attention_mask"].sum(1) - 3 - windows.in_context.sum(1)
    assert in_question.tolist() == [12, 1]
    assert windows.in_context.sum(1).tolist() == [3, 0]
    with pytest.raises(ValueError, match=r"leaves 17 tokens of context per window; stride"):
        pretrained.encode_windows(
            tokenizer, ["a"], ["b"], max_length=40, stride=17, max_question=20
        )


def test_byte_level_files(tmp_path) -> None:
    """RoBERTa's vocab.json and merges.txt: pairs have two separators, and one token type."""
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "Ġ", "ab", "Ġa"]
    (tmp_path / "vocab.json").write_text(json.dumps({x: n for n, x in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ a\n", encoding="utf-8")
    config = BertConfig(
        vocab_size=10, hidden_size=8, heads=2, family="roberta", pad_token_id=1, token_types=1
    )
    tokenizer = pretrained.load_tokenizer(tmp_path, config)
    assert tokenizer.max_length == 510
    batch = tokenizer.encode(["ab a"], ["b"], buckets=(10,))
    assert batch["input_ids"].tolist() == [[0, 8, 9, 2, 2, 6, 2, 1, 1, 1]]
    assert not batch["token_type_ids"].any()
    transformers = pytest.importorskip("transformers")
    other = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    assert other(["ab a"], ["b"])["input_ids"] == [[0, 8, 9, 2, 2, 6, 2]]


def test_sentence_piece_files(tmp_path) -> None:
    """ALBERT's spiece.model, against the library that wrote it."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs it to train a model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join([*checkpoints.TEXTS, *checkpoints.PAIRS] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spiece"), vocab_size=34, model_type="unigram",
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="<pad>", unk_piece="<unk>",
        control_symbols="[CLS],[SEP],[MASK]", minloglevel=2,
        normalization_rule_name="nmt_nfkc_cf",
    )  # fmt: skip
    config = AlbertConfig(vocab_size=34, hidden_size=8, heads=2)
    tokenizer = pretrained.load_tokenizer(tmp_path, config)
    reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    for sentence in (*checkpoints.TEXTS, "  Two   spaces, the HILL ", "ﬁne dogs", "cat　mat"):
        ids = tokenizer.tokenize([sentence])[0].input_ids.tolist()
        start, end = (reference.piece_to_id(x) for x in ("[CLS]", "[SEP]"))
        assert ids == [start, *reference.encode(sentence), end], sentence

    (tmp_path / "spiece.model").write_bytes((tmp_path / "spiece.model").read_bytes()[:-7])
    with pytest.raises(PretrainedError, match="no SentencePiece model"):
        pretrained.load_tokenizer(tmp_path, config)
