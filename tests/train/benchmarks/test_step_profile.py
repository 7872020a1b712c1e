"""Where a step's time goes: from a trace made by hand, and of a real step of a tiny model."""

from __future__ import annotations

import pytest

from tests.train.benchmarks.test_alignment_cost import TINY
from train.benchmarks import alignment_cost, step_profile
from train.benchmarks.step_profile import origins, part_of, self_times

PROGRAM = """
HloModule jit_step
  %weights.7 = f32[4,10]{1,0} dot(%x, %y), metadata={op_name="jit(step)/a/dot_general" stack=1}
  ROOT %while.2 = (f32[], s32[]) while(%tuple), condition=%c, metadata={op_name="jit(step)/while"}
  %plain = f32[] constant(0)
"""


def event(name: str, start: float, duration: float, thread: int = 1) -> dict:
    return {"ph": "X", "pid": 1, "tid": thread, "name": name, "ts": start, "dur": duration}


def test_instructions_are_known_by_what_they_were_traced_from() -> None:
    assert origins(PROGRAM) == {
        "weights.7": "jit(step)/a/dot_general",
        "while.2": "jit(step)/while",
    }


def test_a_loop_is_not_counted_with_its_body() -> None:
    events = [
        event("body.1", 2, 3), event("while.2", 0, 10), event("body.1", 5, 4), event("dot", 10, 2),
        event("dot", 1, 5, thread=2), {"ph": "M", "pid": 1, "tid": 1, "name": "a thread's name"},
    ]  # fmt: skip
    assert self_times(events) == {"while.2": 3, "body.1": 7, "dot": 7}


@pytest.mark.parametrize(
    ("origin", "part"),
    [
        ("jvp(S)/encoder/layer_0/attention/alignment/critic/hidden/dot", "critic, navigator"),
        ("encoder/layer_0/attention/alignment/alignment._divergence/exp", "alignment: divergence"),
        ("encoder/layer_0/attention/query/dot_general", "model: attention"),
        ("encoder/layer_0/mlp_in/dot_general", "the rest of the layers"),
        ("transpose(jvp(SequenceClassifier))/classifier/dot", "embeddings and head"),
        ("jit(step)/mul", "optimiser"),
    ],
)
def test_an_operation_belongs_to_one_part(origin: str, part: str) -> None:
    assert part in part_of(origin)


def test_a_real_step_spends_time_in_every_part(monkeypatch) -> None:
    monkeypatch.setattr(alignment_cost, "MODELS", {"tiny": (TINY, (4, 4))})
    step = alignment_cost.Step("tiny", "ct", alignment_cost.random_batch(4, 8))
    step()
    times = step_profile.profile(step, steps=2)
    parts = {part_of(origin) for origin, milliseconds in times.items() if milliseconds > 0}
    assert parts == {*(part for part, _ in step_profile.PARTS), step_profile.OPTIMISER}
