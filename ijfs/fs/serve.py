"""A mount from its first to its last moment, for whoever serves nodes: `ijfs.fs.daemon`, `ijfs.fs.image_mount`.

It is set up for how this filesystem is read, ends when it is unmounted from outside, and takes the mount down when its
body ends, is cancelled or fails, so that no dead mount point is left behind.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from ijfs.fs.device import FuseMount, mount_directly, mount_for_users
from ijfs.fs.mountinfo import find_mount
from ijfs.fs.operations import NodeOperations
from ijfs.fs.session import Session

READ_AHEAD_KB: Final = 4096
"""Sequential reads through the page cache: four requests of 1 MiB, what the kernel sends at most, are under way."""


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

    `source` is what `mount` and /proc/self/mountinfo show of it. `auto_unmount` leaves a fusermount3 with the mount
    that takes it away when this process dies, and stays until then; without, root is needed, and a mount namespace that
    takes the mount along. StorageError where the kernel or fusermount3 refuses.
    """
    mount = await trio.to_thread.run_sync(_mount, mountpoint, source, allow_other, auto_unmount)
    session = Session(mount.fd, mountpoint, operations.handle)
    try:
        async with trio.open_nursery() as nursery:
            unmounted = trio.Event()
            nursery.start_soon(_tell, session, unmounted)
            # Any answer tells that the kernel and we have agreed.
            await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
            await trio.to_thread.run_sync(_raise_read_ahead, mountpoint)
            failure: Exception | None = None
            try:
                yield unmounted
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        # Out here, so that the body's error reaches its caller as it was and not in a group of one.
        if failure is not None:
            raise failure
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_end, mount, session)


def _mount(mountpoint: Path, source: str, allow_other: bool, auto_unmount: bool) -> FuseMount:
    if auto_unmount:
        return mount_for_users(mountpoint, source, allow_other=allow_other)
    return mount_directly(mountpoint, source)


async def _tell(session: Session, unmounted: trio.Event) -> None:
    await trio.to_thread.run_sync(session.ended.wait, abandon_on_cancel=True)
    unmounted.set()


def _end(mount: FuseMount, session: Session) -> None:
    if not session.ended.is_set():
        session.stop_threads()
    mount.unmount()
    session.close()


def _raise_read_ahead(mountpoint: Path) -> None:
    """Only after the first answer: what the kernel agrees with the daemon at the start can only lower the value."""
    found = find_mount(mountpoint)
    if found is None:
        return
    with suppress(OSError):  # not root, or no sysfs: slower sequential reads, nothing else
        Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").write_text(str(READ_AHEAD_KB))
