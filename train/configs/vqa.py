"""MCAN on questions about images, plain or aligned: the paper's Tables 5, 6 and 9.

Command:   python -m train --config=train/configs/vqa.py:easy [--config.alignment.method=ct]
           (or :v2, which needs VQA-v2's files)
Compare:   python -m train.sweep --config=train/configs/vqa.py:easy --methods=none,gan,ct \
           --seeds=0,1
Expected:  :easy, plain, seeds 0 and 1: test accuracy 99.3 and 93.2%, with noise 93.7 and 88.8%;
           PAvPU 99.3 and 93.1%, with noise 93.3 and 88.6%. How soon shapes are learnt differs.
           GAN and CT, in the paper's form, differ from that by less than the seeds' noise. Of CT's
           weights 0.01, 0.1 and 1, seed 0: 99.1, 92.7 and 80.4%.
           :v2, the paper, plain / GAN / CT: accuracy 66.74 / 66.92 / 67.01, with noise 63.58 /
           64.28 / 64.57; PAvPU 71.96 / 72.17 / 72.21, with noise 68.29 / 69.80 / 69.98.
Time:      :easy, one CPU core: 13 minutes plain, 14 with GAN, PAvPU included.
Data:      :easy, the Python package easy-vqa (pip install --no-deps easy-vqa==1.0), whose images
           are cut into patches as regions. :v2, the official questions and annotations and one
           file of region features per image, see `train.data.vqa_v2.VQAv2`.

Noise is Gaussian, of mean 0 and variance 1, added to the regions' features: the split
"validation_noisy". PAvPU is measured at the end, with 20 passes with dropout.
"""

from ml_collections import ConfigDict

from train.configs.common import default_config, part
from train.registry import check_known

EPOCH = 443_757 // 64  # VQA-v2's training questions, in steps
FROM_DATA = ("vocabulary_size", "num_answers", "region_features", "region_positions", "alignment")


def get_config(arg: str = "easy") -> ConfigDict:
    """The experiment; `arg` is "easy" or "v2"."""
    arg = arg or "easy"
    check_known("vqa.py: there is no data set", arg, ("easy", "v2"))
    config = default_config()
    config.name = f"vqa-{arg}"
    config.task = part("task", "question_answering")
    config.optimizer.name = "adam"
    config.optimizer.weight_decay = 0.0
    config.optimizer.beta2 = 0.98
    config.optimizer.clip_norm = 0.0
    config.eval.stochastic_passes = 20
    if arg == "easy":
        _easy(config)
    else:
        _v2(config)
    return config


def _easy(config: ConfigDict) -> None:
    """A small model: shapes in eight colours take no more."""
    config.model = part(
        "model", "mcan", FROM_DATA, word_features=32, hidden_size=64, layers=2, heads=4,
        mlp_size=256, reduction_size=64, fused_size=128, dropout=0.02, attention_dropout=0.02,
    )  # fmt: skip
    config.data = part("data", "easy_vqa", eval_batch_size=256)
    config.optimizer.learning_rate = 4e-4  # at 1e-3 it is slow to learn shapes
    config.optimizer.warmup_share = 0.05
    config.train.steps = 4000
    config.train.checkpoint_every = config.eval.every = 1000
    config.eval.final = ("test_noisy", "test")
    config.eval.report = (
        "accuracy", "test_noisy/accuracy", "pavpu", "test_noisy/pavpu", "ece",
    )  # fmt: skip
    config.eval.mmd_bandwidth = 4.0  # the root of the head's dimension


def _v2(config: ConfigDict) -> None:
    """The published small model and its schedule."""
    config.model = part("model", "mcan", FROM_DATA)
    config.data = part("data", "vqa_v2")
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_share = 3 / 13  # 3 epochs, as published, but without its steps
    config.optimizer.decay = "steps"
    config.optimizer.decay_at = (10 * EPOCH, 12 * EPOCH)
    config.optimizer.decay_factor = 0.2
    config.train.steps = 13 * EPOCH
    config.train.log_every = 100
    config.train.checkpoint_every = config.eval.every = EPOCH
    config.train.monitor = "validation/vqa_accuracy:max"
    config.eval.final = ("validation_noisy", "validation")
    config.eval.report = (
        "vqa_accuracy", "validation_noisy/vqa_accuracy", "pavpu", "validation_noisy/pavpu", "ece",
    )  # fmt: skip
    config.eval.mmd_bandwidth = 8.0
