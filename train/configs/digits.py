"""A small Vision Transformer on scikit-learn's digits, plain or aligned.

Command:   python -m train --config=train/configs/digits.py [--config.alignment.method=ct]
Compare:   python -m train.sweep --config=train/configs/digits.py
Expected:  test accuracy 0.95 to 0.98 with every method; scale-free MMD between queries and keys,
           a mean over the 8 heads, 0.20 plain, 0.01 with energy and GAN, 0.03 with CT.
Time:      600 steps of 10 to 12 ms (plain) on 2 CPU cores.
Data:      1,797 images of 8x8 pixels, inside scikit-learn; nothing is downloaded.
"""

from ml_collections import ConfigDict

from train.configs.common import default_config, part
from train.registry import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; it has no kinds, so `arg` is empty."""
    if arg:
        raise ConfigError(
            f"digits.py:{arg}: there are no kinds of this experiment; leave :{arg} out."
        )
    config = default_config()
    config.name = "digits"

    # What the data determine (image size, channels, classes) is not set here.
    from_data = ("image_size", "channels", "num_classes", "alignment")
    config.model = part("model", "vit", from_data, hidden_size=64, layers=2, dropout=0.1)
    config.data = part("data", "digits", batch_size=64, test_fraction=0.2)
    config.task = part("task", "classification")

    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_share = 1 / 6
    config.optimizer.weight_decay = 0.05

    config.train.steps = 600
    config.train.log_every = 20
    config.train.checkpoint_every = 400
    config.eval.every = 100
    config.eval.mmd_bandwidth = 4.0  # the root of the head's dimension: tokens lie so far apart
    return config
