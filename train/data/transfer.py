"""From one domain to others: trained on one corpus, evaluated on others of the same task.

The pairs of corpora are those of the paper's Table 2, and sentiment beside them. The sets that are
evaluated are cut into halves: one to develop and to calibrate on, the other to report.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from align_jax.pretrained.tokenizer import Tokens
from train.data.base import check_least, data_folder, kept
from train.data.labelled import Examples, LabelledTexts, checked_examples
from train.data.prepared import prepared_builder, prepared_examples, prepared_text
from train.data.transfer_files import READERS, read_labelled
from train.registry import ConfigError, check_known

SOURCES = ("tfds", "files")
_GLUE = "tensorflow_datasets.text.glue"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A set of labelled texts, in local files or tensorflow-datasets."""

    name: str  # of its local files, and of the splits made of it
    builder: str = ""  # what tensorflow-datasets calls it; "" where it does not have it
    module: str = ""  # that defines it there
    dev: str = "validation"  # its split there that is evaluated
    fields: tuple[str, ...] = ()  # what its texts are called there, if not as in the local files


@dataclasses.dataclass(frozen=True)
class Domains:
    """A task with the corpora that it is learnt and tried on."""

    fields: tuple[str, ...]  # the names of an example's texts
    labels: tuple[str, ...]  # the names of its classes in order
    source: Corpus  # what is trained on
    targets: tuple[Corpus, ...]  # what is evaluated besides
    choices: int = 1  # of how many texts one is chosen; they are the last fields


_ENDINGS = ("ending0", "ending1", "ending2", "ending3")
DOMAINS = {
    "nli": Domains(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        Corpus("snli", "snli", "tensorflow_datasets.datasets.snli.snli_dataset_builder"),
        (Corpus("mnli", "glue/mnli", _GLUE, "validation_matched"),),
    ),
    "paraphrase": Domains(
        ("sentence1", "sentence2"),
        ("no_paraphrase", "paraphrase"),
        Corpus("qqp", "glue/qqp", _GLUE, fields=("question1", "question2")),
        (Corpus("twitterppdb"),),
    ),
    "commonsense": Domains(
        ("context", *_ENDINGS),
        _ENDINGS,
        Corpus("swag"),
        (Corpus("hellaswag", "hellaswag", "tensorflow_datasets.text.hellaswag"),),
        choices=4,
    ),
    "sentiment": Domains(
        ("sentence",),
        ("negative", "positive"),
        Corpus("sst2", "glue/sst2", _GLUE),
        (Corpus("books"), Corpus("dvd"), Corpus("airline")),
    ),
}


@dataclasses.dataclass(frozen=True)
class Transfer(LabelledTexts):
    """A training corpus, and development sets of its own and of other domains cut into halves.

    The splits are "train"; "validation" and "test", the halves of the training corpus' development
    set; and for each other corpus, such as "mnli", its second half under its name and its first
    half as "mnli_validation". Batches and other settings are those of `LabelledTexts`.

    Attributes:
        domains: one of `DOMAINS`.
        source: "tfds" reads from tensorflow-datasets what it has, and the rest from local files;
            "files" reads all from these.
        files: the folder of the local files: snli-train, snli-validation (the training corpus),
            mnli (another one), each with an ending of `transfer_files`. "" means
            $ALIGN_JAX_DATA/{domains} or, without that variable, the current folder.
        half_seed: of the cut into halves.

    Example:
        >>> Transfer("sentiment").splits[:4]
        ('train', 'validation', 'test', 'books')
    """

    domains: str = "sentiment"
    source: str = "tfds"
    files: str = ""
    half_seed: int = 0

    def __post_init__(self) -> None:
        check_known("data.domains is", self.domains, DOMAINS)
        check_known("data.source is", self.source, SOURCES)
        check_least(self, {"half_seed": 0})
        super().__post_init__()

    @functools.cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return ("train", *self._halves)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an example's texts."""
        return DOMAINS[self.domains].fields

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in order."""
        return DOMAINS[self.domains].labels

    @property
    def choices(self) -> int:
        """Texts that an example is a choice between; 1 where it is no such choice."""
        return DOMAINS[self.domains].choices

    def read(self, split: str) -> Examples:
        """The examples of a split, in order; their ids are their places in the corpus."""
        self.check_split(split)
        if split == "train":
            whole = self._corpus(DOMAINS[self.domains].source, "train")
            return whole.take(self.subset_rows(len(whole)))
        corpus, half = self._halves[split]
        whole = self._corpus(corpus, "validation")
        order = np.random.default_rng(self.half_seed).permutation(len(whole))
        return whole.take(np.sort(np.array_split(order, 2)[half]))

    def tokenize(self, columns: Sequence[Sequence[str]]) -> list[Tokens]:
        """One entry for each example; of a choice, one for each ending, paired with the context."""
        if self.choices == 1:
            return super().tokenize(columns)
        contexts = [context for context in columns[0] for _ in range(self.choices)]
        endings = [ending for row in zip(*columns[1:], strict=True) for ending in row]
        return self._tokens(contexts, endings)

    @functools.cached_property
    def _halves(self) -> dict[str, tuple[Corpus, int]]:
        """Evaluated split -> its corpus, and which half of it."""
        domains = DOMAINS[self.domains]
        halves = {"validation": (domains.source, 0), "test": (domains.source, 1)}
        for corpus in domains.targets:
            halves |= {corpus.name: (corpus, 1), f"{corpus.name}_validation": (corpus, 0)}
        return halves

    @kept
    def _corpus(self, corpus: Corpus, split: str) -> Examples:
        """A corpus' examples that have a label; SNLI has some on which people did not agree."""
        prepared = self.source == "tfds" and corpus.builder
        columns, labels, where = (self._prepared if prepared else self._local)(corpus, split)
        examples = Examples(columns, np.array(labels), np.arange(len(labels)))
        labelled = np.flatnonzero(examples.labels != -1)
        if labelled.size:
            examples = examples.take(labelled)
        return checked_examples(
            examples.columns, examples.labels, examples.ids, len(self.label_names), where
        )

    def _prepared(self, corpus: Corpus, split: str) -> tuple[list[list[str]], list[int], str]:
        split = corpus.dev if split == "validation" else split
        builder = prepared_builder(corpus.builder, corpus.module, self.folder)
        examples = prepared_examples(builder, split)
        labels = [int(example["label"]) for example in examples]
        where = f"{corpus.builder}, split {split!r}"
        if self.choices > 1:  # HellaSWAG
            endings = zip(*(example["endings"] for example in examples), strict=True)
            texts = [[example["context"] for example in examples], *endings]
        else:
            texts = [[x[field] for x in examples] for field in corpus.fields or self.fields]
        columns = [
            [prepared_text(text, where, row) for row, text in enumerate(column)] for column in texts
        ]
        return columns, labels, where

    def _local(self, corpus: Corpus, split: str) -> tuple[list[list[str]], list[int], str]:
        folder = data_folder(self.files, self.domains, "")
        domains = DOMAINS[self.domains]
        name = f"{corpus.name}-{split}" if corpus == domains.source else corpus.name
        found = [path for end in READERS if (path := folder / f"{name}{end}").is_file()]
        if not found:
            raise ConfigError(
                f"{corpus.name}: there is no {folder / name}.jsonl. Put it there (a line is an "
                f"object with {', '.join(domains.fields)} and label; train/data/transfer_files.py "
                f"says more), or set data.files to the folder that holds it."
            )
        return *read_labelled(found[0], domains.fields, domains.labels), str(found[0])
