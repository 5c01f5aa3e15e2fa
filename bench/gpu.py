"""GPU saves and restores measured on a real GPU: `python bench/gpu.py [--json FILE] [--gib N]`, as root.

Everything is one run on one machine: cold start of a language model's server against its restore, the phases of a
save, bandwidth against pinned copies, what a later snapshot adds, and two forks at once. Prints a table; docs/gpu.md
and docs/benchmarks.md quote it. Needs torch and transformers in the Python that IJFS_TEST_PYTHON names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/gpu"))

from conftest import PORT, PROGRAMS, Lab, ask

from ijfs.live.client import api as client
from ijfs.live.gpu.nvml import inventory

PYTHON = os.environ.get("IJFS_TEST_PYTHON", sys.executable)

PINNED_COPY = """
import time, torch
host = torch.empty(2 << 30, dtype=torch.uint8, pin_memory=True)
device = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
def rate(copy):
    copy(); torch.cuda.synchronize(); begin = time.perf_counter()
    for _ in range(4): copy()
    torch.cuda.synchronize(); return 4 * 2.147483648 / (time.perf_counter() - begin)
print(rate(lambda: host.copy_(device, non_blocking=True)), rate(lambda: device.copy_(host, non_blocking=True)))
"""


class Table:
    """Rows of (what, value, unit, note), printed as they come and kept for the JSON."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, value: float | str, unit: str = "", note: str = "") -> None:
        shown = f"{value:10.3f}" if isinstance(value, float) else f"{value:>10}"
        print(f"{what:58} {shown} {unit:5} {note}", flush=True)
        self.rows.append({"what": what, "value": value, "unit": unit, "note": note})


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def cold_start() -> float:
    """Seconds from the start of a Python process outside any sandbox to its first ten tokens."""
    begin = time.perf_counter()
    process = subprocess.Popen([PYTHON, str(PROGRAMS / "model.py")], cwd=PROGRAMS)
    try:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", PORT)) as connection:
                    connection.sendall(b"generate 10\n")
                    assert connection.recv(1 << 16)
                    return time.perf_counter() - begin
            except ConnectionRefusedError:
                assert process.poll() is None, "the model's program ended"
                time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def pinned_rates() -> tuple[float, float]:
    """GB/s of cudaMemcpy between pinned host memory and the device, both ways."""
    output = subprocess.run([PYTHON, "-c", PINNED_COPY], capture_output=True, text=True, check=True).stdout
    to_host, to_device = map(float, output.split())
    return to_host, to_device


def gpu_seconds(phases: dict[str, float], operation: str) -> float:
    """Seconds of one GPU operation in a reply's phases (`gpu_lock`, `gpu_checkpoint`, …)."""
    return phases.get(f"gpu_{operation}", 0.0)


def bench_model(table: Table, lab: Lab) -> None:
    """Cold start against restore, the phases of a save, what later snapshots add, two forks."""
    cold_start()  # fills the page cache: a cold start with a warm cache is what a restore has to beat
    cold = min(cold_start() for _ in range(2))
    table.add("cold start to the first 10 tokens, warm page cache", cold, "s")
    info = lab.start("model")
    ask(info, "generate", "10")
    first = lab.save(info, "ten tokens")
    for phase, seconds in first.phases.items():
        table.add(f"save: {phase}", seconds, "s")
    table.add("save: frozen", first.frozen_s, "s", f"image {first.image_bytes >> 20} MiB")
    expected = ask(info, "generate", "200").split(" ", 1)[1]
    second = lab.save(info, "200 tokens later")
    table.add("second snapshot, 200 tokens later: new bytes stored", stored_share(second), "%", "of its image")
    ask(info, "tidy")
    third = lab.save(info, "after empty_cache")
    table.add("third snapshot, after empty_cache: new bytes stored", stored_share(third), "%", "of its image")
    lab.kill(info)
    bench_restore(table, lab, first.snapshot, cold)
    bench_forks(table, lab, first.snapshot, expected)


def stored_share(saved: Any) -> float:
    """New bytes in the repository per hundred bytes of image."""
    return 100.0 * (saved.stored_bytes or 0) / saved.image_bytes


def bench_restore(table: Table, lab: Lab, snapshot: str, cold: float) -> None:
    """Restore until the first ten tokens, three times; the GPU's part alone."""
    best: tuple[float, Any, str] | None = None
    for turn in range(3):
        begin = time.perf_counter()
        info = client.restore(lab.path, snapshot, f"back{turn}")
        answer = ask(info, "generate", "10")
        seconds = time.perf_counter() - begin
        if best is None or seconds < best[0]:
            best = (seconds, info, answer)
        lab.kill(info)
    assert best is not None
    seconds, info, answer = best
    table.add("restore to the first 10 tokens", seconds, "s", f"{seconds / cold:.3f} of the cold start (best of 3)")
    for phase, value in info.phases.items():
        table.add(f"restore: {phase}", value, "s")
    gpu = gpu_seconds(info.phases, "restore") + gpu_seconds(info.phases, "unlock")
    table.add("GPU part alone: restore", gpu, "s")
    table.add("GPU part alone: restore + inference of 10 tokens", gpu + float(answer.split()[0]), "s")


def bench_forks(table: Table, lab: Lab, snapshot: str, expected: str) -> None:
    """Two forks of one snapshot on one GPU, both generating, both right."""
    before = sum(gpu.free_bytes for gpu in inventory().gpus)
    seconds, forks = timed(lambda: client.fork(lab.path, snapshot, ["left", "right"]))
    table.add("two forks, until both run", seconds, "s")
    answers = [ask(fork, "generate", "200").split(" ", 1)[1] for fork in forks]
    table.add("two forks generate the original's tokens", str(answers == [expected] * 2))
    taken = before - sum(gpu.free_bytes for gpu in inventory().gpus)
    table.add("GPU memory that two forks take", taken / (1 << 20), "MiB")
    lab.close()


def bench_big(table: Table, lab: Lab, gib: int) -> None:
    """Bandwidth of device→host and host→device on many gigabytes, against pinned copies."""
    to_host, to_device = pinned_rates()
    table.add("pinned cudaMemcpy device→host", to_host, "GB/s")
    table.add("pinned cudaMemcpy host→device", to_device, "GB/s")
    info = lab.start("big", str(gib))
    before = ask(info, "sum")
    size = gib * (1 << 30) / 1e9
    seconds, saved = timed(lambda: lab.save(info))
    down = gpu_seconds(saved.phases, "checkpoint")
    table.add(f"save of {gib} GiB", seconds, "s", f"frozen {saved.frozen_s:.2f} s")
    table.add("  device→host", size / down if down else 0.0, "GB/s", f"{size / down / to_host:.2f} of pinned")
    lab.kill(info)
    seconds, back = timed(lambda: client.restore(lab.path, saved.snapshot, "back"))
    up = gpu_seconds(back.phases, "restore")
    table.add(f"restore of {gib} GiB until it runs", seconds, "s")
    table.add("  host→device", size / up if up else 0.0, "GB/s", f"{size / up / to_device:.2f} of pinned")
    table.add("  every byte right", str(ask(back, "sum") == before))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gib", type=int, default=20)
    options = parser.parse_args()
    machine = inventory()
    if not machine.gpus:
        sys.exit(f"no GPU: {machine.problem}")
    gpus = ", ".join(gpu.name for gpu in machine.gpus)
    print(f"{time.strftime('%Y-%m-%d')} · {gpus} · driver {machine.driver_version} · Linux {platform.release()}")
    table = Table()
    for bench in (bench_model, lambda table, lab: bench_big(table, lab, options.gib)):
        directory = Path(tempfile.mkdtemp(prefix="ijfs-bench-gpu-"))
        lab = Lab(directory / "repo")
        try:
            bench(table, lab)
        finally:
            lab.close()
            shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        options.json.write_text(
            json.dumps({"driver": machine.driver_version, "gpus": gpus, "rows": table.rows}, indent=1)
        )


if __name__ == "__main__":
    main()
