"""The numbers of the paper, to stand beside what runs measure.

Source: "Alignment Attention by Matching Key and Query Distributions" (Zhang, Fan, Zheng, Tanwisuth,
Zhou; NeurIPS 2021; arXiv 2110.12567). Means over 5 seeds, in percent unless a table says
otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

ALBERT = "ALBERT-base-v2"
METHODS = ("none", "gan", "ot", "ct")
WITHOUT_OT = ("none", "gan", "ct")
SMALL = "-minilm"  # ends the name of an experiment with another model than the paper's


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """One metric of one data set in the paper, by method in percent."""

    table: str  # where it stands
    setting: str  # data set and model
    metric: str  # as a run reports it: "METRIC" of the last of `eval.final`, or "SPLIT/METRIC"
    values: Mapping[str, float]
    spreads: Mapping[str, float]  # standard deviations, where it gives them
    note: str  # what to know about it


# Experiment -> (data set, metric, and what METHODS reach).
_GLUE = {
    "glue-mrpc": ("MRPC", "accuracy", (86.5, 87.5, 87.9, 88.6)),
    "glue-cola": ("CoLA", "matthews", (54.5, 55.7, 54.6, 55.9)),
    "glue-rte": ("RTE", "accuracy", (75.8, 77.3, 77.0, 77.2)),
    "glue-mnli": ("MNLI", "validation_matched/accuracy", (85.1, 85.8, 85.7, 85.9)),
    "glue-qnli": ("QNLI", "accuracy", (90.9, 91.3, 91.2, 91.3)),
    "glue-qqp": ("QQP", "accuracy", (90.8, 91.4, 91.3, 91.5)),
    "glue-sst2": ("SST-2", "accuracy", (92.4, 92.6, 92.8, 93.1)),
    "glue-stsb": ("STS-B", "pearson", (90.3, 91.1, 91.2, 91.5)),
}
_SQUAD = {
    "squad-v1": ("SQuAD 1.1", (80.86, 81.19, 81.13, 81.32), (88.70, 88.92, 88.89, 89.02)),
    "squad-v2": ("SQuAD 2.0", (78.80, 79.25, 79.18, 79.33), (82.07, 82.57, 82.48, 82.71)),
}
# Plain, GAN and CT; spreads of GAN and CT.
_GAT = {
    "planetoid-cora": ("Cora", (83.00, 83.78, 83.80), (0.2, 0.3)),
    "planetoid-citeseer": ("Citeseer", (72.50, 73.32, 73.49), (0.1, 0.2)),
    "planetoid-pubmed": ("PubMed", (77.26, 78.77, 78.79), (0.2, 0.2)),
}
# Metric -> plain, GAN and CT; spread of CT.
_VQA = {
    "vqa_accuracy": ((66.74, 66.92, 67.01), 0.02),
    "validation_noisy/vqa_accuracy": ((63.58, 64.28, 64.57), 0.03),
    "pavpu": ((71.96, 72.17, 72.21), 0.03),
    "validation_noisy/pavpu": ((68.29, 69.80, 69.98), 0.04),
}
# Table 2: accuracy on the test halves of the training corpus and of the other one, then both ECEs;
# plain, GAN and CT.
_DOMAINS = {
    "transfer-nli": ("SNLI to MNLI", "mnli"),
    "transfer-paraphrase": ("QQP to TwitterPPDB", "twitterppdb"),
    "transfer-commonsense": ("SWAG to HellaSWAG", "hellaswag"),
}
_TRANSFER = {
    ("transfer-nli", "BERT"): (
        (90.04, 90.59, 90.65), (73.52, 74.15, 74.23), (2.54, 2.02, 1.89), (7.03, 5.82, 5.65)),
    ("transfer-nli", "RoBERTa"): (
        (91.23, 91.52, 91.68), (78.79, 79.55, 79.60), (1.93, 2.70, 2.52), (3.62, 3.31, 2.79)),
    ("transfer-paraphrase", "BERT"): (
        (90.27, 90.80, 90.62), (87.63, 88.34, 88.25), (2.71, 1.45, 1.74), (8.51, 7.48, 7.52)),
    ("transfer-paraphrase", "RoBERTa"): (
        (91.11, 91.66, 91.53), (86.72, 87.28, 87.33), (2.33, 1.78, 1.89), (9.55, 9.45, 9.40)),
    ("transfer-commonsense", "BERT"): (
        (79.40, 79.56, 79.60), (34.48, 35.90, 36.25), (2.49, 1.95, 1.86), (12.62, 12.11, 11.78)),
    ("transfer-commonsense", "RoBERTa"): (
        (82.45, 83.03, 83.14), (41.68, 42.51, 42.88), (1.76, 1.61, 1.43), (11.93, 9.97, 9.77)),
}  # fmt: skip
# Table 3: failed attacks in percent, means over MRPC, CoLA, RTE, QQP and SST-2.
FAILED_ATTACKS = {
    "textfooler": {"none": 11.5, "gan": 15.1, "ct": 15.4},
    "textbugger": {"none": 23.5, "gan": 29.6, "ct": 29.8},
    "bae": {"none": 29.6, "gan": 30.3, "ct": 31.0},
}
_NOTES = {
    "MNLI": "the paper has one number for both of its validation splits",
    "STS-B": "the paper has one number for Pearson's and Spearman's correlation",
}
# Easy-VQA is no data set of the paper's; its runs answer the same questions as those on VQA-v2.
_EASY = {
    "vqa_accuracy": "accuracy",
    "validation_noisy/vqa_accuracy": "test_noisy/accuracy",
    "pavpu": "pavpu",
    "validation_noisy/pavpu": "test_noisy/pavpu",
}
# Seconds of a step of MCAN over those of the plain one, Tables 5, 6, 9.
STEP_RATIOS = {"gan": 0.31 / 0.25, "ct": 0.36 / 0.25}


def paper_results(experiment: str, pretrained: str = "") -> list[PaperResult]:
    """What the paper has on an experiment.

    Args:
        experiment: its name in the config.
        pretrained: what its model starts from.

    Example:
        >>> paper_results("planetoid-cora")[0].values["ct"]
        83.8
    """
    name, table, note = experiment.removesuffix(SMALL), "Tables 1, 8", ""
    found: dict[str, tuple[Sequence[float], Sequence[float]]]  # metric -> means, spreads
    if name in _GLUE:
        data, metric, reached = _GLUE[name]
        setting, found, note = f"{data}, {ALBERT}", {metric: (reached, ())}, _NOTES.get(data, "")
    elif name in _SQUAD:
        data, exact, f1 = _SQUAD[name]
        setting, found = f"{data}, {ALBERT}", {"exact": (exact, ()), "f1": (f1, ())}
    elif name in _GAT:
        data, means, spreads = _GAT[name]
        table, setting, found = "Table 4", f"{data}, GAT", {"accuracy": (means, spreads)}
    elif name in _DOMAINS:
        data, other = _DOMAINS[name]
        model = "RoBERTa" if "roberta" in pretrained.lower() else "BERT"
        metrics = ("test/accuracy", f"{other}/accuracy", "test/ece", f"{other}/ece")
        table, setting = "Table 2", f"{data}, {model}-base"
        found = {m: (x, ()) for m, x in zip(metrics, _TRANSFER[name, model], strict=True)}
    elif name in ("vqa-v2", "vqa-easy"):
        table, setting, easy = "Tables 5, 6, 9", "VQA-v2, MCAN small", name == "vqa-easy"
        found = {_EASY[m] if easy else m: (x, (spread,)) for m, (x, spread) in _VQA.items()}
        note = "of another data set than this experiment's" if easy else ""
    else:
        return []
    return [
        PaperResult(table, setting, metric, _by_method(means), _by_method(means, spreads), note)
        for metric, (means, spreads) in found.items()
    ]


def _by_method(means: Sequence[float], spreads: Sequence[float] | None = None) -> dict[str, float]:
    """Means by method, or the spreads, which the first methods may lack."""
    methods = METHODS if len(means) == len(METHODS) else WITHOUT_OT
    values = means if spreads is None else spreads
    return dict(zip(methods[len(methods) - len(values) :], values, strict=True))
