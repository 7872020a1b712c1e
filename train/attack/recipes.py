"""TextAttack's recipes (Morris et al., 2020, arXiv 2005.05909) on a run's model."""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from train.attack.records import FAILED, SKIPPED, SUCCESSFUL, Target
from train.attack.resources import (
    WORDNET,
    import_textattack,
    require_nltk,
    require_sentence_encoder,
)
from train.attack.victim import Victim
from train.registry import ConfigError

# Name -> TextAttack's class, and what the recipe changes.
RECIPES = {
    "textfooler": "TextFoolerJin2019",  # words, for neighbours in counter-fitted vectors
    "textbugger": "TextBuggerLi2018",  # characters and words
    "bae": "BAEGarg2019",  # words, for what BERT fills in
    "deepwordbug": "DeepWordBugGao2018",  # characters
    "pwws": "PWWSRen2019",  # words, for WordNet's synonyms
    "pruthi": "Pruthi2019",  # the characters of one word, as typing errors
}
_TAGGER = ("taggers/averaged_perceptron_tagger_eng", "taggers/universal_tagset")
NLTK_DATA = {"pwws": (WORDNET,), "textfooler": _TAGGER, "bae": _TAGGER}
ENCODED = ("textfooler", "textbugger", "bae")  # these compare sentences by an encoder


def make_attack(recipe: str, victim: Victim, seed: int) -> Callable[[Target], dict[str, Any]]:
    """What attacks one example, by one of `RECIPES`.

    The seed is that of the characters that recipes draw; with it, an example's outcome depends on
    the example alone, so that attacks can be resumed.

    Returns:
        A function from an example to a record (see `record`), with the "seconds" it took.

    Raises:
        ConfigError: TextAttack or what the recipe needs is missing; says what to do.
    """
    textattack = import_textattack()
    if recipe in ENCODED:
        require_sentence_encoder(recipe)
    for path in NLTK_DATA.get(recipe, ()):
        require_nltk(path)

    class Wrapper(textattack.models.wrappers.ModelWrapper):
        model = victim.state.model

        def __call__(self, texts: list[Any]) -> np.ndarray:
            return victim(texts)

    try:
        attack = getattr(textattack.attack_recipes, RECIPES[recipe]).build(Wrapper())
    except Exception as error:  # downloads fail in as many ways as there are libraries
        raise ConfigError(
            f"--recipe={recipe} could not be made ({type(error).__name__}: {error}). It downloads "
            f"what it needs when it is first used; run it where there is a network, or take "
            f"deepwordbug, pwws or pruthi, which download nothing."
        ) from error
    attack.goal_function.batch_size = victim.batch_size

    def attacked(target: Target) -> dict[str, Any]:
        started = time.perf_counter()
        _seed_all(seed, target.row)
        texts = collections.OrderedDict(zip(victim.data.fields, target.texts, strict=True))
        result = attack.attack(texts, target.label)
        seconds = time.perf_counter() - started
        return record(result, victim.data.fields, textattack) | {"seconds": round(seconds, 3)}

    return attacked


def record(result: Any, fields: tuple[str, ...], textattack: Any) -> dict[str, Any]:
    """What is kept of TextAttack's result; of a failed attack, the best that it found."""
    results = textattack.attack_results
    outcomes = {results.SkippedAttackResult: SKIPPED, results.FailedAttackResult: FAILED}
    outcome = next((x for kind, x in outcomes.items() if isinstance(result, kind)), SUCCESSFUL)
    before, after = result.original_result, result.perturbed_result

    def texts(of: Any) -> dict[str, str]:
        found = of.attacked_text.tokenizer_input
        return dict(zip(fields, (found,) if isinstance(found, str) else found, strict=True))

    return {
        "outcome": outcome,
        "original": texts(before),
        "perturbed": texts(after),
        "probabilities": np.asarray(before.raw_output).tolist(),
        "perturbed_probabilities": np.asarray(after.raw_output).tolist(),
        "queries": int(result.num_queries),
    }


def _seed_all(seed: int, row: int) -> None:
    import torch

    mixed = int(np.random.SeedSequence((seed, row)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
