"""The table of what devices send each other; its programs are compiled in tests of the mesh."""

from __future__ import annotations

import sys
import types

import pytest

from train.benchmarks import mesh_report
from train.benchmarks.mesh_report import Moved, collectives, described, report
from train.registry import ConfigError

TEXT = """
  %a = (f32[], bf16[3,4]{1,0}) all-reduce(f32[] %x, bf16[3,4] %y), metadata={op_name="jit/sum"}
  %b = s32[2,8]{1,0} all-gather-start(s32[2,4] %c), dimensions={1}
  %c = pred[16]{0} all-to-all(pred[16] %d), metadata={op_name="jit/mask"}
  %e = f32[3,4]{1,0} add(f32[3,4] %all-reduce.1, f32[3,4] %f)
"""


def test_every_array_of_a_collective_counts() -> None:
    assert collectives(TEXT) == [
        Moved("all-reduce", (), 4, "jit/sum"),
        Moved("all-reduce", (3, 4), 24, "jit/sum"),
        Moved("all-gather", (2, 8), 64, ""),
        Moved("all-to-all", (16,), 16, "jit/mask"),
    ]


def test_the_table_has_a_row_for_each_way_and_method(monkeypatch, capsys) -> None:
    memory = types.SimpleNamespace(temp_size_in_bytes=3 * 2**20, argument_size_in_bytes=2**19)
    asked = []

    def fake(devices, *arguments):
        asked.append((len(devices), *arguments))
        return memory, [Moved("all-gather", (1,), 2**20, ""), Moved("all-gather", (1,), 2**20, "")]

    monkeypatch.setattr(mesh_report, "report", fake)
    monkeypatch.setattr(mesh_report, "described", lambda target: [None] * 16)
    monkeypatch.setattr(sys, "argv", ["x", "--ways=data,fsdp", "--methods=ct", "--rows=3"])
    mesh_report.main()
    assert asked == [(16, way, "ct", 3, 128, 1) for way in ("data", "fsdp")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "| fsdp | ct | 3.0 | 0.5 | 0.0 | 2.0 | 0.0 | 0.0 | 0.0 |"
    assert len({line.count("|") for line in lines[2:]}) == 1


@pytest.mark.parametrize("target", ["gpu:4", "cpu:0", "cpu:x", "tpu", "tpu:"])
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=f"--target is '{target}'; expected cpu:16 or tpu:"):
        described(target)


def test_a_way_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--ways has 'fdsp'; expected data, fsdp or model=N"):
        report([], "model=2+fdsp", "ct", 1, 8, 1)
