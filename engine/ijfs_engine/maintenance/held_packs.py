"""Who holds packs open that gc has removed: until they are closed, what they take up is not free.

gc tells of it. What /proc shows depends on who asks: another user's processes are not seen without root.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine.errors import IjfsError
from ijfs_engine.format.records import Holder
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, decode_pack_header

_REMOVED: Final = re.compile(r"/[0-9a-f]{8}\.pack \(deleted\)$")


class _OpenFile(NamedTuple):
    pid: int
    inode: int
    size: int


def holders(repository: RepositoryDirectory) -> list[Holder]:
    """Processes with removed packs of this repository, the one that holds most first."""
    device = repository.packs.stat().st_dev
    files: dict[int, dict[int, int]] = defaultdict(dict)
    for file in _removed_packs(device, repository.id):
        files[file.pid][file.inode] = file.size
    found = [Holder(pid, _name(pid), len(sizes), sum(sizes.values())) for pid, sizes in files.items()]
    return sorted(found, key=lambda holder: -holder.bytes)


def _removed_packs(device: int, repository: bytes) -> Iterator[_OpenFile]:
    for process in filter(str.isdecimal, os.listdir("/proc")):
        # It may end meanwhile, or be somebody else's.
        with suppress(OSError):
            # Names as they are: a Path for each took as long as all else, where a machine has thousands.
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    name = f"/proc/{process}/fd/{descriptor}"
                    if _REMOVED.search(os.readlink(name)):
                        yield from _if_of(Path(name), int(process), device, repository)


def _if_of(descriptor: Path, pid: int, device: int, repository: bytes) -> Iterator[_OpenFile]:
    """The file, if it is of this repository: paths do not tell, since a keeper sees other mounts."""
    status = descriptor.stat()
    if status.st_dev != device or status.st_nlink:
        return
    with descriptor.open("rb", buffering=0) as file:
        head = file.read(PACK_HEADER_SIZE) or b""
    with suppress(IjfsError):
        if decode_pack_header(head, descriptor)[2] == repository:
            yield _OpenFile(pid, status.st_ino, status.st_blocks * 512)


def _name(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return " ".join(words.split()[:6]) or Path(f"/proc/{pid}/comm").read_text().strip()
    return "a process that has ended"
