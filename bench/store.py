"""The store against its peers on real kernel snapshots: `make bench-store`, or `python -m bench.store`, as root.

It makes the tree (store_tree.py), lets one contestant after the other store it and restore one snapshot of it into
memory, verified byte for byte, measures the engine alone on images in memory (store_memory.py), and prints a table, the
targets, and beside them writes JSON and a plot. How to read it: bench/README.md. Peers that are not installed are
skipped with a line; tools/setup-bench installs them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import common, store_run, store_tree
from bench.store_targets import Results, Standing, Target, derive
from ijfs.live.sandbox import namespaces as ns

CACHE = Path(__file__).resolve().parents[1] / ".cache"
QUICK_SCALE = 0.1
PACKAGES = ("ijfs", "blake3", "zstandard", "lmdb", "numpy", "pandas", "ipykernel")


def main() -> None:
    """Entry point."""
    options = _options()
    if os.geteuid() != 0:
        sys.exit("run it as root: the snapshots are made by CRIU, and page caches are dropped between contestants")
    tree = options.tree.resolve()
    common.compile_modules()
    _make_tree(tree, options)
    ns.private_mounts()  # the memory that is restored into goes with this process
    machine = common.machine(options.work)
    conditions = f"page cache {'cold' if options.cold else 'warm'}; ijfs {common.revision() or 'of no checkout'}"
    print(f"{machine}\n{conditions}\n", flush=True)
    with common.empty_directory(options.work.resolve() / "ijfs-bench-store") as work:
        results = store_run.run(work, tree, options.only, cold=options.cold)
    targets = derive(results)
    _show(results, targets)
    page = {"machine": machine, "conditions": conditions, "versions": common.versions(PACKAGES)}
    page |= {"tree": store_tree.snapshots(tree), "results": results, "targets": targets}
    common.write_json(options.json, page)
    if results.standings:
        plot = options.plot or options.json.with_suffix(".png")
        subprocess.run([sys.executable, "-m", "bench.store_plot", str(options.json), str(plot)], check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tree of about 2 GB, for development")
    parser.add_argument("--tree", type=Path, help="where the tree is kept (default: in .cache)")
    parser.add_argument("--work", type=Path, default=CACHE, help="where the contestants store (default: .cache)")
    parser.add_argument("--python", default=_kernel_python(), help="the kernels' Python, best with torch in it")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contestants; `memory` alone: none")
    parser.add_argument("--cold", action="store_true", help="nothing in the page cache before a contestant starts")
    parser.add_argument("--json", type=Path, default=CACHE / "bench-store.json")
    parser.add_argument("--plot", type=Path, help="default: beside the JSON")
    options = parser.parse_args()
    options.tree = options.tree or CACHE / ("bench-tree-quick" if options.quick else "bench-tree")
    return options


def _kernel_python() -> str:
    """The one tools/setup-bench made, else the one this runs in."""
    made = CACHE / "bench-venv/bin/python"
    return str(made) if made.exists() else sys.executable


def _make_tree(tree: Path, options: argparse.Namespace) -> None:
    """In a process of its own: it changes its mounts and adopts children."""
    scale = QUICK_SCALE if options.quick else 1.0
    if not store_tree.has_module(options.python, "torch"):
        print("torch is not installed for the kernels: the tree goes without its torch line", flush=True)
    if not store_tree.is_complete(tree, options.python, scale):
        command = [sys.executable, "-m", "bench.store_tree", str(tree), "--python", options.python]
        subprocess.run([*command, "--scale", str(scale)], check=True)


# --- showing


def _show(results: Results, targets: Sequence[Target]) -> None:
    head = (
        "",
        "stored MB",
        "of cp",
        "store s",
        "+ sync s",
        "MB/s",
        "CPU s",
        "others' CPU s",
        "peak MiB",
        "restore s",
        "right",
    )
    rows = [_row(name, one, results) for name, one in results.standings.items()]
    print(f"\n{common.table(head, rows)}\n")
    print(common.table(("target", "bound", "value", "", "compared"), [_target_row(one) for one in targets]))
    if results.whole_tree_verified is not None:
        answer = "every snapshot came back right" if results.whole_tree_verified else "SNAPSHOTS CAME BACK WRONG"
        print(f"\nijfs, the whole tree exported and compared: {answer}")
    for verb, cost in results.verbs.items():
        print(f"ijfs {verb}: {cost.wall_s:.2f} s, {cost.rss_bytes >> 20} MiB")


def _row(name: str, one: Standing, results: Results) -> tuple[str, ...]:
    return (
        name,
        common.megabytes(one.size.allocated),
        f"{one.size.allocated / results.tree_bytes:.3f}",
        f"{one.store.wall_s:.1f}",
        f"{one.store.sync_s:.1f}",
        f"{results.tree_bytes / one.store.total_s / 1e6:,.0f}",
        f"{one.store.cpu_s:.1f}",
        f"{one.store.elsewhere_s:.1f}",
        f"{one.store.rss_bytes >> 20:,}",
        f"{one.restore.wall_s:.2f}",
        "yes" if one.verified else "NO",
    )


def _target_row(one: Target) -> tuple[str, ...]:
    return one.what, one.bound, one.shown, "met" if one.met else "MISSED", one.note


if __name__ == "__main__":
    main()
