"""Data sources: each yields the same kind of batch (see `train.data.base`).

A setting out of range, a file that is missing or damaged, a row that cannot be used: whatever the
user can mend is a `ConfigError` that says what, where, and what to do.
"""

DATA = {
    "digits": "train.data.digits:Digits",
    "easy_vqa": "train.data.easy_vqa:EasyVQA",
    "glue": "train.data.glue:Glue",
    "planetoid": "train.data.planetoid:Planetoid",
    "squad": "train.data.squad:Squad",
    "texts": "train.data.own_texts:OwnTexts",
    "transfer": "train.data.transfer:Transfer",
    "vqa_v2": "train.data.vqa_v2:VQAv2",
}
