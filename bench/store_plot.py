"""The plot of a store benchmark: `python -m bench.store_plot RESULTS.json PLOT.png`. Called by store.py.

One point per contestant: how fast the tree went in, how much it then took, how fast a snapshot came back.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

OURS, THEIRS = "#c8442d", "#5b6b7a"


def draw(page: dict[str, Any], path: Path) -> None:
    """Three panels of bars, the contestants in the order they ran."""
    standings, tree = page["results"]["standings"], page["results"]["tree_bytes"]
    names = list(standings)[::-1]
    panels = {
        "stored, GB (less is better)": [standings[name]["size"]["allocated"] / 1e9 for name in names],
        "first ingest, MB/s": [tree / _total(standings[name]["store"]) / 1e6 for name in names],
        "restore of one snapshot, MB/s": [
            standings[name]["restored_bytes"] / standings[name]["restore"]["wall_s"] / 1e6 for name in names
        ],
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 0.6 + 0.45 * len(names)), sharey=True, layout="tight")
    colours = [OURS if name.startswith("ijfs") else THEIRS for name in names]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, fmt="%.2f" if "GB" in title.split(",")[1] else "%.0f", padding=3, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    machine = page["machine"]
    figure.suptitle(
        f"{tree / 1e9:.1f} GB of kernel snapshots · {machine['cores']} cores · {machine['date']}", fontsize=10
    )
    figure.savefig(path, dpi=120)


def _total(cost: dict[str, float]) -> float:
    return cost["wall_s"] + cost["sync_s"]


def main() -> None:
    """Entry point."""
    results, path = map(Path, sys.argv[1:])
    draw(json.loads(results.read_text()), path)


if __name__ == "__main__":
    main()
