"""The compiled look at many files beside its slow twin; `make check-native` runs it under the sanitisers, too."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from ijfs.live.checkpoint import stat_changes
from ijfs.live.checkpoint.ahead import StatKey, key_of
from ijfs.live.checkpoint.stat_changes import Expected

Line = tuple[bytes | None, bytes, StatKey, bool]
"""The directory that a name is in (None: it is one), the name or path, what it was, whether that is believed."""


def _slow_twin(lines: list[Line]) -> list[int]:
    """The same by os.lstat."""
    return [number for number, line in enumerate(lines) if not line[3] or not _is_as_it_was(*line[:3])]


def _is_as_it_was(above: bytes | None, name: bytes, key: StatKey) -> bool:
    try:
        return key_of(os.lstat(name if above is None else os.path.join(above, name))) == key
    except OSError:
        return False


def _noted(top: Path, chosen: random.Random) -> tuple[Expected, list[Line]]:
    expected, lines = Expected(), []
    for directory, _, files in os.walk(os.fsencode(top)):
        believed = chosen.random() < 0.9
        expected.directory(directory, key_of(os.lstat(directory)), believed)
        lines.append((None, directory, key_of(os.lstat(directory)), believed))
        for name in files:
            believed, key = chosen.random() < 0.9, key_of(os.lstat(os.path.join(directory, name)))
            expected.name(name, key, believed)
            lines.append((directory, name, key, believed))
    return expected, lines


def _disturb(top: Path, chosen: random.Random) -> None:
    for path in sorted(top.rglob("*")):
        match chosen.randrange(12) if path.exists() else None:
            case 0 if path.is_file():
                path.write_bytes(b"written")
            case 1 if path.is_file():
                path.unlink()
            case 2:
                path.chmod(0o700)
            case 3:
                path.rename(path.with_name(path.name + " moved"))
            case 4 if path.is_dir() and chosen.random() < 0.5:
                shutil.rmtree(path)
            case 5 if path.is_file():
                path.unlink()
                path.mkdir()


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("lines_of_a_thread", [8192, 7])
def test_what_changed_is_told_as_by_lstat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, lines_of_a_thread: int
) -> None:
    monkeypatch.setattr(stat_changes, "_LINES_OF_A_THREAD", lines_of_a_thread)
    chosen = random.Random(seed)
    for number in range(chosen.randrange(1, 8)):
        directory = tmp_path / "top" / "/".join(f"d{level}" for level in range(number % 3)) / f"e{number}"
        directory.mkdir(parents=True)
        for file in range(chosen.randrange(8)):
            (directory / f"f{file}").write_bytes(bytes(file))
    expected, lines = _noted(tmp_path / "top", chosen)
    assert len(expected) == len(lines)
    _disturb(tmp_path / "top", chosen)
    assert expected.changed() == _slow_twin(lines)


def test_nothing_was_noted() -> None:
    assert Expected().changed() == []
