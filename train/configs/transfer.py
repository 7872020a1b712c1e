"""Trained on one domain, evaluated on it and on others, plain or aligned: the paper's Table 2.

Command:   python -m train --config=train/configs/transfer.py:sentiment,minilm
           [--config.alignment.method=ct]  (or :nli, :paraphrase, :commonsense; without ",minilm"
           the paper's BERT)
Compare:   python -m train.sweep --config=train/configs/transfer.py:sentiment,minilm \
           --methods=none,gan,ct --seeds=0,1,2
Expected:  the paper, BERT-base, plain / CT, accuracy and ECE in %, in domain then out of it:
             SNLI to MNLI          90.04 2.54 73.52  7.03 / 90.65 1.89 74.23  5.65
             QQP to TwitterPPDB    90.27 2.71 87.63  8.51 / 90.62 1.74 88.25  7.52
             SWAG to HellaSWAG     79.40 2.49 34.48 12.62 / 79.60 1.86 36.25 11.78
           The paper has no sentiment. Measured here, MiniLM, 3 seeds, plain / CT, accuracy in %:
           SST-2 89.2 / 89.1, books 86.6 / 86.9, DVDs 87.3 / 87.3, airlines 80.9 / 80.9.
Time:      sentiment with MiniLM half an hour a run on one busy CPU core, 13 minutes on one with a
           matrix unit and JAX_DEFAULT_MATMUL_PRECISION=BF16_BF16_F32.
Data:      nli          SNLI to MNLI (matched)
           paraphrase   QQP to TwitterPPDB (4 or more of 6 people: a paraphrase; 3: left out)
           commonsense  SWAG to HellaSWAG: which of four endings goes on
           sentiment    SST-2 to reviews of books, DVDs and airlines
           What tensorflow-datasets has comes from there; TwitterPPDB, SWAG and the reviews from
           local files, whose form train/data/transfer_files.py says. With
           --config.data.source=files all come from local files, --config.data.files=FOLDER.

Of each development set a random half is developed and calibrated on ("validation" in domain), the
other reported ("test" in domain, else the corpus' name), as in the paper. Reported are accuracy,
ECE, and the ECE after temperature scaling fitted in domain, on "validation"; result.json holds also
ECE with bins of equal mass, likelihood and Brier score, before and after.

Without a further word the settings are the paper's for BERT-base-uncased; for RoBERTa-base add
--config.model.pretrained=FacebookAI/roberta-base --config.optimizer.learning_rate=1e-5
--config.optimizer.weight_decay=0.1. ",minilm" takes MiniLM from the Python package as
train/configs/glue.py does, for 2 epochs; for sentiment on a random 10,000 of SST-2's 67,349
examples. At most 256 tokens are read, of a premise and hypothesis or the like 128 by MiniLM.
"""

from ml_collections import ConfigDict

from train.configs.common import part
from train.configs.text import text_config, use_minilm
from train.data.transfer import DOMAINS
from train.registry import check_known

TRAIN_EXAMPLES = {
    "nli": 549_367, "paraphrase": 363_846, "commonsense": 73_546, "sentiment": 67_349,
}  # fmt: skip
SENTIMENT_SUBSET = 10_000  # of SST-2, for MiniLM on a CPU
METRICS = ("accuracy", "ece", "ece_scaled")


def get_config(arg: str = "sentiment") -> ConfigDict:
    """The experiment; `arg` is "DOMAINS" or "DOMAINS,minilm"."""
    name, _, model = (arg or "sentiment").partition(",")
    check_known("transfer.py: there are no domains", name, DOMAINS)
    config = text_config(f"transfer-{name}", model, domains=name)

    choice = DOMAINS[name].choices > 1
    config.task = part("task", "multiple_choice" if choice else "text_classification")

    config.model.pretrained = "google-bert/bert-base-uncased"
    config.model.dropout = config.model.attention_dropout = 0.1
    config.optimizer.learning_rate = 2e-5
    config.optimizer.weight_decay = 0.0
    config.data.batch_size = 32
    config.data.max_length = 256
    epoch = TRAIN_EXAMPLES[name] // 32
    config.train.steps = 3 * epoch
    config.train.checkpoint_every = config.eval.every = epoch
    config.eval.mmd_bandwidth = 8.0  # as for GLUE
    if model == "minilm":
        # As for GLUE; reviews are long, so that sentiment reads more of them.
        sentiment = name == "sentiment"
        use_minilm(config, SENTIMENT_SUBSET if sentiment else TRAIN_EXAMPLES[name], epochs=2)
        if sentiment:
            config.data.train_examples = SENTIMENT_SUBSET
            config.data.max_length = 256
            config.data.buckets = (*config.data.buckets, 192, 256)

    config.train.keep_checkpoints = 1
    reported = ("test", *(corpus.name for corpus in DOMAINS[name].targets))
    config.eval.final = reported
    config.eval.report = tuple(f"{split}/{metric}" for split in reported for metric in METRICS)
    config.eval.temperature_split = "validation"
    return config
