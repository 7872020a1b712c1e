"""Word vectors: GloVe (Pennington et al., EMNLP 2014), nlp.stanford.edu/projects/glove."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.registry import ConfigError


def read_glove(path: Path, words: Sequence[str], width: int = 300) -> np.ndarray:
    """Vectors of V words, float32 [V, width], from a text file of lines "word v1 ... v300".

    Words are looked up as they are spelt. A word that the file lacks has a vector of zeros; of a
    word that it has twice, the first vector counts.
    """
    rows = {word: row for row, word in enumerate(words)}
    vectors, missing = np.zeros((len(words), width), np.float32), set(rows)
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                if line.count(" ") < width:
                    raise ConfigError(f"{where} should be a word and {width} numbers.")
                # Some of the published words have spaces in them, so numbers count from the end.
                if line.partition(" ")[0] not in missing:
                    continue
                word, *numbers = line.rstrip().rsplit(" ", width)
                if word not in missing:
                    continue
                try:
                    vector = np.array([float(number) for number in numbers], np.float32)
                except ValueError:
                    vector = np.empty(0, np.float32)
                if len(vector) != width or not np.isfinite(vector).all():
                    raise ConfigError(f"{where} should be a word and {width} finite numbers.")
                vectors[rows[word]] = vector
                missing.remove(word)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}). Set data.glove to a text file of word vectors, such "
            "as glove.840B.300d.txt from https://nlp.stanford.edu/projects/glove."
        ) from error
    if len(missing) == len(rows):
        raise ConfigError(
            f"{path} has none of the {len(rows)} words, with {width} numbers each. Is it a file of "
            f"word vectors of that width?"
        )
    return vectors
