"""What is put right in CRIU's images on their way to `criu restore`; called by stage_images.py.

Each is a fault of CRIU (or a thing it cannot know) that would lose the program, and that its images allow to mend. What
the repository has stays as CRIU wrote it, so that a later CRIU, or a later ijfs, finds what there was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ijfs.live.criu import posix_timers, reservations, shared_files, siblings, timerfd
from ijfs.live.criu.image_format import parse_threads
from ijfs.live.process.timers import NotifiedThread


class Noted(NamedTuple):
    """What is known that the images do not say."""

    stored_ns: int = 0
    """For how long it was stored: from its freeze to the beginning of the present second (timerfd.py)."""
    timers: Sequence[NotifiedThread] = ()
    shared: Sequence[str] = ()
    """Folders whose files others may have changed since (shared_files.py)."""


NOTHING = Noted()


class _Machine(NamedTuple):
    """What the mending of an image looks at beside it."""

    threads: Mapping[int, frozenset[int]]
    timers: Mapping[int, Mapping[int, int]]
    most: int | None
    stored_ns: int
    shared: Sequence[str]


def mended(images: Mapping[str, bytes], noted: Noted = NOTHING) -> dict[str, bytes]:
    """The small images of a snapshot, by name, as CRIU is to read them now. CorruptError."""
    timers: dict[int, dict[int, int]] = {}
    for pid, timer, thread in noted.timers:
        timers.setdefault(pid, {})[timer] = thread
    threads = parse_threads("pstree.img", images.get("pstree.img", b""))
    machine = _Machine(threads, timers, reservations.mappable_bytes(), noted.stored_ns, noted.shared)
    return {name: _mended(name, data, machine) for name, data in images.items()}


def _mended(name: str, data: bytes, machine: _Machine) -> bytes:
    if name == "files.img":
        return shared_files.unchecked(timerfd.rewind(data, machine.stored_ns), machine.shared)
    if name == "pstree.img":
        return siblings.in_order(name, data)
    if name.startswith("core-"):
        pid = name.removeprefix("core-").removesuffix(".img")
        if not pid.isdecimal():
            return data
        threads, noted = machine.threads.get(int(pid), frozenset()), machine.timers.get(int(pid))
        return posix_timers.with_known_threads(name, data, threads, noted)
    if name.startswith("mm-") and machine.most is not None:
        return reservations.without_accounting(name, data, machine.most)
    return data
