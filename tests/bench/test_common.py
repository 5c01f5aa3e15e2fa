"""What the benchmarks measure with: costs of commands, comparing files, tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.common import Command, CommandError, Cost, disk_size, measure, median, same_files, table

BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def python(code: str) -> Command:
    return Command((sys.executable, "-S", "-c", code))


def test_the_cpu_time_of_descendants_counts() -> None:
    own = measure(python(BURN))
    child = measure(python(f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {BURN!r}])"))
    assert own.cpu_s >= 0.3
    assert child.cpu_s >= 0.3


def test_the_peak_is_that_of_the_command_and_not_what_it_has_at_the_end() -> None:
    small = measure(python("pass")).rss_bytes
    large = measure(python("block = bytearray(800 << 20); del block")).rss_bytes
    assert large > 800 << 20
    assert large - small > 400 << 20  # a child's peak begins with the size of the process it was forked from: this one


def test_a_command_that_fails_says_what_it_said() -> None:
    with pytest.raises(CommandError, match="no such luck"):
        measure(python("raise SystemExit('no such luck')"))


def test_costs_add_up_but_peaks_do_not() -> None:
    total = Cost(1.0, 0.5, 2.0, 100, 0.1) + Cost(2.0, 0.0, 1.0, 70, 0.2)
    assert (total.wall_s, total.sync_s, total.cpu_s, total.rss_bytes) == (3.0, 0.5, 3.0, 100)
    assert total.total_s == 3.5
    middle = median([Cost(3.0, rss_bytes=9), Cost(1.0, rss_bytes=50), Cost(2.0, rss_bytes=7)])
    assert (middle.wall_s, middle.rss_bytes) == (2.0, 50)


def test_one_wrong_missing_or_additional_byte_or_file_is_found(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    for side in (left, right):
        (side / "below").mkdir(parents=True)
        (side / "below/file").write_bytes(bytes(5 << 20))
    assert same_files(left, right)
    for other in (bytes(5 << 20)[:-1] + b"x", bytes((5 << 20) - 1), bytes((5 << 20) + 1)):
        (right / "below/file").write_bytes(other)
        assert not same_files(left, right)
    (right / "below/file").write_bytes(bytes(5 << 20))
    (right / "more").touch()
    assert not same_files(left, right)


def test_sizes_count_a_hard_link_once_and_a_hole_not_as_blocks(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(8 << 20)
        file.write(b"x" * 8192)
        file.flush()
    (tmp_path / "again").hardlink_to(tmp_path / "file")
    size = disk_size(tmp_path)
    assert size.apparent == 8 << 20
    assert size.allocated < 1 << 20


def test_columns_line_up() -> None:
    lines = table(("what", "MB"), [("a", "1,234"), ("longer", "5")]).splitlines()
    assert len(set(map(len, lines))) == 1
    assert lines[-1] == "| longer |     5 |"
