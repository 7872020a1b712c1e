"""Cora, Citeseer and PubMed as published with Planetoid: one citation graph each, with its split.

Source: "Revisiting Semi-Supervised Learning with Graph Embeddings" (Yang et al., ICML 2016, arXiv
1603.08861), github.com/kimiyoung/planetoid. Eight files per data set, named "ind.<name>.":

    x, y         features and one-hot labels of the training nodes
    allx, ally   the same of all nodes but the test nodes; begins with the training nodes
    tx, ty       the same of the test nodes, in the order of test.index
    graph        each node's neighbours
    test.index   the test nodes' numbers, out of order; Citeseer's leave out 15 nodes without
                 features or label, which stay in the graph

The standard split trains on the nodes of x, validates on the 500 after them and tests on
test.index. Features are divided by their row's sum; edges are made symmetric, duplicates removed,
self-loops added.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.models.graph import SparseFeatures, validate_graph
from train.data import planetoid_download, safe_pickle
from train.data.base import WHOLE, DataSource, Metadata, Share, data_folder
from train.data.json_text import read_text
from train.registry import ConfigError, check_known

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Planetoid(DataSource):
    """A citation graph as a data source: every batch is the whole graph, its mask the split.

    A batch holds "features" (`SparseFeatures` [N, F]), "senders" and "receivers" [Z], "label" [N]
    and "mask" [N]. Training is transductive: test nodes send and receive messages, unlabelled.

    Attributes:
        dataset: "cora", "citeseer", "pubmed", or another one in the same format.
        folder: where its files lie; "" means $ALIGN_JAX_DATA/planetoid, or, without that variable,
            a cache in the home directory.
        download: whether to fetch files that are missing.
        verify: whether to compare files with their SHA-256.
        num_validation: how many nodes after the training nodes validate.
        seed: has no effect; a full batch has no order.
    """

    dataset: str = "cora"
    folder: str = ""
    download: bool = True
    verify: bool = True
    num_validation: int = 500
    seed: int = 0

    @functools.cached_property
    def graph(self) -> Graph:
        """The graph, read on first use."""
        folder = data_folder(self.folder, "planetoid", "~/.cache/align_jax/planetoid")
        dataset = self.dataset
        try:
            if self.download and dataset in planetoid_download.SHA256:
                planetoid_download.download(dataset, folder)
            return read(folder, dataset, num_validation=self.num_validation, verify=self.verify)
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.data: {error}") from error

    @functools.cached_property
    def metadata(self) -> Metadata:
        """The number of classes; a graph cannot be cut into shares."""
        return Metadata(model={"num_classes": self.graph.num_classes}, splittable=False)

    @functools.cached_property
    def examples(self) -> dict[str, int]:
        """Sizes of the splits."""
        return {split: int(self.graph.masks[split].sum()) for split in SPLITS}

    def train_batches(self, start_step: int = 0, share: Share = WHOLE) -> Iterator[dict[str, Any]]:
        """The same batch for ever: the whole graph, with the training nodes' mask."""
        del start_step, share  # a graph is not cut
        return itertools.repeat(self._batch("train"))

    def eval_batches(self, split: str, share: Share = WHOLE) -> Iterator[dict[str, Any]]:
        """One batch: the whole graph, with the mask of `split`."""
        check_known("Planetoid has no split", split, SPLITS)
        return iter([self._batch(split)])

    def example_batch(self) -> dict[str, Any]:
        """The training batch."""
        return self._batch("train")

    def _batch(self, split: str) -> dict[str, Any]:
        graph = self.graph
        return {
            "features": graph.features,
            "senders": graph.senders,
            "receivers": graph.receivers,
            "label": graph.labels,
            "mask": graph.masks[split],
        }


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph for node classification, on the host."""

    features: SparseFeatures  # [N, F], rows summing to 1 (or to 0, where a node has none)
    labels: np.ndarray  # classes, int32 [N]; -1 for a node without a label
    senders: np.ndarray  # int32 [Z]
    receivers: np.ndarray  # int32 [Z], ascending
    masks: dict[str, np.ndarray]  # bool [N] for "train", "validation" and "test"
    num_classes: int


def read(folder: Path, name: str, *, num_validation: int = 500, verify: bool = True) -> Graph:
    """Reads the eight files of a data set; arguments as of `Planetoid`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file differs from its hash, is corrupted, refused, or does not fit the others.
    """
    paths = {part: folder / f"ind.{name}.{part}" for part in planetoid_download.PARTS}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. Download them there with download({name!r}, "
            f"folder), or point data.folder at the files."
        )
    if verify and name in planetoid_download.SHA256:
        planetoid_download.verify(folder, name)
    loaded = {part: safe_pickle.load(path) for part, path in paths.items() if part != "test.index"}
    graph = loaded.pop("graph")
    arrays = {part: _matrix(value, paths[part]) for part, value in loaded.items()}
    test_index = _test_index(paths["test.index"], arrays)
    _check_rows(arrays, test_index, folder, name)

    num_nodes = max(len(arrays["allx"]), int(test_index.max()) + 1)
    features = np.zeros((num_nodes, arrays["allx"].shape[1]), np.float32)
    one_hot = np.zeros((num_nodes, arrays["ally"].shape[1]), np.float32)
    features[: len(arrays["allx"])], one_hot[: len(arrays["ally"])] = arrays["allx"], arrays["ally"]
    features[test_index], one_hot[test_index] = arrays["tx"], arrays["ty"]
    labels = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1).astype(np.int32)

    num_train = len(arrays["y"])
    nodes = np.arange(num_nodes)
    masks = {
        "train": nodes < num_train,
        "validation": (nodes >= num_train) & (nodes < num_train + num_validation),
        "test": np.isin(nodes, test_index),
    }
    senders, receivers = _edges(graph, num_nodes, paths["graph"])
    total = features.sum(axis=1, keepdims=True)
    features = np.divide(features, total, out=np.zeros_like(features), where=total != 0)
    validate_graph(features, senders, receivers, masks=masks)
    for split, mask in masks.items():
        if unlabelled := int((labels[mask] < 0).sum()):
            raise ValueError(
                f"{folder}: {unlabelled} nodes of the {split} split of {name} have no label."
            )
    return Graph(
        SparseFeatures.from_dense(features), labels, senders, receivers, masks, one_hot.shape[1]
    )


def _matrix(value: Any, path: Path) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "fiub":
        found = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"{path} holds {found}; expected a matrix of numbers.")
    return value.astype(np.float32)


def _test_index(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    try:
        index = np.array([int(line) for line in read_text(path).split()])
    except ValueError as error:
        raise ValueError(
            f"{path} is corrupted: {error}. Expected one whole number a line."
        ) from None
    first = len(arrays["allx"])
    # A bound on the gaps: a single wrong digit would otherwise ask for a graph of any size.
    outside = index[(index < first) | (index >= first + 2 * len(index))]
    if outside.size or len(np.unique(index)) < len(index) or not index.size:
        raise ValueError(
            f"{path} must name each test node once, from {first} on, as allx holds {first} nodes; "
            f"got {len(index)} entries, {len(np.unique(index))} of them distinct, out of range: "
            f"{outside[:5].tolist()}."
        )
    return index


def _check_rows(
    arrays: dict[str, np.ndarray], test_index: np.ndarray, folder: Path, name: str
) -> None:
    shapes = {part: array.shape for part, array in arrays.items()}
    fits = (
        shapes["x"][0] == shapes["y"][0] <= shapes["allx"][0] == shapes["ally"][0]
        and shapes["tx"][0] == shapes["ty"][0] == len(test_index)
        and shapes["x"][1] == shapes["tx"][1] == shapes["allx"][1]
        and shapes["y"][1] == shapes["ty"][1] == shapes["ally"][1]
    )
    if not fits:
        raise ValueError(
            f"{folder}: the files of {name} do not fit together: {shapes}, {len(test_index)} test "
            f"nodes. Features and labels must have a row for each node, and the same widths."
        )


def _edges(graph: Any, num_nodes: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Senders and receivers, sorted by receiver: symmetric, without duplicates, with self-loops."""
    if not isinstance(graph, dict):
        raise ValueError(f"{path} holds {type(graph).__name__}; expected a dictionary of lists.")
    try:
        counts = [len(neighbours) for neighbours in graph.values()]
        sources = np.repeat(np.fromiter(graph, np.int64, len(graph)), counts)
        targets = np.fromiter(itertools.chain(*graph.values()), np.int64, sum(counts))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} must map each node to a list of nodes, all whole numbers: {error}."
        ) from None
    if not targets.size:
        raise ValueError(f"{path}: the graph has no edges.")
    ends = np.stack([sources, targets])
    outside = np.flatnonzero(((ends < 0) | (ends >= num_nodes)).any(axis=0))
    if outside.size:
        edge = outside[0]
        raise ValueError(
            f"{path}: node {sources[edge]} is joined to node {targets[edge]}, but the features "
            f"describe nodes 0 to {num_nodes - 1}."
        )
    loops = np.arange(num_nodes)
    receivers = np.concatenate([sources, targets, loops])
    senders = np.concatenate([targets, sources, loops])
    codes = np.unique(receivers * num_nodes + senders)
    return (codes % num_nodes).astype(np.int32), (codes // num_nodes).astype(np.int32)
