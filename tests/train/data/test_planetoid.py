"""Planetoid's files: small ones in the same format, hostile and damaged ones, and Cora itself."""

import collections
import os
import pickle
import struct
import urllib.error

import numpy as np
import pytest
import scipy.sparse

from align_jax.models.graph import validate_graph
from train.data import planetoid, planetoid_download, safe_pickle


def toy_parts():
    """A graph in Planetoid's format: 2 training nodes, 3 others, test nodes 8, 5 and 6; 7 is a gap.

    Like Citeseer's, test.index leaves out a node (7), which the graph still holds.
    """
    rng = np.random.default_rng(0)
    features = rng.integers(1, 4, (9, 4)).astype(np.float32)
    features[7] = 0
    labels = np.eye(3, dtype=np.int32)[[0, 1, 2, 0, 1, 2, 0, 0, 1]]
    order = [8, 5, 6]
    graph = collections.defaultdict(list)
    edges = {0: [1, 1, 4], 1: [0], 2: [8, 2], 3: [], 4: [0], 5: [6], 6: [], 7: [], 8: []}
    graph.update(edges)
    return (
        {
            "x": scipy.sparse.csr_matrix(features[:2]),
            "y": labels[:2],
            "allx": scipy.sparse.csr_matrix(features[:5]),
            "ally": labels[:5],
            "tx": scipy.sparse.csr_matrix(features[order]),
            "ty": labels[order],
            "graph": graph,
            "test.index": "8\n5\n6\n",
        },
        features,
        labels.argmax(1),
    )


def write(folder, parts, name="toy"):
    for part, value in parts.items():
        path = folder / f"ind.{name}.{part}"
        if part == "test.index":
            path.write_text(value)
        else:
            path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.fixture
def toy(tmp_path):
    parts, features, labels = toy_parts()
    write(tmp_path, parts)
    return tmp_path, features, labels


def read(folder, **options):
    return planetoid.read(folder, "toy", **({"num_validation": 2} | options))


def dense(features):
    result = np.zeros(features.shape, np.float32)
    result[features.rows, features.columns] = features.values
    return result


def test_test_nodes_land_on_their_own_rows_and_rows_sum_to_one(toy):
    folder, features, labels = toy
    graph = read(folder)
    expected = features / np.maximum(features.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(dense(graph.features), expected, rtol=1e-6)
    known = np.arange(9) != 7
    np.testing.assert_array_equal(graph.labels[known], labels[known])


def test_a_gap_in_test_index_is_a_node_without_features_or_label_in_no_split(toy):
    graph = read(toy[0])
    assert graph.features.shape == (9, 4)
    assert graph.labels[7] == -1
    assert not dense(graph.features)[7].any()
    assert not any(mask[7] for mask in graph.masks.values())
    assert ((graph.senders == 7) & (graph.receivers == 7)).sum() == 1


def test_standard_split(toy):
    masks = read(toy[0]).masks
    assert {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} == {
        "train": [0, 1],
        "validation": [2, 3],
        "test": [5, 6, 8],
    }


def test_edges_are_symmetric_unique_sorted_and_have_self_loops(toy):
    graph = read(toy[0])
    edges = list(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))
    assert edges == sorted(set(edges))
    undirected = {(0, 1), (0, 4), (2, 8), (5, 6)}
    both = undirected | {(j, i) for i, j in undirected}
    assert set(edges) == both | {(node, node) for node in range(9)}


def test_later_protocols_and_int64_are_read_alike(tmp_path):
    parts, *_ = toy_parts()
    parts["y"] = parts["y"].astype(np.int64)
    for protocol in (2, 3, 4):
        write(tmp_path, parts)
        for part in ("x", "y", "graph"):
            data = pickle.dumps(parts[part], protocol=protocol)
            (tmp_path / f"ind.toy.{part}").write_bytes(data)
        assert read(tmp_path).num_classes == 3


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.fault(
    "A Planetoid file that names a function to call",
    "Refused by name; nothing is run",
)
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "builtins.eval"), (os.mkdir, "posix.mkdir")],
)
@pytest.mark.parametrize("part", ["x", "ally", "graph"])
def test_a_hostile_pickle_is_refused_by_name_and_not_run(toy, function, name, part):
    folder = toy[0]
    trace = folder / "ran"
    argument = {"system": f"touch {trace}", "eval": f"open({str(trace)!r}, 'w')"}
    hostile = Hostile(function, argument.get(function.__name__, str(trace)))
    (folder / f"ind.toy.{part}").write_bytes(pickle.dumps(hostile, protocol=2))
    with pytest.raises(safe_pickle.UnsafePickleError, match=rf"ind.toy.{part}.*{name}"):
        read(folder)
    assert not trace.exists()


def test_a_hostile_name_reached_through_an_attribute_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.")
    with pytest.raises(safe_pickle.UnsafePickleError, match=r"numpy.f2py"):
        safe_pickle.load(path)
    path.write_bytes(pickle.dumps(Hostile(getattr, "text", "upper"), protocol=2))
    with pytest.raises(safe_pickle.UnsafePickleError, match=r"builtins.getattr"):
        safe_pickle.load(path)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def several(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def dtype(code: bytes, state: bytes = b"") -> bytes:
    return b"cnumpy\ndtype\n" + several(code, b"\x89", b"\x88") + b"R" + state


def array(shape: bytes, kind: bytes, raw: bytes = b"C\x08AAAAAAAA") -> bytes:
    empty = several(b"cnumpy\nndarray\n", several(integer(0)), b"C\x01b")
    state = several(integer(1), shape, kind, b"\x89", raw)
    return b"cnumpy.core.multiarray\n_reconstruct\n" + empty + b"R" + state + b"b"


NDARRAY = b"cnumpy\nndarray\n"
BUFFER = b"\x96" + struct.pack("<Q", 8) + b"A" * 8
ONE = several(integer(1))
FIELDS = b"}" + text("a") + several(dtype(text("f8")), integer(0)) + b"s"
RECORDS = several(
    integer(3), text("|"), b"N", several(text("a")), FIELDS, integer(8), integer(1), integer(0)
) + b"b"  # fmt: skip
MEMORY = {
    "objects over bytes": (NDARRAY + several(ONE, dtype(text("O8")), BUFFER) + b"R", "dtype 'O8'"),
    "before a buffer": (
        NDARRAY + several(ONE, dtype(text("f8")), BUFFER, integer(-4096)) + b"R",
        "it calls a type",
    ),
    "an array's own call": (NDARRAY + several(ONE) + b"R", "it calls a type"),
    "a new array": (NDARRAY + several(ONE) + b"\x81", "it calls a type"),
    "state of objects": (array(ONE, dtype(text("O8"))), "dtype 'O8'"),
    "state of records": (array(ONE, dtype(text("V8"), RECORDS)), "dtype 'V8'"),
    "records in numbers": (array(ONE, dtype(text("f8"), RECORDS)), "plain numbers"),
    "a dtype by a list": (array(ONE, dtype(b"](" + text("f8") + b"e")), "plain numbers"),
    "more than its bytes": (array(several(integer(2)), dtype(text("f8"))), r"\[2\] has 8 bytes"),
    "negative": (array(several(integer(-1)), dtype(text("f8"))), "shape"),
    "minus times minus": (
        array(several(integer(-1), integer(-1)), dtype(text("f8"))),
        "shape",
    ),
    "overflowing": (
        array(several(*[b"\x8a\x05\0\0\0\0\x01"] * 2), dtype(text("f8"))),
        "shape",
    ),
    "a list of objects": (array(ONE, dtype(text("f8")), b"](K\x01e"), "something else"),
    "the memo's size": (b"Nr\xff\xff\xff\x7f", "the memo's number 2147483647"),
    "tuples in tuples as a key": (b"}N" + b"\x85" * 10**6 + b"Ns", "more than 1000 tuples"),
    "state of a stand-in": (
        NDARRAY + b"N}" + text("__setstate__") + NDARRAY + b"s\x86b",
        "TypeError",
    ),
}


@pytest.mark.fault(
    "A Planetoid file that reads or writes memory through numpy's own constructors",
    "Refused: stand-ins note the arguments, and what does not fit is an error",
)
@pytest.mark.parametrize("case", MEMORY)
def test_a_pickle_that_reaches_for_memory_is_refused(tmp_path, case):
    program, message = MEMORY[case]
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x05" + program + b".")
    with pytest.raises(ValueError, match=message):
        safe_pickle.load(path)
    path.write_bytes(pickle.dumps(np.eye(2), protocol=2))  # nothing of it stays behind
    np.testing.assert_array_equal(safe_pickle.load(path), np.eye(2))


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    values = np.arange(6).reshape(2, 3)
    path = tmp_path / "file"
    for kind in ("f4", ">f8", "<i2", ">u4", "i8", "?"):
        for order in ("C", "F"):
            written = np.asarray(values, kind, order=order)
            for protocol in (0, 2, 4):
                path.write_bytes(pickle.dumps(written, protocol=protocol))
                read = safe_pickle.load(path)
                assert read.dtype == written.dtype
                np.testing.assert_array_equal(read, written)


def test_a_sparse_matrix_that_claims_any_size_is_an_error(toy):
    matrix = scipy.sparse.csr_matrix(np.eye(2, 4, dtype=np.float32))
    vars(matrix)["_shape"] = (2, 2**30)
    (toy[0] / "ind.toy.x").write_bytes(pickle.dumps(matrix, protocol=2))
    with pytest.raises(ValueError, match="2 x 1073741824 matrix; expected up to 268435456"):
        read(toy[0])


@pytest.mark.parametrize("part", ["x", "ty", "graph"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(toy, part, keep):
    path = toy[0] / f"ind.toy.{part}"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match=rf"ind.toy.{part} is corrupted"):
        read(toy[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("indices", np.array([0, 99], np.int32)),
        ("indices", np.array([0, -1], np.int32)),
        ("indptr", np.array([0, 1, 3], np.int32)),
        ("indptr", np.array([0, 3, 2], np.int32)),
        ("data", np.ones(1, np.float32)),
    ],
)
def test_sparse_indices_out_of_range_are_an_error(toy, field, value):
    matrix = scipy.sparse.csr_matrix(np.eye(2, 4, dtype=np.float32))
    vars(matrix)[field] = value
    (toy[0] / "ind.toy.x").write_bytes(pickle.dumps(matrix, protocol=2))
    with pytest.raises(ValueError, match=r"corrupted.*2 x 4"):
        read(toy[0])


def test_missing_files_are_listed(toy):
    for part in ("x", "graph"):
        (toy[0] / f"ind.toy.{part}").unlink()
    with pytest.raises(FileNotFoundError, match=r"ind.toy.x, ind.toy.graph"):
        read(toy[0])


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("graph", {0: [1], 5: [99]}, "node 5 is joined to node 99.*0 to 8"),
        ("graph", {0: [], 1: []}, "no edges"),
        ("graph", [1, 2], "expected a dictionary"),
        ("graph", {0: 1}, "must map each node to a list"),
        ("graph", {0: ["one"]}, "must map each node to a list"),
        ("graph", {0: [2**70]}, "must map each node to a list"),
        ("test.index", "8\n5\nsix\n", "corrupted.*six"),
        ("test.index", "8\n5\n5\n", "once"),
        ("test.index", "8\n5\n1000000000\n", "out of range.*1000000000"),
        ("test.index", "8\n5\n2\n", "out of range.*2"),
        ("test.index", "", "once"),
        ("ty", np.eye(3, 4), "do not fit together"),
        ("y", np.eye(1, 3), "do not fit together"),
        ("y", np.ones(3), "expected a matrix"),
        ("ty", np.zeros((3, 3)), "test split.*have no label"),
        ("allx", scipy.sparse.csr_matrix(np.full((5, 4), np.nan, np.float32)), "NaN"),
    ],
)
def test_files_that_do_not_fit_are_errors(toy, part, value, message):
    write(toy[0], {part: value})
    with pytest.raises(ValueError, match=message):
        read(toy[0])


def test_a_validation_split_that_would_reach_the_test_nodes_is_an_error(toy):
    with pytest.raises(ValueError, match="'validation' and 'test' overlap in 2 nodes"):
        read(toy[0], num_validation=5)


def test_an_empty_validation_split_is_an_error(toy):
    with pytest.raises(ValueError, match="'validation' is empty"):
        read(toy[0], num_validation=0)


def test_a_known_name_is_verified(tmp_path):
    parts, *_ = toy_parts()
    write(tmp_path, parts, name="cora")
    with pytest.raises(ValueError, match=r"ind.cora.x has SHA-256.*expected 23cfa55d"):
        planetoid.read(tmp_path, "cora", num_validation=2)
    graph = planetoid.read(tmp_path, "cora", num_validation=2, verify=False)
    assert graph.num_classes == 3


class TestDownload:
    def serve(self, monkeypatch, content):
        class Response:
            def __init__(self, address):
                self.address = address

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def read(self):
                return content(self.address)

        addresses = []

        def urlopen(address, timeout):
            addresses.append(address)
            return Response(address)

        monkeypatch.setattr(planetoid_download.urllib.request, "urlopen", urlopen)
        return addresses

    def test_a_file_with_another_hash_is_not_kept(self, monkeypatch, tmp_path):
        self.serve(monkeypatch, lambda address: b"something else")
        with pytest.raises(ValueError, match="SHA-256"):
            planetoid_download.download("cora", tmp_path / "new")
        assert not list((tmp_path / "new").iterdir())

    def test_what_is_there_is_not_fetched_again(self, monkeypatch, tmp_path):
        for part in planetoid_download.PARTS:
            (tmp_path / f"ind.pubmed.{part}").write_bytes(b"")
        addresses = self.serve(monkeypatch, lambda address: b"")
        planetoid_download.download("pubmed", tmp_path)
        assert addresses == []

    def test_fetches_from_the_official_address(self, monkeypatch, tmp_path, real_data):
        cora = real_data / "planetoid"
        content = lambda address: (cora / address.rsplit("/", 1)[1]).read_bytes()  # noqa: E731
        addresses = self.serve(monkeypatch, content)
        planetoid_download.download("cora", tmp_path)
        assert len(addresses) == 8
        prefix = "https://raw.githubusercontent.com/kimiyoung/planetoid/"
        assert all(address.startswith(prefix) for address in addresses)
        assert planetoid.read(tmp_path, "cora").num_classes == 7

    def test_an_unreachable_address_says_what_to_do(self, monkeypatch, tmp_path):
        def urlopen(address, timeout):
            raise urllib.error.URLError("no route")

        monkeypatch.setattr(planetoid_download.urllib.request, "urlopen", urlopen)
        with pytest.raises(ConnectionError, match=r"ind.cora.x.*no route"):
            planetoid_download.download("cora", tmp_path)

    def test_an_unknown_name(self, tmp_path):
        with pytest.raises(ValueError, match="'corra'; did you mean .*cora, citeseer, pubmed"):
            planetoid_download.download("corra", tmp_path)


class TestSource:
    def source(self, folder):
        return planetoid.Planetoid("toy", folder=str(folder), num_validation=2)

    def test_every_batch_is_the_whole_graph_with_the_mask_of_its_split(self, toy):
        source = self.source(toy[0])
        batches = source.train_batches(start_step=7)
        first, second = next(batches), next(batches)
        assert first.keys() == {"features", "senders", "receivers", "label", "mask"}
        assert first["mask"].sum() == 2
        assert first["mask"] is second["mask"]
        (only,) = source.eval_batches("test")
        np.testing.assert_array_equal(np.flatnonzero(only["mask"]), [5, 6, 8])

    def test_metadata(self, toy):
        source = self.source(toy[0])
        metadata = source.metadata
        assert source.examples == {"train": 2, "validation": 2, "test": 3}
        assert metadata.model["num_classes"] == 3
        assert not metadata.splittable

    def test_unknown_split(self, toy):
        with pytest.raises(ValueError, match=r"no split 'val'.*validation"):
            self.source(toy[0]).eval_batches("val")


def test_cora(real_data):
    cora = real_data / "planetoid"
    graph = planetoid.read(cora, "cora")
    assert graph.features.shape == (2708, 1433)
    assert {name: int(mask.sum()) for name, mask in graph.masks.items()} == {
        "train": 140,
        "validation": 500,
        "test": 1000,
    }
    assert np.bincount(graph.labels[graph.masks["train"]]).tolist() == [20] * 7
    assert np.bincount(graph.labels).tolist() == [351, 217, 418, 818, 426, 298, 180]
    assert len(graph.senders) == 2 * 5278 + 2708
    np.testing.assert_allclose(dense(graph.features).sum(1), 1, rtol=1e-5)
    validate_graph(graph.features, graph.senders, graph.receivers, masks=graph.masks)
