"""Moving arrays onto devices and back."""

from __future__ import annotations

from unittest import mock

import jax
import numpy as np
import pytest

from train.devices.parallel import Pmap, make_parallel, parallel_of
from train.registry import ConfigError

four_devices = pytest.mark.skipif(jax.local_device_count() < 4, reason="needs 4 (faked) devices")


def batch(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(rows * 2.0).reshape(rows, 2), "mask": np.ones(rows, bool)}


@four_devices
@pytest.mark.parametrize(("rows", "share"), [(8, 2), (9, 3), (1, 1)])
def test_a_batch_is_cut_into_equal_shares_with_the_rest_masked(rows: int, share: int) -> None:
    parallel = Pmap(jax.local_devices()[:4])
    shares = parallel.shard(batch(rows))
    assert shares["x"].shape == (4, share, 2)
    assert len({shard.device for shard in shares["x"].addressable_shards}) == 4
    assert int(shares["mask"].sum()) == rows
    joined = parallel.join(shares)
    np.testing.assert_array_equal(joined["x"][joined["mask"]], batch(rows)["x"])


@four_devices
def test_a_mesh_gives_each_device_its_rows() -> None:
    shares = make_parallel("mesh", jax.local_devices()[:4]).shard(batch(9))
    for array in shares.values():
        assert [len(shard.data) for shard in array.addressable_shards] == [3] * 4


@four_devices
def test_replicas_are_equal_and_come_back() -> None:
    parallel = Pmap(jax.local_devices()[:4])
    tree = {"w": np.arange(6.0).reshape(2, 3), "step": np.int32(3)}
    copies = parallel.place(tree)
    assert copies["w"].shape == (4, 2, 3)
    assert copies["step"].shape == (4,)
    for back in (parallel.first(copies), parallel.gather(copies)):
        np.testing.assert_array_equal(back["w"], tree["w"])
        assert int(back["step"]) == 3


def test_an_unknown_way_of_running_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "pmap"'):
        make_parallel("pmapp")


def test_a_part_of_less_than_no_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="train.microbatch_size is -1; expected 0"):
        make_parallel("pmap", microbatch_size=-1)


@pytest.mark.parametrize(("platform", "size"), [("cpu", 4), ("gpu", 0)])
def test_parts_may_be_for_a_cpu_alone(tiny_config, monkeypatch, platform: str, size: int) -> None:
    config = tiny_config(train__microbatch_size=4, train__microbatch_cpu_only=True)
    made = mock.Mock()
    monkeypatch.setattr("train.devices.parallel.make_parallel", made)
    parallel_of(config, [mock.Mock(platform=platform)])
    assert made.call_args.kwargs["microbatch_size"] == size


@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_on_one_device_nothing_has_a_device_axis(name: str) -> None:
    """With one, XLA copies the whole state in every step."""
    parallel = make_parallel(name, jax.local_devices()[:1])
    tree = {"w": np.arange(6.0).reshape(2, 3)}
    assert parallel.place(tree)["w"].shape == (2, 3)
    np.testing.assert_array_equal(parallel.first(parallel.place(tree))["w"], tree["w"])
    shares = parallel.shard(batch(3))
    assert shares["x"].shape == (3, 2)
    np.testing.assert_array_equal(parallel.join(shares)["x"], batch(3)["x"])
