"""What is put right in CRIU's images on their way to `criu restore`; called by stage_images.py.

Each is a fault of CRIU (or a thing it cannot know) that would lose the program, and that its images allow to mend. What
the repository has stays as CRIU wrote it, so that a later CRIU, or a later ijfs, finds what there was.
"""

from __future__ import annotations

from collections.abc import Mapping

from ijfs.live.criu import posix_timers, reservations, timerfd
from ijfs.live.criu.image_format import parse_threads


def mended(images: Mapping[str, bytes]) -> dict[str, bytes]:
    """The small images of a snapshot, by name, as CRIU is to read them. CorruptError."""
    threads = parse_threads("pstree.img", images.get("pstree.img", b""))
    most = reservations.mappable_bytes()
    return {name: _mended(name, data, threads, most) for name, data in images.items()}


def _mended(name: str, data: bytes, threads: Mapping[int, frozenset[int]], most: int | None) -> bytes:
    if name == "files.img":
        return timerfd.rewind(data)
    if name.startswith("core-"):
        pid = name.removeprefix("core-").removesuffix(".img")
        return (
            posix_timers.with_known_threads(name, data, threads.get(int(pid), frozenset())) if pid.isdecimal() else data
        )
    if name.startswith("mm-") and most is not None:
        return reservations.without_accounting(name, data, most)
    return data
