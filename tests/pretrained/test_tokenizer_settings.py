"""Settings and tokens beside a vocabulary: what `transformers` makes of the same folder."""

import json

import numpy as np
import pytest

from align_jax import pretrained
from align_jax.models.bert import BertConfig
from align_jax.pretrained import PretrainedError

tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "café", "Cafe", "Café", "東京", "東",
    "京", "##京", "<", ">", "e1", "sings", "[BOS]", "[EOS]", "[OOV]",
]  # fmt: skip
LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BYTES = {token: number for number, token in enumerate([*SPECIAL, *LETTERS])}
BERT = {"vocab.txt": "\n".join(WORDS)}
ROBERTA = {"vocab.json": BYTES, "merges.txt": "#version: 0.2\n"}
TEXTS = [
    "Café <e1> sings 東京", "cafe<e1>  Café", "sings [BOS] Cafe", "[CLS] cafe <s>a</s>",
    "hi <mask> there", "",
]  # fmt: skip
N, R = len(WORDS), len(BYTES)


def token(content, **flags):
    usual = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    return {"content": content, **usual, **flags}


def config_of(files):
    """The model's configuration, with room for four tokens more than the vocabulary has."""
    if "vocab.json" in files:
        return BertConfig(vocab_size=R + 4, family="roberta", pad_token_id=1, token_types=1)
    return BertConfig(vocab_size=N + 4)


def write(folder, files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")


def settings(**values):
    return {"tokenizer_config.json": values}


BERT_SETTINGS = [
    {}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True}, {"tokenize_chinese_chars": False},
]  # fmt: skip
ADDED = {
    "added_tokens.json": {"added_tokens.json": {"<e1>": N}},
    "several, out of order": {"added_tokens.json": {"<e2>": N + 1, "<e1>": N}},
    "decoder": settings(added_tokens_decoder={str(N): token("<e1>")}),
    "normalised": settings(added_tokens_decoder={str(N): token("Hi", normalized=True)}),
    "strips": settings(added_tokens_decoder={str(N): token("<e1>", lstrip=True, rstrip=True)}),
    "whole words": settings(added_tokens_decoder={str(N): token("<e1>", single_word=True)}),
    "special": settings(added_tokens_decoder={str(N): token("<e1>", special=True)}),
    "decoder before the old file": {
        **settings(added_tokens_decoder={str(N): token("<e1>")}),
        "added_tokens.json": {"<e2>": N},
    },
    "additional": settings(additional_special_tokens=["<e1>"]),
    "additional in the map": {"special_tokens_map.json": {"additional_special_tokens": ["<e1>"]}},
    "additional with names": settings(extra_special_tokens={"image_token": "<e1>"}),
    "ends with names": settings(bos_token="[BOS]", eos_token="<e1>"),
    "found in no text": settings(split_special_tokens=True),
    "truncated on the left": settings(truncation_side="left"),
    "in the vocabulary": settings(added_tokens_decoder={str(WORDS.index("Café")): token("Café")}),
    "other names": settings(cls_token="[BOS]", sep_token="[EOS]", unk_token="[OOV]"),
    "other names in the map": {
        "special_tokens_map.json": {"cls_token": token("[BOS]"), "sep_token": "[EOS]"}
    },
}
SAME = {
    **{f"vocab.txt {x}": (BERT, settings(**x)) for x in BERT_SETTINGS},
    **{f"vocab.txt, {name}": (BERT, x) for name, x in ADDED.items()},
    "vocab.json": (ROBERTA, {}),
    "vocab.json, prefix": (ROBERTA, settings(add_prefix_space=True)),
    "vocab.json, added": (ROBERTA, {"added_tokens.json": {"<e1>": R}}),
    "vocab.json, decoder": (ROBERTA, settings(added_tokens_decoder={str(R): token("<e1>")})),
    "vocab.json, mask strips": (
        ROBERTA,
        settings(added_tokens_decoder={"4": token("<mask>", lstrip=True, special=True)}),
    ),
    "vocab.json, mask strips by the map": (
        ROBERTA,
        {"special_tokens_map.json": {"mask_token": token("<mask>", lstrip=True)}},
    ),
    "vocab.json, another end": (ROBERTA, settings(sep_token="<pad>")),
    "tokenizer.json that truncates on the left": ({"tokenizer.json": BERT}, {}),
    "cased tokenizer.json, of the model's class": (
        {"tokenizer.json": {**BERT, **settings(do_lower_case=False)}},
        {},
    ),
    "tokenizer.json with a prefix, of the model's class": (
        {"tokenizer.json": {**ROBERTA, **settings(add_prefix_space=True)}},
        {},
    ),
    "tokenizer.json, ends with names": (
        {"tokenizer.json": BERT},
        settings(bos_token="[BOS]", tokenizer_class="PreTrainedTokenizerFast"),
    ),
    **{
        f"tokenizer.json {x}": (
            {"tokenizer.json": BERT},
            settings(tokenizer_class="BertTokenizer", **x),
        )
        for x in BERT_SETTINGS
    },
    "cased tokenizer.json": (
        {"tokenizer.json": {**BERT, **settings(do_lower_case=False)}},
        settings(tokenizer_class="BertTokenizer"),
    ),
    "cased tokenizer.json of no class": (
        {"tokenizer.json": {**BERT, **settings(do_lower_case=False)}},
        settings(tokenizer_class="PreTrainedTokenizerFast", do_lower_case=True),
    ),
    "tokenizer.json, prefix": (
        {"tokenizer.json": ROBERTA},
        settings(tokenizer_class="RobertaTokenizer", add_prefix_space=True),
    ),
    "tokenizer.json, prefix by default": (
        {"tokenizer.json": {**ROBERTA, **settings(add_prefix_space=True)}},
        settings(tokenizer_class="RobertaTokenizerFast"),
    ),
    "tokenizer.json, decoder": (
        {"tokenizer.json": BERT},
        settings(tokenizer_class="BertTokenizer", added_tokens_decoder={str(N): token("<e1>")}),
    ),
    "tokenizer.json of no class, decoder": (
        {"tokenizer.json": BERT},
        settings(
            tokenizer_class="PreTrainedTokenizerFast",
            added_tokens_decoder={str(N): token("<e1>", special=True)},
        ),
    ),
}


def made(folder, files, further):
    """The folder with its files; a tokenizer.json is that of other files."""
    inner = files.get("tokenizer.json")
    config = config_of(files if inner is None else inner)
    if inner is not None:
        write(folder, inner)
        files = {"tokenizer.json": pretrained.load_tokenizer(folder, config).backend.to_str()}
        for name in inner:
            (folder / name).unlink()
    write(folder, {**files, **further})
    return config


@pytest.mark.parametrize("case", SAME)
def test_tokens_are_those_of_transformers(case, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = made(tmp_path, *SAME[case])
    sizes = {"vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    write(tmp_path, {"config.json": {"model_type": config.family, **sizes}})
    if case == "tokenizer.json that truncates on the left":
        backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        backend.enable_truncation(9, direction="left")
        write(tmp_path, {"tokenizer.json": backend.to_str()})
    ours = pretrained.load_tokenizer(tmp_path, config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for length in (64, 7):
        for first, second in ((TEXTS, None), (TEXTS[:1], TEXTS[1:2])):
            found = [x.input_ids.tolist() for x in ours.tokenize(first, second, max_length=length)]
            assert found == theirs(first, second, truncation=True, max_length=length)["input_ids"]
    again = tmp_path / "again"
    again.mkdir()
    ours.save(again)  # which keeps all of it
    loaded = pretrained.load_tokenizer(again, config)
    for length in (64, 7):
        pairs = zip(*(x.tokenize(TEXTS, max_length=length) for x in (loaded, ours)), strict=True)
        assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in pairs)


def unigram(*steps):
    """ALBERT's kind of tokenizer.json, whose normaliser has these steps."""
    pieces = [(x, -1.0) for x in ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁", *"abcABC")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=1))
    backend.normalizer = tokenizers.normalizers.Sequence(list(steps))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return {"tokenizer.json": backend.to_str()}


def test_a_unigram_models_settings_hold(tmp_path) -> None:
    write(tmp_path, unigram(tokenizers.normalizers.Lowercase()))
    right = {"do_lower_case": True, "keep_accents": True, "tokenizer_class": "AlbertTokenizer"}
    for prefix, tokens in ((True, ["▁", "a", "b"]), (False, ["a", "b"])):
        write(tmp_path, settings(**right, add_prefix_space=prefix))
        backend = pretrained.load_tokenizer(tmp_path, BertConfig(vocab_size=12)).backend
        assert backend.encode("aB", add_special_tokens=False).tokens == tokens


def in_sequence():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(BYTES, []))
    pre = tokenizers.pre_tokenizers
    backend.pre_tokenizer = pre.Sequence([pre.Whitespace(), pre.ByteLevel(add_prefix_space=True)])
    return {"tokenizer.json": backend.to_str()}


REFUSED = {
    "in Python": (BERT, settings(tokenizer_class="BertJapaneseTokenizer"), "class 'BertJapanese"),
    "in Python, by the model": (
        BERT,
        {"config.json": {"tokenizer_class": "BertweetTokenizer"}},
        "class 'Bertweet",
    ),
    "in Python, beside tokenizer.json": (
        {"tokenizer.json": BERT},
        settings(tokenizer_class="PhobertTokenizer"),
        "class 'Phobert",
    ),
    "code of its own": (
        BERT,
        settings(auto_map={"AutoTokenizer": ["x.Y", None]}),
        "Python code of its own",
    ),
    "another class": (
        BERT,
        settings(tokenizer_class="RobertaTokenizer"),
        "holds vocab.txt, and says tokenizer_class = 'RobertaTokenizer'",
    ),
    "a class that is a number": (BERT, settings(tokenizer_class=3), "tokenizer_class = 3"),
    "lower case is text": (BERT, settings(do_lower_case="no"), "do_lower_case = 'no'; expected"),
    "a special token is a list": (BERT, settings(cls_token=["x"]), r"cls_token = \['x'\]"),
    "a special token that is not there": (BERT, settings(cls_token="[C]"), r"lacks \[C\]"),
    "a gap": (BERT, {"added_tokens.json": {"<e1>": N + 2}}, f"'<e1>' should be number {N + 2}"),
    "another's number": (BERT, {"added_tokens.json": {"<e1>": 5}}, "'<e1>' should be number 5"),
    "a number that is none": (BERT, {"added_tokens.json": {"<e1>": "x"}}, "an added token = 'x'"),
    "a number of 5,000 digits": (
        BERT,
        settings(added_tokens_decoder={"9" * 5000: token("<e1>")}),
        "number of an added token",
    ),
    "a token without content": (
        BERT,
        settings(added_tokens_decoder={str(N): {"special": True}}),
        "expected an object with its content",
    ),
    "tokens in a list": (BERT, settings(added_tokens_decoder=[1]), "an object of tokens by number"),
    "padding on the left": (BERT, settings(padding_side="left"), "says padding_side = 'left'"),
    "a side that is none": (BERT, settings(truncation_side="top"), "truncation_side = 'top'; exp"),
    "another start than tokenizer.json's": (
        {"tokenizer.json": BERT},
        settings(cls_token="[BOS]", tokenizer_class="BertTokenizer"),
        r"say cls_token = '\[BOS\]', and tokenizer.json has '\[CLS\]'",
    ),
    "another end, by the map": (
        {"tokenizer.json": ROBERTA},
        {
            **settings(tokenizer_class="RobertaTokenizer"),
            "special_tokens_map.json": {"sep_token": token("<pad>")},
        },
        "say sep_token = '<pad>', and tokenizer.json has '</s>'",
    ),
    "another unknown token": (
        {"tokenizer.json": BERT},
        settings(unk_token="[OOV]", tokenizer_class="BertTokenizer"),
        r"say unk_token = '\[OOV\]', and tokenizer.json has '\[UNK\]'",
    ),
    "more than the model has": (
        BERT,
        settings(additional_special_tokens=["<1>", "<2>", "<3>", "<4>", "<5>"]),
        "They do not belong together",
    ),
    "a normaliser that cannot keep case": (
        unigram(tokenizers.normalizers.Lowercase()),
        settings(tokenizer_class="AlbertTokenizer", do_lower_case=False),
        "says do_lower_case = False, and tokenizer.json something else .it has Lowercase",
    ),
    "a normaliser that cannot strip accents": (
        unigram(tokenizers.normalizers.Lowercase()),
        settings(tokenizer_class="AlbertTokenizer", keep_accents=False),
        "says keep_accents = False, .* lacks StripAccents",
    ),
    "a pre-tokenizer of several steps": (
        in_sequence(),
        settings(tokenizer_class="RobertaTokenizer", add_prefix_space=False),
        "says add_prefix_space = False, .*pre_tokenizer differs",
    ),
}


@pytest.mark.fault(
    "Settings or tokens beside a vocabulary that cannot hold, or a tokenizer of another class",
    "Refused, with the name of the setting or token",
)
@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_hold_are_named(case, tmp_path) -> None:
    files, further, message = REFUSED[case]
    if isinstance(files.get("tokenizer.json"), str):
        write(tmp_path, {**files, **further})
        config = BertConfig(vocab_size=R + 4)
    else:
        config = made(tmp_path, files, further)
    with pytest.raises(PretrainedError, match=message):
        pretrained.load_tokenizer(tmp_path, config)
