"""What the files beside a vocabulary say about it, applied as `transformers` applies it.

tokenizer_config.json names the class of the tokenizer and its settings; added_tokens.json and
special_tokens_map.json, from before it had all of them, some of its tokens. A setting that is not
read would give other tokens than the model was trained on, without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align_jax.pretrained.errors import PretrainedError
from align_jax.pretrained.files import read_json

CONFIG, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
_ROBERTA = ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer")
_ALBERT = ("AlbertTokenizer",)
_FAMILIES = {name: family[0] for family in (_BERT, _ROBERTA, _ALBERT) for name in family}
# Classes that take tokenizer.json as it is; no other setting of theirs changes the tokens.
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
# They do more than tokenizer.json can say, in Python of their own.
_PYTHON = ("BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer", "TapasTokenizer")
# Which class a model's is, whose vocabulary a file is, or a kind of model in tokenizer.json, where
# no class is named.
_BY_MODEL = {"bert": _BERT[0], "roberta": _ROBERTA[0], "albert": _ALBERT[0]}
_USUAL = {"vocab.txt": _BERT[0], "vocab.json": _ROBERTA[0], "spiece.model": _ALBERT[0],
          "WordPiece": _BERT[0], "BPE": _ROBERTA[0], "Unigram": _ALBERT[0]}  # fmt: skip
# A vocabulary's classes have two more special tokens than those that it is read with.
_ENDS = {_ROBERTA[0]: ("<s>", "</s>"), _ALBERT[0]: ("[CLS]", "[SEP]")}
_ROLES = tuple(f"{x}_token" for x in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Settings:
    """The settings of a folder's tokenizer; raises where a file names a class that is unknown."""

    def __init__(self, folder: Path, file: str) -> None:
        self.path = folder / CONFIG
        self._values = _read(self.path)
        # As transformers has it, which writes all into one file today.
        newer = "added_tokens_decoder" in self._values
        self._older = {} if newer else _read(folder / SPECIAL)
        self._added = None if newer else _read(folder / ADDED)
        model = _read(folder / "config.json")
        names = [values.get("tokenizer_class") for values in (self._values, model)]
        name = next((x for x in names if x is not None), None)
        # The class that transformers takes for the model where no file names one.
        self.by_model = _BY_MODEL.get(str(model.get("model_type"))) if name is None else None
        self.file, self._ends = file, _ENDS.get(_USUAL.get(file, ""), ())
        # The class whose settings count, "" for that of the kind of model; whether a file names it,
        # so that its defaults count too.
        self.family, self.named = self._class(name, folder, file)

    def _class(self, kind: Any, folder: Path, file: str) -> tuple[str, bool]:
        if kind is not None and not isinstance(kind, str):
            raise self.wrong("tokenizer_class", kind, "the name of a class")
        name = (kind or "").removesuffix("Fast")
        code = self._values.get("auto_map")
        if name in _PYTHON or (isinstance(code, Mapping) and "AutoTokenizer" in code):
            raise PretrainedError(
                f"{folder} has a tokenizer of class {kind!r}, which is Python code of its own and "
                "not supported. Choose a checkpoint with a tokenizer of BERT, RoBERTa or ALBERT."
            )
        usual = _USUAL.get(file)
        if usual and name not in ("", *_GENERIC) and _FAMILIES.get(name) != usual:
            raise PretrainedError(
                f"{folder} holds {file}, and says tokenizer_class = {kind!r}; such a file is read "
                f"as a {usual}'s. Save the tokenizer as tokenizer.json, with "
                "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(new_folder)."
            )
        return usual or _FAMILIES.get(name, name), name in _FAMILIES

    def wrong(self, name: str, value: Any, expected: str) -> PretrainedError:
        """The error about a value."""
        return PretrainedError(f"{self.path} says {name} = {value!r:.80}; expected {expected}.")

    def flag(self, name: str, default: bool | None) -> Any:
        """A setting that is true or false, or None where that is the default."""
        value = self._values.get(name, default)
        if not isinstance(value, bool) and not (value is None and default is None):
            raise self.wrong(name, value, "true or false")
        return value

    def says(self, name: str) -> bool:
        """Whether a file states the setting."""
        return self._values.get(name) is not None

    def side(self, name: str, default: str) -> str:
        """Of "truncation_side", say: "left" or "right"."""
        value = self._values.get(name) or default
        if value not in ("left", "right"):
            raise self.wrong(name, value, "left or right")
        return str(value)

    def length(self) -> int | None:
        """What texts are cut to; None where nothing is said. "No limit" is a very large number."""
        value = self._values.get("model_max_length")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise self.wrong("model_max_length", value, "a number of tokens")
        return int(min(value, 2**31))

    def special(self, name: str, default: str) -> str:
        """A special token such as "cls_token"; the default, which may be "", where none is said."""
        value = _content(self._older.get(name) or self._values.get(name) or default)
        if not isinstance(value, str):
            raise self.wrong(name, value, "a token")
        return value

    def _special_tokens(self) -> Iterator[Any]:
        """Those that have a role, which are found in a text like all added tokens."""
        defaults = dict(zip(_ROLES, self._ends, strict=False))
        for name in _ROLES:
            if content := self.special(name, defaults.get(name, "")):
                said = self._older.get(name) or self._values.get(name)
                yield {**said, "special": True} if isinstance(said, Mapping) else content

    def added_tokens(self) -> Iterator[tuple[int | None, Any]]:
        """The tokens beside the vocabulary in order, each with its number if it has one."""
        further = list(self._special_tokens())
        for values in (self._values, self._older):
            for name in ("additional_special_tokens", "extra_special_tokens"):
                found = values.get(name)
                found = list(found.values()) if isinstance(found, Mapping) else found
                further += found if isinstance(found, list) else []
        if self._added is None:
            numbered = self._values["added_tokens_decoder"]
            if not isinstance(numbered, Mapping):
                raise self.wrong("added_tokens_decoder", numbered, "an object of tokens by number")
            entries = [(self._number(number), token) for number, token in numbered.items()]
        else:
            known = [_content(token) for token in further]
            entries = [
                (self._number(number), {"content": content, "special": content in known})
                for content, number in self._added.items()
            ]
        for number, token in sorted(entries, key=lambda entry: entry[0]):
            yield number, self._token(token)
        for token in further:
            named = {"content": token, "special": True} if isinstance(token, str) else token
            yield None, self._token(named)

    def _number(self, value: Any) -> int:
        text = str(value)
        if len(text) > 9 or not text.isdecimal():
            raise self.wrong("the number of an added token", value, "a whole number")
        return int(text)

    def _token(self, token: Any) -> Any:
        from tokenizers import AddedToken

        if not isinstance(token, Mapping) or not isinstance(_content(token), str):
            raise self.wrong("an added token", token, "an object with its content")
        flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip")}
        special = bool(token.get("special"))
        normalized = bool(token.get("normalized", not special))
        return AddedToken(token["content"], special=special, normalized=normalized, **flags)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def add_tokens(backend: Any, settings: Settings) -> None:
    """Adds the tokens that stand beside a vocabulary, under the numbers that they have there."""
    decoder = backend.get_added_tokens_decoder() if settings.file == "tokenizer.json" else {}
    known = {token.content for token in decoder.values()}
    for number, token in settings.added_tokens():
        if number is None and token.content in known:
            continue  # tokenizer.json says more about it
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        found = backend.token_to_id(token.content)
        if number is not None and found != number:
            raise PretrainedError(
                f"{settings.path.parent}: the added token {token.content!r} should be number "
                f"{number}, but with this vocabulary it is {found}. The files do not belong "
                "together: get them anew."
            )


def check_roles(backend: Any, settings: Settings) -> None:
    """Refuses a tokenizer.json that puts other tokens around a text than are named beside it.

    `transformers` 5 makes such a tokenizer anew of its vocabulary; version 4 leaves it as it is.
    """
    if not settings.named:
        return
    empty = backend.encode("")  # which the file may pad
    around = [x for x, real in zip(empty.tokens, empty.attention_mask, strict=True) if real] or [""]
    there = {
        "cls_token": around[0],
        "sep_token": around[-1],
        "unk_token": getattr(backend.model, "unk_token", ""),
    }
    for name, found in there.items():
        said = settings.special(name, "")
        if said and found and said != found:
            raise PretrainedError(
                f"{settings.path.parent}: the files beside tokenizer.json say {name} = {said!r}, "
                f"and tokenizer.json has {found!r} in its place. Set {name} to that if the model "
                "was trained with tokenizer.json, or get all of them anew."
            )


def agreeing_json(text: str, settings: Settings) -> str:
    """The text of a tokenizer.json, changed where it differs from the settings beside it.

    Raises:
        PretrainedError: it differs in something that they cannot change.
    """
    content = json.loads(text)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, Mapping):
        return text  # its reader says what is wrong
    usual = _USUAL.get(str(model.get("type")), "")
    if not settings.family and usual == settings.by_model:
        settings.family, settings.named = usual, True
    family = settings.family or usual
    change = {_BERT[0]: _as_bert, _ROBERTA[0]: _as_roberta, _ALBERT[0]: _as_albert}.get(family)
    if change:
        change(content, settings)
    return text if content == json.loads(text) else json.dumps(content)


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normaliser, a pre-tokenizer or a post-processor, out of their sequences."""
    if not isinstance(part, dict):
        return []
    parts = [part.get(name) for name in ("normalizers", "pretokenizers", "processors")]
    inner = [step for steps in parts if isinstance(steps, list) for step in steps]
    return [part] + [found for step in inner for found in _steps(step)]


def _as_bert(content: dict[str, Any], settings: Settings) -> None:
    said = {
        "do_lower_case": ("lowercase", True),
        "strip_accents": ("strip_accents", None),
        "tokenize_chinese_chars": ("handle_chinese_chars", True),
    }
    steps = [x for x in _steps(content.get("normalizer")) if x.get("type") == "BertNormalizer"]
    if not steps:
        _require(content, settings, "do_lower_case", "Lowercase")
        _require(content, settings, "strip_accents", "StripAccents")
    for name, (own, default) in said.items():
        value = settings.flag(name, default)
        for step in steps if settings.named or settings.says(name) else ():
            step[own] = value


def _as_roberta(content: dict[str, Any], settings: Settings) -> None:
    prefix = settings.flag("add_prefix_space", False)
    whole = content.get("pre_tokenizer")
    steps = [step for step in _steps(whole) if step.get("type") == "ByteLevel"]
    differing = [step for step in steps if step.get("add_prefix_space") != prefix]
    alone = steps == [whole]
    if not differing or not (settings.says("add_prefix_space") or (settings.named and alone)):
        return
    if not alone:
        raise _disagreement(settings, "add_prefix_space", prefix, "its pre_tokenizer differs")
    for step in (*steps, *_steps(content.get("post_processor"))):
        if "add_prefix_space" in step:
            step["add_prefix_space"] = prefix


def _as_albert(content: dict[str, Any], settings: Settings) -> None:
    _require(content, settings, "do_lower_case", "Lowercase")
    _require(content, settings, "keep_accents", "StripAccents", negated=True)
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    for step in _steps(content.get("pre_tokenizer")):
        if step.get("type") == "Metaspace" and settings.says("add_prefix_space"):
            step["prepend_scheme"] = scheme


def _require(
    content: dict[str, Any], settings: Settings, name: str, step: str, *, negated: bool = False
) -> None:
    """Refuses a setting that says something else than a step of the normaliser does."""
    said = settings.flag(name, None)
    there = step in [x.get("type") for x in _steps(content.get("normalizer"))]
    if said is not None and there == (said == negated):
        raise _disagreement(settings, name, said, f"it {'has' if there else 'lacks'} {step}")


def _disagreement(settings: Settings, name: str, said: bool, found: str) -> PretrainedError:
    return PretrainedError(
        f"{settings.path} says {name} = {said}, and tokenizer.json something else ({found}). Set "
        f"{name} to {not said} if the model was trained with tokenizer.json, or get both anew."
    )
