"""The pager process: forked off a keeper that has just begun, or `python -m ijfs.live.pager FD` (`api.PagerProcess`).

FD is its end of the socketpair to the keeper. What to do comes as the first message, `messages.Begin`, so that there
can be a pager long before the keeper knows.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

from ijfs.live.pager import supervisor, working_set
from ijfs.live.pager.account import AccountBook
from ijfs.live.pager.channel import Channel
from ijfs.live.pager.engine_files import EngineFiles
from ijfs.live.pager.image_files import CriuImages, DirectoryFiles
from ijfs.live.pager.messages import Begin, Source
from ijfs.live.pager.server import Keep, Server
from ijfs.live.pager.shared import SharedBlocks
from ijfs.live.pager.supervisor import FdTable
from ijfs.live.pager.working_set import Touched
from ijfs_engine.errors import IjfsError


def main(fd: int, shared: SharedBlocks | None = None) -> int:
    """Wait for `begin`, then serve. The exit status: 0 when everything is in or nothing was asked."""
    sys.setswitchinterval(0.0005)  # a working thread hands the listening one the interpreter ten times sooner
    channel = Channel(socket.socket(fileno=fd))
    message = channel.receive(None)
    if message is None:
        return 0
    begin, fds = message
    if not isinstance(begin, Begin):
        raise TypeError(f"the first message is {begin!r}")
    fd_table = FdTable()
    return supervisor.run(
        lambda successor: _work(begin, fds, channel, fd_table, shared, successor),
        {fd, *fds, *(shared.descriptors if shared else ())},
        fd_table,
    )


def _work(
    begin: Begin,
    fds: list[int],
    channel: Channel,
    fd_table: FdTable,
    shared: SharedBlocks | None,
    successor: bool,
) -> int:
    threading.excepthook = _end
    source = begin.source
    files = _files(source)
    touched, keep = _working_set(source, files)
    server = Server(
        CriuImages(files),
        channel,
        socket.socket(fileno=fds[0]) if fds and not successor else None,
        fd_table=fd_table,
        book=AccountBook(Path(begin.account)),
        touched=touched,
        keep=keep,
        bulk=source.bulk,
        rest_after_s=source.rest_after_s,
        on_demand=source.on_demand,
        shared=shared,
        present_file=source.present,
    )
    server.prepare(files.pids())
    if successor:
        server.succeed()
    elif begin.adopt:
        server.adopt()
    return server.run()


def _end(failure: threading.ExceptHookArgs) -> None:
    """A thread that fails takes the worker with it: its successor begins in a known state."""
    sys.excepthook(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    os.kill(os.getpid(), signal.SIGKILL)


def _files(source: Source) -> EngineFiles | DirectoryFiles:
    if source.repo is not None and source.snapshot is not None:
        snapshot = bytes.fromhex(source.snapshot)
        return EngineFiles(Path(source.repo), snapshot, on_demand=source.on_demand, delay_s=source.delay_s)
    if source.images is None:
        raise ValueError("the source names neither a snapshot nor images")
    return DirectoryFiles(Path(source.images), source.delay_s or 0.0)


def _working_set(source: Source, files: EngineFiles | DirectoryFiles) -> tuple[list[Touched], Keep | None]:
    """The working set to replay, and what keeps one. Neither is worth a failure: a restore works as well without."""
    touched: list[Touched] = []
    keep: Keep | None = None
    if source.bulk:
        return touched, keep
    with contextlib.suppress(IjfsError, OSError):
        if source.order is not None:
            touched = working_set.decode(Path(source.order).read_bytes())
        elif isinstance(files, EngineFiles):
            touched = files.working_set()
    if source.keep_in is not None:
        keep = partial(working_set.write, Path(source.keep_in))
    elif isinstance(files, EngineFiles):
        keep = files.keep_working_set
    return touched, keep


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
