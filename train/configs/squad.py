"""ALBERT, or the small MiniLM, fine-tuned on SQuAD, plain or aligned: the paper's Table 1.

Command:   python -m train --config=train/configs/squad.py:v2 [--config.alignment.method=ct]
           (or :v1; and :v1,minilm and :v2,minilm)
Compare:   python -m train.sweep --config=train/configs/squad.py:v2 --methods=none,gan,ot,ct \
           --seeds=0,1,2,3,4
Predict:   python -m train.predict --checkpoint=RUN_DIR --input=FILE.jsonl
Expected:  the paper, ALBERT-base-v2, plain / CT, exact match and F1 in %: 1.1 80.86 88.70 / 81.32
           89.02, 2.0 78.80 82.07 / 79.33 82.71.
Time:      not measured: neither the data nor ALBERT were at hand.
Data:      prepared by tensorflow-datasets (what is missing, the error's text says how to prepare);
           or the official files, by --config.data.source=json --config.data.folder=FOLDER.

Without a further word the settings are those of the paper's Table 7. ",minilm" takes MiniLM from
the Python package (see train/configs/glue.py), at a higher rate and at most 256 tokens a window.
"""

from ml_collections import ConfigDict

from train.configs.common import part
from train.configs.text import MINILM, text_config
from train.registry import check_known

# Table 7: learning rate, steps, warm-up, longest window. The batch is 48, ALBERT's dropout 0.
TABLE_7 = {"v1": (5e-5, 3649, 365, 384), "v2": (3e-5, 8144, 814, 512)}
VERSIONS = {"v1": "v1.1", "v2": "v2.0"}


def get_config(arg: str = "v2") -> ConfigDict:
    """The experiment; `arg` is "v1" or "v2", with ",minilm" or without."""
    version, _, model = (arg or "v2").partition(",")
    check_known("squad.py: there is no version", version, VERSIONS)
    rate, steps, warmup, max_length = TABLE_7[version]
    # The head has no pooling and no dropout of its own.
    without = ("pooling", "classifier_dropout")
    settings = {"version": VERSIONS[version], "max_length": max_length}
    config = text_config(f"squad-{version}", model, without, **settings)

    config.task = part("task", "span_extraction", unanswerable=version == "v2")

    config.optimizer.learning_rate = rate
    config.optimizer.warmup_share = warmup / steps
    config.train.steps = steps
    config.train.checkpoint_every = config.eval.every = steps // 4
    config.train.keep_checkpoints = 1
    config.train.monitor = "validation/f1:max"
    config.train.patience_metrics = ("validation/loss:min", config.train.monitor)
    config.eval.final = ("validation",)
    config.eval.report = ("exact", "f1")
    config.eval.mmd_bandwidth = 8.0  # as for GLUE
    if model == "minilm":
        config.model.pretrained = MINILM
        config.model.dropout = config.model.attention_dropout = 0.1
        config.optimizer.learning_rate = 1e-4
        config.data.max_length = 256
        config.eval.mmd_bandwidth = 5.7
    return config
