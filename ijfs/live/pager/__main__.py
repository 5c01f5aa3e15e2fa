"""The pager process: `python -m ijfs.live.pager FD`. Started by `ijfs.live.pager.api`, never by a person.

FD is its end of the socketpair to the keeper. Everything is imported first; what to do comes as the first message,
`begin`, so that a keeper can start a pager long before it knows (an interpreter and the engine take 0.1 s to load):

    images     directory of CRIU images, or
    repo, snapshot   a repository and the id of a snapshot in it
    order      file with the recorded order; record: file to write one to
    delay_s    seconds to wait before each fetch (tests and benchmarks)
    adopt      true for a replacement; the things held follow as messages
    and, as file descriptor, the listening lazy-pages.socket where CRIU has not connected yet
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from ijfs.live.pager import order, warden
from ijfs.live.pager.channel import Channel
from ijfs.live.pager.engine_source import EngineFiles
from ijfs.live.pager.server import Server
from ijfs.live.pager.source import CriuImages, DirectoryFiles
from ijfs.live.pager.warden import Roster


def main(fd: int) -> int:
    """Wait for `begin`, then serve. The exit status: 0 when everything is in or nothing was asked."""
    sys.setswitchinterval(0.0005)  # a decompressing thread hands the copying one the interpreter ten times sooner
    channel = Channel(socket.socket(fileno=fd))
    message = channel.receive(None)
    if message is None:
        return 0
    config, fds = message
    roster = Roster()
    return warden.run(lambda successor: _work(config, fds, channel, roster, successor), {fd, *fds}, roster)


def _work(config: dict[str, Any], fds: list[int], channel: Channel, roster: Roster, successor: bool) -> int:
    threading.excepthook = _end
    source, pids = _source(config)
    server = Server(
        source,
        channel,
        socket.socket(fileno=fds[0]) if fds and not successor else None,
        roster=roster,
        touched=_touched(config.get("order")),
        record=Path(config["record"]) if "record" in config else None,
    )
    server.prepare(pids)
    if successor:
        server.succeed()
    elif config.get("adopt"):
        server.adopt()
    return server.run()


def _end(failure: threading.ExceptHookArgs) -> None:
    """A thread that fails takes the worker with it: its successor begins in a known state."""
    sys.excepthook(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    os.kill(os.getpid(), signal.SIGKILL)


def _touched(path: str | None) -> list[order.Touched]:
    try:
        return order.decode(Path(path).read_bytes()) if path is not None else []
    except OSError:
        return []


def _source(config: dict[str, Any]) -> tuple[CriuImages, list[int]]:
    delay_s = float(config.get("delay_s", 0.0))
    files: EngineFiles | DirectoryFiles
    if "repo" in config:
        files = EngineFiles(Path(config["repo"]), bytes.fromhex(config["snapshot"]), delay_s=delay_s)
    else:
        files = DirectoryFiles(Path(config["images"]), delay_s)
    return CriuImages(files), files.pids()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
