"""The pager process: forked off a keeper that has just begun, or `python -m ijfs.live.pager FD` (`api.PagerProcess`).

FD is its end of the socketpair to the keeper. What to do comes as the first message, `begin`, so that there can be a
pager long before the keeper knows:

    images     directory of CRIU images, or
    repo, snapshot   a repository and the id of a snapshot in it; the order is recorded there and replayed from there
    order      file with an order to replay instead; record: file to record one in instead
    bulk       true where all memory is wanted before anything else (a GPU's driver is about to read the whole of it)
    rest_after_s   seconds, from the resume, in which only what faults and what was recorded is brought in
    account    the file of `account`, which is there already
    delay_s    seconds to wait before each fetch (tests and benchmarks)
    adopt      true for a replacement; the things held follow as messages
    and, as file descriptor, the listening lazy-pages.socket where CRIU has not connected yet
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
from typing import Any

from ijfs.live.pager import supervisor, working_set
from ijfs.live.pager.account import AccountBook
from ijfs.live.pager.channel import Channel
from ijfs.live.pager.engine_source import EngineFiles
from ijfs.live.pager.server import Keep, Server
from ijfs.live.pager.shared import SharedBlocks
from ijfs.live.pager.source import CriuImages, DirectoryFiles
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
    config, fds = message
    fd_table = FdTable()
    return supervisor.run(
        lambda successor: _work(config, fds, channel, fd_table, shared, successor),
        {fd, *fds, *(shared.descriptors if shared else ())},
        fd_table,
    )


def _work(
    config: dict[str, Any],
    fds: list[int],
    channel: Channel,
    fd_table: FdTable,
    shared: SharedBlocks | None,
    successor: bool,
) -> int:
    threading.excepthook = _end
    files = _files(config)
    touched, record = _working_set(config, files)
    server = Server(
        CriuImages(files),
        channel,
        socket.socket(fileno=fds[0]) if fds and not successor else None,
        fd_table=fd_table,
        book=AccountBook(Path(config["account"])),
        touched=touched,
        record=record,
        bulk=bool(config.get("bulk")),
        rest_after_s=float(config.get("rest_after_s", 0.0)),
        shared=shared,
    )
    server.prepare(files.pids())
    if successor:
        server.succeed()
    elif config.get("adopt"):
        server.adopt()
    return server.run()


def _end(failure: threading.ExceptHookArgs) -> None:
    """A thread that fails takes the worker with it: its successor begins in a known state."""
    sys.excepthook(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    os.kill(os.getpid(), signal.SIGKILL)


def _files(config: dict[str, Any]) -> EngineFiles | DirectoryFiles:
    if "repo" in config:
        return EngineFiles(Path(config["repo"]), bytes.fromhex(config["snapshot"]), delay_s=config.get("delay_s"))
    return DirectoryFiles(Path(config["images"]), config.get("delay_s", 0.0))


def _working_set(config: dict[str, Any], files: EngineFiles | DirectoryFiles) -> tuple[list[Touched], Keep | None]:
    """The order to replay, and where to record one. Neither is worth a failure: a restore works as well without."""
    touched: list[Touched] = []
    keep: Keep | None = None
    if config.get("bulk"):
        return touched, keep
    with contextlib.suppress(IjfsError, OSError):
        if "order" in config:
            touched = working_set.decode(Path(config["order"]).read_bytes())
        elif isinstance(files, EngineFiles):
            touched = files.working_set()
    if "record" in config:
        keep = partial(working_set.write, Path(config["record"]))
    elif isinstance(files, EngineFiles):
        keep = files.keep_working_set
    return touched, keep


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
