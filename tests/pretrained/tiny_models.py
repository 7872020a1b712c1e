"""Small models of each architecture, with any head."""

import functools

import numpy as np

from align_jax import pretrained
from align_jax.models.albert import AlbertConfig
from align_jax.models.bert import BertConfig
from tests.models.parameters import random_parameters
from tests.pretrained import checkpoints

SIZES = {"vocab_size": len(checkpoints.VOCAB), "hidden_size": 16, "layers": 2, "heads": 2,
         "mlp_size": 24, "max_positions": 60, "initializer_range": 0.2}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": BertConfig(**SIZES, family="roberta", pad_token_id=1, token_types=1),
    "albert": AlbertConfig(**SIZES, embedding_size=8),
}


@functools.cache
def initialised(config, head, **options):
    model = pretrained.build(config, head, **options)
    tokens = np.ones((1, 2, 3) if head == "multiple_choice" else (1, 3), np.int32)
    return model, random_parameters(model, tokens, scale=config.initializer_range)
