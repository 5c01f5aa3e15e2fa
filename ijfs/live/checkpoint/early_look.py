"""What a save has to know of a program's files, found out while its memory is being taken: it stands still for both.

Made by freeze.py. CRIU opens its first image when it has stopped the whole program (collect_pstree), and from then on
nobody changes the program's files but CRIU itself, which may give deleted files another name; it says so in its images.
Leases are asked for beside: /proc/locks makes who reads it wait until every processor has passed by, some 10 ms.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from ijfs.live.checkpoint.workspace import LayerWalker, leased_in
from ijfs.live.criu.image_format import has_new_names
from ijfs.live.criu.image_stream import StreamCapture
from ijfs.live.process import procfs
from ijfs.live.process.descriptors import Leases

_REMAPPED = "remap-fpath.img"


class EarlyLook:
    """One look at the files, and one at the leases, in threads that end with the stream, if CRIU never begins."""

    def __init__(self, stream: StreamCapture, walker: LayerWalker, pid: int) -> None:
        self._stream = stream
        self._walker = walker
        self._pid = pid
        threads = ThreadPoolExecutor(2, thread_name_prefix="early-look")
        self._looked = threads.submit(self._look)
        self._leases = threads.submit(self._find_leases)
        threads.shutdown(wait=False)

    def end(self) -> None:
        """Wait for the look, when all images are here. What CRIU did to the files is looked at by `capture` itself."""
        self._looked.result()
        remapped = self._stream.files.get(_REMAPPED)
        if remapped is not None and has_new_names(_REMAPPED, b"".join(remapped.segments())):
            self._walker.forget_look()

    def leases(self) -> Leases:
        """Files of the program that are leased, waited for: for who has something to read. OSError."""
        return self._leases.result()

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # it was killed meanwhile
            if self._stream.wait_begun() and _stands_still(self._pid):
                self._walker.look()

    def _find_leases(self) -> Leases:
        return leased_in(self._pid) if self._stream.wait_begun() else {}


def _stands_still(pid: int) -> bool:
    """Whether every process of the program, and what was started beside it, is in CRIU's hands, or has ended."""
    members = procfs.processes_in("pid", procfs.namespace_id(pid, "pid"))
    return all(procfs.tracer(member) or procfs.state(member) in ("Z", "X", "") for member in members)
