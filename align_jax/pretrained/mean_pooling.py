"""The PyTorch code that an exported classifier with mean pooling carries along.

`transformers` has no such classifier. A checkpoint's folder may bring its own class, named in
config.json under "auto_map"; this is its text. It is never run here.
"""

from __future__ import annotations

MODULE = "modeling_mean_pooled"

_SOURCE = '''"""A classifier that reads the mean of all tokens but padding. Written by align_jax."""

import torch
from transformers import {prefix}Model, {prefix}PreTrainedModel
from transformers.modeling_outputs import {output}


class MeanPooled{prefix}For{task}({prefix}PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.num_labels = {labels}
        self.{base} = {prefix}Model(config, add_pooling_layer=False)
        dropout = getattr(config, "{dropout}", None)
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.mean_classifier = torch.nn.Linear(config.hidden_size, {labels})
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        kwargs.pop("return_dict", None)
        shape = input_ids.shape
        flat = [
            None if x is None else x.reshape(-1, shape[-1])
            for x in (input_ids, attention_mask, token_type_ids)
        ]
        hidden = self.{base}(flat[0], attention_mask=flat[1], token_type_ids=flat[2])[0]
        mask = torch.ones_like(flat[0]) if flat[1] is None else flat[1]
        mask = mask.bool().unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        logits = self.mean_classifier(self.dropout(mean)).reshape({reshape})
        loss = None
        problem = self.config.problem_type
        if labels is not None and problem == "multi_label_classification":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        elif labels is not None and (logits.shape[-1] == 1 or problem == "regression"):
            loss = torch.nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        elif labels is not None:
            loss = torch.nn.functional.cross_entropy(logits, labels)
        return {output}(loss=loss, logits=logits)
'''


def mean_pooling_source(prefix: str, task: str) -> str:
    """The module's text.

    Args:
        prefix: "Bert", "Roberta" or "Albert".
        task: "SequenceClassification" or "MultipleChoice".
    """
    choice = task == "MultipleChoice"
    return _SOURCE.format(
        prefix=prefix,
        base=prefix.lower(),
        task=task,
        output="MultipleChoiceModelOutput" if choice else "SequenceClassifierOutput",
        labels="1" if choice else "config.num_labels",
        reshape="shape[:2]" if choice else "-1, self.num_labels",
        dropout="classifier_dropout_prob" if prefix == "Albert" else "classifier_dropout",
    )
