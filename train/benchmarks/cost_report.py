"""The costs of alignment as lines of a table, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from align_jax.config import PLAIN
from train.benchmarks.alignment_cost import Cost, LongCost

HEADER = (
    f"{'model':>10} {'batch':>5} {'tokens':>6} {'method':>6} {'ms':>9} "
    f"{'over plain, median [min, max]':>30} {'MiB':>8} {'memory':>7} {'FLOPs':>6}"
)


def row(cost: Cost) -> str:
    """One line under `HEADER`."""
    spread = f"{cost.ratio:.3f} [{min(cost.ratios):.3f}, {max(cost.ratios):.3f}]"
    return (
        f"{cost.model:>10} {cost.batch:5} {cost.tokens:6} {cost.method:>6} "
        f"{cost.milliseconds:9.1f} {spread:>30} {cost.memory:8.1f} {cost.memory_ratio:6.2f}x "
        f"{cost.flops_ratio:5.3f}x"
    )


def long_row(cost: LongCost) -> str:
    """A sentence."""
    return (
        f"CT at {cost.tokens} tokens, 1 head, forward and backward: {cost.milliseconds:.0f} ms, "
        f"{cost.memory:.1f} MiB"
    )


def write(
    folder: Path, device: str, costs: Sequence[Cost], long: Sequence[LongCost], clock: str
) -> None:
    """Writes costs.json, and costs.png where matplotlib is installed.

    Args:
        folder: to write to.
        device: that was measured.
        costs: of steps.
        long: of long clouds.
        clock: whose time it is, "CPU time" or "wall time".
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "device": device,
        "clock": clock,
        "steps": [dataclasses.asdict(cost) | {"ratio": cost.ratio} for cost in costs],
        "long": [dataclasses.asdict(cost) for cost in long],
    }
    (folder / "costs.json").write_text(json.dumps(content, indent=1) + "\n")
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed; no picture.")
        return
    matplotlib.use("Agg")
    _draw(folder / "costs.png", device, costs)


def _draw(path: Path, device: str, costs: Sequence[Cost]) -> None:
    """Time and memory over the plain model's against the number of tokens."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True)
    styles = {
        "gan": ("o", "-"), "ot": ("s", "--"), "ct": ("^", "-."), "mmd": ("D", ":"),
        "energy": ("v", (0, (5, 1))),
    }  # fmt: skip
    ticks = sorted({cost.tokens for cost in costs})
    models = list(dict.fromkeys(cost.model for cost in costs))
    for panel, attribute in zip(panels, ("ratio", "memory_ratio"), strict=True):
        for method in dict.fromkeys(cost.method for cost in costs if cost.method != PLAIN):
            for model in models:
                chosen = [c for c in costs if (c.method, c.model) == (method, model)]
                marker, line = styles[method]
                panel.plot(
                    [cost.tokens for cost in chosen],
                    [getattr(cost, attribute) for cost in chosen],
                    marker=marker,
                    linestyle=line,
                    color=f"C{list(styles).index(method)}",
                    fillstyle="full" if model == models[0] else "none",
                    label=f"{method}, {model}",
                )
        panel.axhline(1.0, color="0.6", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("tokens")
    panels[0].set_ylabel("training step over plain")
    panels[1].set_ylabel("temporary memory over plain")
    panels[1].legend(fontsize="small")
    figure.suptitle(f"What alignment costs on {device}", fontsize="medium")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
