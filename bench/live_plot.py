"""The plot of a live benchmark: how a program's memory comes in after its restore was asked for. Called by live.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from bench.live_programs import Restored


def draw(restores: Mapping[str, Sequence[Restored]], path: Path) -> None:
    """One line for each way: resident memory over time of its median round; a mark where the program answered."""
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="tight")
    for name, rounds in restores.items():
        one = sorted(rounds, key=lambda r: r.all_in_s)[len(rounds) // 2]
        curve = [(at, size) for at, size in one.curve if at <= one.all_in_s]
        if not curve:
            continue
        (line,) = axis.plot([at for at, _ in curve], [size / (1 << 20) for _, size in curve], label=name, linewidth=1.4)
        near = min(curve, key=lambda point: abs(point[0] - one.answers_s))
        axis.plot(one.answers_s, near[1] / (1 << 20), "o", color=line.get_color(), markersize=5)
    axis.set_xscale("log")
    axis.set_xlabel("seconds since the restore was asked for (dot: the program answers)")
    axis.set_ylabel("memory in, MiB")
    axis.legend(fontsize=7, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
