"""Task types: how a batch enters the model, which loss, which metrics (see `train.tasks.base`)."""

TASKS = {
    "classification": "train.tasks.classification:Classification",
    "multiple_choice": "train.tasks.text:MultipleChoice",
    "node_classification": "train.tasks.node_classification:NodeClassification",
    "question_answering": "train.tasks.vqa:QuestionAnswering",
    "span_extraction": "train.tasks.span:SpanExtraction",
    "text_classification": "train.tasks.text:TextClassification",
    "text_regression": "train.tasks.text:TextRegression",
}
