"""A mount being served: threads that take requests from /dev/fuse and write the replies. `ijfs.fs.serve` makes one.

The kernel wakes one waiting thread for each request. A handler may wait (for a disk, a decoder); the others go on.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ijfs.fs import wire

_log = logging.getLogger("ijfs.fs")

THREADS: Final = 8
"""Enough to keep two cores busy with decompression while others wait for the disk; more only adds memory."""
_END_S: Final = 10.0
"""How long a request may still take when the mount ends."""
_LOOK_S: Final = 0.01

Reply = bytes | bytearray | memoryview
Handler = Callable[[wire.Request, memoryview, bytearray], Reply | None]
"""Answers one request from its body; a large reply may be built in the thread's own buffer of MAX_READ bytes. None: no
reply is wanted. OSError: the errno is the answer."""


class Session:
    """The threads of one mount. `ended` is set when it was unmounted, from here or outside."""

    def __init__(self, fd: int, mountpoint: Path, handle: Handler) -> None:
        """Takes over the descriptor of /dev/fuse, and begins to answer."""
        self._fd = fd
        self._mountpoint = mountpoint
        self._handle = handle
        self._ending = False
        self._running = THREADS
        self._busy = [False] * THREADS
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"ijfs-fuse-{number}", daemon=True)
            for number in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def stop_threads(self) -> None:
        """Have the threads end while the mount is still there: a request for each is what wakes them. One that is not
        done in _END_S ends later."""
        self._ending = True
        # Any request ends a thread. Where one of somebody else's ends the last, ours waits until the device is closed.
        waking = threading.Thread(target=self._wake, name="ijfs-fuse-wake", daemon=True)
        waking.start()
        end = time.monotonic() + _END_S
        while waking.is_alive() and not self.ended.wait(_LOOK_S) and time.monotonic() < end:
            pass

    def _wake(self) -> None:
        for _ in self._threads:
            if self.ended.is_set():
                break
            with suppress(OSError):
                os.statvfs(self._mountpoint)

    def close(self) -> None:
        """Once it is unmounted: wait for what is being answered, and let go of the device.

        Where a mount namespace of somebody else has a copy of the mount, threads go on waiting for requests from there,
        until this process ends."""
        self.ended.set()
        end = time.monotonic() + _END_S
        while any(self._busy) and time.monotonic() < end:
            time.sleep(_LOOK_S)
        for thread in self._threads:
            thread.join(_LOOK_S)
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self._fd)

    def _serve(self, number: int) -> None:
        room = bytearray(wire.MAX_READ)
        try:
            while self._answer_one(number, room):
                self._busy[number] = False
        except BaseException:
            _log.exception("a thread of the mount ended")
        finally:
            self._busy[number] = False
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                self.ended.set()

    def _answer_one(self, number: int, room: bytearray) -> bool:
        """Take a request and answer it; whether there may be more for this thread."""
        try:
            data = os.read(self._fd, wire.REQUEST_ROOM)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return True  # who asked has gone
            if error.errno != errno.ENODEV:
                _log.warning("the mount's device cannot be read: %s", error)
            return False
        self._busy[number] = True
        request = wire.Request.parse(data)
        try:
            reply, code = self._handle(request, memoryview(data)[wire.HEADER_SIZE :], room), 0
        except OSError as error:
            reply, code = b"", error.errno or errno.EIO
        more = not self._ending
        if reply is not None:
            self._write(request.unique, code, reply)
        return more

    def _write(self, unique: int, code: int, reply: Reply) -> None:
        head = wire.REPLY.pack(wire.REPLY.size + len(reply), -code, unique)
        try:
            os.writev(self._fd, (head, reply))
        except OSError as error:
            # ENOENT: the request was interrupted. ENODEV: the mount is gone.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                _log.warning("a reply was refused: %s", error)
