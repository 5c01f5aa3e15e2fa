"""The machine's setting for huge pages is put back whoever is killed, and whoever copies at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ijfs.live.gpu.huge_pages import VARIABLE, HugePages

COPYING = """
import sys, time
from pathlib import Path
from ijfs.live.gpu.huge_pages import HugePages
with HugePages(Path(sys.argv[1]), Path(sys.argv[2])).wanted():
    print("copying", flush=True)
    sys.stdin.read()
"""


class Kernel:
    """Two files as the kernel shows them: what is written is shown in brackets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.choose("madvise", "defer")

    def choose(self, enabled: str, defrag: str) -> None:
        (self.path / "enabled").write_text(f"always [{enabled}] never")
        (self.path / "defrag").write_text(f"always [{defrag}] never")

    def chosen(self) -> tuple[str, str]:
        """The words as they stand; the kernel itself would add the brackets."""
        words = ((self.path / name).read_text() for name in ("enabled", "defrag"))
        enabled, defrag = (word.partition("[")[2].partition("]")[0] or word for word in words)
        return enabled, defrag


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "kernel")


@pytest.fixture
def pages(kernel: Kernel, tmp_path: Path) -> HugePages:
    return HugePages(kernel.path, tmp_path / "run/ijfs")


def copying(kernel: Kernel, tmp_path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", COPYING, str(kernel.path), str(tmp_path / "run/ijfs")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"copying\n"
    return process


def test_always_while_it_copies_and_as_before_afterwards(kernel: Kernel, pages: HugePages) -> None:
    with pages.wanted():
        assert kernel.chosen() == ("always", "always")
    assert kernel.chosen() == ("madvise", "defer")
    with pytest.raises(RuntimeError), pages.wanted():
        raise RuntimeError
    assert kernel.chosen() == ("madvise", "defer")


def test_the_last_of_several_puts_it_back(kernel: Kernel, pages: HugePages, tmp_path: Path) -> None:
    other = copying(kernel, tmp_path)
    with pages.wanted():
        other.communicate()
        assert kernel.chosen() == ("always", "always")
    assert kernel.chosen() == ("madvise", "defer")


def test_who_comes_after_one_that_was_killed_puts_it_back(kernel: Kernel, pages: HugePages, tmp_path: Path) -> None:
    other = copying(kernel, tmp_path)
    pages.put_back()
    assert kernel.chosen() == ("always", "always"), "it copies still"
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert kernel.chosen() == ("always", "always")
    pages.put_back()
    assert kernel.chosen() == ("madvise", "defer")
    pages.put_back()


def test_one_that_copies_after_one_that_was_killed_puts_the_first_setting_back(
    kernel: Kernel, pages: HugePages, tmp_path: Path
) -> None:
    other = copying(kernel, tmp_path)
    other.kill()
    other.communicate()
    with pages.wanted():
        pass
    assert kernel.chosen() == ("madvise", "defer")


def test_what_somebody_chose_meanwhile_stays(kernel: Kernel, pages: HugePages) -> None:
    with pages.wanted():
        kernel.choose("never", "never")
    assert kernel.chosen() == ("never", "never")


def test_the_variable_leaves_the_setting_alone(
    kernel: Kernel, pages: HugePages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    with pages.wanted():
        assert kernel.chosen() == ("madvise", "defer")


def test_a_setting_that_is_not_there_or_cannot_be_written_stops_no_copy(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with HugePages(tmp_path / "none", tmp_path / "state").wanted():
        pass
    assert not (tmp_path / "state").exists()
    (tmp_path / "file").write_text("")
    with HugePages(kernel.path, tmp_path / "file").wanted():
        assert kernel.chosen() == ("madvise", "defer")
    assert "left as they are" in caplog.text


@pytest.mark.root
@pytest.mark.skipif(
    not os.access("/sys/kernel/mm/transparent_hugepage/enabled", os.W_OK), reason="the setting cannot be written here"
)
def test_the_real_setting_is_changed_and_put_back(tmp_path: Path) -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    before = setting.read_text()
    with HugePages(state=tmp_path / "state").wanted():
        assert "[always]" in setting.read_text()
    assert setting.read_text() == before
