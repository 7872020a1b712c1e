"""Data sources: each yields the same kind of batch (see `train.data.base`)."""

DATA = {
    "digits": "train.data.digits:Digits",
    "glue": "train.data.glue:Glue",
    "planetoid": "train.data.planetoid:Planetoid",
    "squad": "train.data.squad:Squad",
}
