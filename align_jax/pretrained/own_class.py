"""The PyTorch code that an export carries along where `transformers` has no class for the model.

A checkpoint's folder may bring its own classes, named in config.json under "auto_map"; this is
their text. It is never run here. So that no other class takes such an export for its own, and makes
up at random what it does not find there, the model's type is one that `transformers` does not know,
and the weights are in a file where only the class that belongs to them looks.
"""

from __future__ import annotations

from typing import Any

from align_jax.pretrained.config import OWN_PREFIX, POOLING_KEY, WEIGHTS_KEY
from align_jax.pretrained.files import OWN_SAFETENSORS

MODULE = "modeling_align_jax"

_CONFIG = '''"""{title} Written by align_jax."""

import torch
from transformers import {prefix}Config, {prefix}Model{imports}


class AlignJax{prefix}Config({prefix}Config):
    model_type = "{model_type}"

    def __init__(self, {weights_key}=None, **kwargs):
        super().__init__(**kwargs)
        # The file with the weights; None, as after `save_pretrained`: the usual one.
        self.transformers_weights = {weights_key}


'''

_ENCODER = """class {name}({prefix}Model):
    config_class = AlignJax{prefix}Config

    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)
"""

_CLASSIFIER = """class {name}({prefix}PreTrainedModel):
    config_class = AlignJax{prefix}Config

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = {labels}
        self.{base} = {prefix}Model(config, add_pooling_layer={pooler})
        dropout = getattr(config, "{dropout}", None)
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
{layers}
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        kwargs.pop("return_dict", None)
        shape = input_ids.shape
        flat = [
            None if x is None else x.reshape(-1, shape[-1])
            for x in (input_ids, attention_mask, token_type_ids)
        ]
        outputs = self.{base}(flat[0], attention_mask=flat[1], token_type_ids=flat[2])
{pooled}
        logits = logits.reshape({reshape})
        loss = None
        problem = self.config.problem_type
        if labels is not None and problem == "multi_label_classification":
            labels = labels.to(logits.dtype)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        elif labels is not None and problem == "regression":
            loss = torch.nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        elif labels is not None:
            loss = torch.nn.functional.cross_entropy(logits, labels)
        return {output}(loss=loss, logits=logits)
"""

_LINEAR = "torch.nn.Linear(config.hidden_size, {labels})"


# Of each pooling: what the class is called, what it does, its layers, and how it makes logits.
_POOLINGS = {
    "mean": (
        "MeanPooled",
        "A classifier that reads the mean of all tokens but padding.",
        f"        self.mean_classifier = {_LINEAR}",
        """\
        mask = torch.ones_like(flat[0]) if flat[1] is None else flat[1]
        mask = mask.bool().unsqueeze(-1)
        mean = (outputs[0] * mask).sum(1) / mask.sum(1).clamp(min=1)
        logits = self.mean_classifier(self.dropout(mean))""",
    ),
    "dense": (
        "DensePooled",
        "A classifier that reads the first token through a dense layer of its own.",
        f"""\
        dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
        out_proj = {_LINEAR}
        self.classifier = torch.nn.ModuleDict({{{{"dense": dense, "out_proj": out_proj}}}})""",
        """\
        first = torch.tanh(self.classifier["dense"](self.dropout(outputs[0][:, 0])))
        logits = self.classifier["out_proj"](self.dropout(first))""",
    ),
    "pooler": (
        "Pooled",
        "A classifier that reads the encoder's pooled first token.",
        f"        self.classifier = {_LINEAR}",
        "        logits = self.classifier(self.dropout(outputs[1]))",
    ),
    "": ("Unpooled", "An encoder without a pooler.", "", ""),
}


def own_class(values: dict[str, Any], prefix: str, task: str, pooling: str) -> str:
    """Makes config.json that of a class which the export brings along; returns its module's text.

    The class is a "Bert", "Roberta" or "Albert"; without a task ("SequenceClassification",
    "MultipleChoice") and a pooling it is an encoder.
    """
    choice = task == "MultipleChoice"
    output = "MultipleChoiceModelOutput" if choice else "SequenceClassifierOutput"
    how, title, layers, pooled = _POOLINGS[pooling]
    name = f"{how}{prefix}{f'For{task}' if task else 'Model'}"
    imports = f", {prefix}PreTrainedModel\nfrom transformers.modeling_outputs import {output}"
    labels = "1" if choice else "config.num_labels"
    values |= {
        "model_type": OWN_PREFIX + values["model_type"],
        "architectures": [name],
        "auto_map": {
            "AutoConfig": f"{MODULE}.AlignJax{prefix}Config",
            f"AutoModel{f'For{task}' if task else ''}": f"{MODULE}.{name}",
        },
        WEIGHTS_KEY: OWN_SAFETENSORS,
    }
    if pooling:
        values[POOLING_KEY] = pooling
    text = (_CONFIG + (_CLASSIFIER if task else _ENCODER)).format(
        title=title,
        name=name,
        prefix=prefix,
        imports=imports if task else "",
        model_type=values["model_type"],
        weights_key=WEIGHTS_KEY,
        base=prefix.lower(),
        pooler=pooling == "pooler",
        output=output,
        labels=labels,
        reshape="shape[:2]" if choice else "-1, self.num_labels",
        dropout="classifier_dropout_prob" if prefix == "Albert" else "classifier_dropout",
        layers=layers.format(labels=labels),
        pooled=pooled,
    )
    return text if task else text.replace("import torch\n", "")
