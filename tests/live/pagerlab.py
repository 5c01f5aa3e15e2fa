"""What the pager's tests share: images made by hand, and a real process that is paged without CRIU.

`Program` is another Python process (`pager_program.py`) that maps regions, registers them with a userfaultfd of its own
and hands that over exactly as CRIU does; the kernel's part is the real one. Each page's bytes are a function of the
address it had in the image, so that any page in a wrong place shows.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from image_bytes import MM_MAGIC, image_file, message, pagemap

PAGE = 4096
BASE = 0x7000_0000_0000
PID = 4242

_FLAGS_ANONYMOUS = 0x22


def page_bytes(vaddr: int) -> bytes:
    """What the image has at this address."""
    return array("Q", range(vaddr, vaddr + 512)).tobytes()


def mm(mappings: Sequence[tuple[int, int]], *, flags: int = _FLAGS_ANONYMOUS, madv: int = 0) -> bytes:
    """An mm image with these mappings [start, end)."""
    vmas = [message((1, a), (2, b), (3, 0), (4, 0), (5, 3), (6, flags), (7, 0), (8, 1), (9, madv)) for a, b in mappings]
    return image_file(MM_MAGIC, [message((1, 1), *((14, vma) for vma in vmas))])


def write_images(
    where: Path,
    mappings: Sequence[tuple[int, int]],
    pages: Sequence[tuple[int, int]],
    *,
    pid: int = PID,
    pages_id: int = 1,
    madv: int = 0,
) -> Path:
    """A CRIU image directory of one process: `mappings` are [start, end), `pages` are (vaddr, pages), all lazy."""
    where.mkdir(exist_ok=True)
    (where / f"mm-{pid}.img").write_bytes(mm(mappings, madv=madv))
    (where / f"pagemap-{pid}.img").write_bytes(pagemap([(v, n, 6) for v, n in pages], pages_id))
    with (where / f"pages-{pages_id}.img").open("wb") as file:
        for vaddr, count in pages:
            file.writelines(page_bytes(vaddr + at * PAGE) for at in range(count))
    return where


class Program:
    """A process with registered regions; `run` executes a line of Python in it and gives the value back."""

    def __init__(self, workdir: Path, mappings: Sequence[tuple[int, int]], *, pid: int = PID) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("pager_program.py")), str(workdir), str(pid), repr(mappings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "connected"

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return ast.literal_eval(self.process.stdout.readline() or "'it died'")

    def run(self, line: str) -> Any:
        self.send(line)
        return self._answer()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
