"""A pyfuse3 mount from its first to its last moment, for whoever serves nodes: `ijfs.fs.daemon`, `ijfs.fs.image_mount`.

It is set up for how this filesystem is read, ends when it is unmounted from outside, and takes the mount down when its
body ends, is cancelled or fails, so that no dead mount point is left behind.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pyfuse3
import trio

from ijfs.fs.mountinfo import find_mount
from ijfs.fs.operations import NodeOperations
from ijfs_engine.errors import StorageError

# With one task (pyfuse3's default) a request waits for the one before it to be answered before it is even read from the
# kernel; random 4 KiB reads doubled with 8, and did not gain from more.
MIN_TASKS = 8

# Sequential reads through the page cache come in pieces of this size: 1 MiB is what the kernel sends at most.
READ_AHEAD_KB = 1024

FILESYSTEM_TYPE = "ijfs"


@asynccontextmanager
async def mounted(
    operations: NodeOperations,
    mountpoint: Path,
    *,
    source: str,
    allow_other: bool = False,
    auto_unmount: bool = True,
) -> AsyncIterator[trio.Event]:
    """Serve `operations` at `mountpoint`, read-only; the event it yields is set when something outside unmounted it.

    `source` is what `mount` and /proc/self/mountinfo show of it. The calling trio loop serves the mount, so it must
    not touch it by a blocking call. `auto_unmount` leaves a fusermount3 with the mount that takes it away when this
    process dies, and stays until then; a mount in a namespace of its own goes with that. StorageError where the
    kernel or fusermount3 refuses.
    """
    options = {"ro", "default_permissions", f"fsname={_escaped(source)}", f"subtype={FILESYSTEM_TYPE}"}
    if auto_unmount:
        options.add("auto_unmount")
    if allow_other:
        options.add("allow_other")
    try:
        pyfuse3.init(operations, str(mountpoint), options)
    except RuntimeError as error:
        raise StorageError(
            f"cannot mount at {mountpoint}: {error}",
            hint="`ijfs doctor` checks /dev/fuse and fusermount3; the lines above this one are theirs",
        ) from error
    try:
        async with _served(mountpoint) as unmounted:
            yield unmounted
    finally:
        # Lazily: a program that still stands in it keeps what it has open and gets ENOTCONN from then on.
        pyfuse3.close(unmount=True)


@asynccontextmanager
async def _served(mountpoint: Path) -> AsyncIterator[trio.Event]:
    unmounted = trio.Event()

    async def serve() -> None:
        try:
            await pyfuse3.main(min_tasks=MIN_TASKS)
        finally:
            unmounted.set()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        # In a thread, as it is this loop that answers; any answer tells that the kernel and we have agreed.
        await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
        await trio.to_thread.run_sync(_raise_read_ahead, mountpoint)
        try:
            yield unmounted
        except Exception as error:
            failure = error
        finally:
            if not unmounted.is_set():
                pyfuse3.terminate()
    # Out here, so that the body's error reaches its caller as it was and not in a group of one.
    if failure is not None:
        raise failure


def _raise_read_ahead(mountpoint: Path) -> None:
    """Only after the first answer: what the kernel agrees with the daemon at the start can only lower the value."""
    mount = find_mount(mountpoint)
    if mount is None:
        return
    with suppress(OSError):  # not root, or no sysfs: slower sequential reads, nothing else
        Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(str(READ_AHEAD_KB))


def _escaped(source: str) -> str:
    """libfuse splits its options at commas and takes a backslash as an escape."""
    return source.replace("\\", "\\\\").replace(",", "\\,")
