"""The pager process: `python -m ijfs.live.pager '{json}'`. Started by `ijfs.live.pager.api`, never by a person.

The one argument says where the bytes are and which inherited file descriptors to use:

    images     directory of CRIU images, or
    repo, snapshot   a repository and the id of a snapshot in it
    channel    fd: this end of the socketpair to the keeper
    listener   fd of the listening lazy-pages.socket, or absent for a replacement
    order      file with the recorded order; record: file to write one to
    delay_s    seconds to wait before each fetch (tests and benchmarks)
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any


def main(argument: str) -> int:
    config: dict[str, Any] = json.loads(argument)
    sys.setswitchinterval(0.0005)  # a decompressing thread hands the copying one the interpreter ten times sooner

    from ijfs.live.pager import order
    from ijfs.live.pager.channel import Channel
    from ijfs.live.pager.server import Server

    source, pids = _source(config)
    listener = socket.socket(fileno=config["listener"]) if "listener" in config else None
    touched = []
    if "order" in config and os.path.exists(config["order"]):
        touched = order.decode(Path(config["order"]).read_bytes())
    server = Server(
        source,
        Channel(socket.socket(fileno=config["channel"])),
        listener,
        touched=touched,
        record=Path(config["record"]) if "record" in config else None,
    )
    server.prepare(pids)
    if config.get("adopt"):
        server.adopt()
    return server.run()


def _source(config: dict[str, Any]) -> tuple[Any, list[int]]:
    from ijfs.live.pager.source import CriuImages, DirectoryFiles

    delay_s = float(config.get("delay_s", 0.0))
    if "images" in config:
        files = DirectoryFiles(Path(config["images"]), delay_s)
    else:
        raise NotImplementedError
    return CriuImages(files), files.pids()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
