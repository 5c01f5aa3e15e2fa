"""The process behind `ijfs mount`: serves one repository at one mount point until it is unmounted or told to end.

`ijfs.fs.mountpoint` starts it (`python -m ijfs.fs.daemon`) and waits for one line of JSON on `--ready-fd`: an empty
object when the filesystem answers, or the error. Its stdout and stderr are a log file. In the foreground the same
`serve` runs in the caller's process.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import trio

from ijfs.fs.operations import NodeOperations
from ijfs.fs.serve import mounted
from ijfs.fs.vfs import repository_root
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError

_log = logging.getLogger("ijfs.fs")

# Decoded chunks kept for the readers of one mount; the kernel's page cache holds what is read again.
CACHE_BYTES = 256 << 20

# How often packs that gc has removed are looked for among those that are open.
REMOVED_S = 15.0

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def log_to_stderr() -> None:
    """Have this process write what `serve` reports to its stderr, a line each."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


async def serve(
    repository: Path, mountpoint: Path, *, allow_other: bool = False, ready: Callable[[], None] = lambda: None
) -> None:
    """Mount `repository` at `mountpoint`, call `ready` when it answers, and serve until it is unmounted or one of
    STOP_SIGNALS comes; then it is unmounted. NoRepositoryError, UnknownFormatError, StorageError."""
    with (
        Repository.open(repository) as opened,
        closing(opened.reader(cache_bytes=CACHE_BYTES)) as reader,
        trio.open_signal_receiver(*STOP_SIGNALS) as signals,
    ):
        operations = NodeOperations(repository_root(opened, reader), statfs=lambda: os.statvfs(repository))
        async with mounted(operations, mountpoint, source=os.fspath(repository), allow_other=allow_other) as gone:
            ready()
            _log.info("mounted %s at %s", repository, mountpoint)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
                nursery.start_soon(_let_go_of_removed, opened)
                await gone.wait()
                nursery.cancel_scope.cancel()
    _log.info("unmounted %s", mountpoint)


async def _let_go_of_removed(repository: Repository) -> None:
    """What gc removes is free when the last one closes it, and a mount that nobody reads stays open for days."""
    while True:
        await trio.sleep(REMOVED_S)
        repository.forget_removed()


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        _log.info("told to stop by %s", signal.Signals(number).name)
        scope.cancel()


def run(argv: list[str]) -> int:
    """The background process: serve, and tell the parent over `--ready-fd` how it went."""
    parser = argparse.ArgumentParser(prog="ijfs.fs.daemon")
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--mountpoint", type=Path, required=True)
    parser.add_argument("--allow-other", action="store_true")
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args(argv)
    log_to_stderr()
    # Not for fusermount3, which stays for as long as the mount does: the parent waits for the end of what it reads.
    os.set_inheritable(arguments.ready_fd, False)

    def answer(message: dict[str, str | None]) -> None:
        with open(arguments.ready_fd, "w") as parent:
            json.dump(message, parent)

    def ready() -> None:
        # What is loaded by now stays; looking through it again and again only costs.
        gc.freeze()
        answer({})

    try:
        trio.run(
            lambda: serve(arguments.repository, arguments.mountpoint, allow_other=arguments.allow_other, ready=ready)
        )
    except IjfsError as error:
        answer({"error": str(error), "hint": error.hint, "type": type(error).__name__})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
