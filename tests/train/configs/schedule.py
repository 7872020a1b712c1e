"""What a config's schedule comes to."""

from ml_collections import ConfigDict

from train.step.optimizer import OptimizerConfig


def warmup(config: ConfigDict) -> int:
    """The steps of its warm-up."""
    return OptimizerConfig(**config.optimizer.to_dict()).warmup(config.train.steps)
