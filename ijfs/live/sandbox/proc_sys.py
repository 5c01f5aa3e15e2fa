"""/proc/sys for CRIU where a container has it read-only; called by the keeper in its own mount namespace.

CRIU writes there as it restores: the next process id, limits of the ipc namespace, settings of the network namespace.
They are all of the sandbox's own namespaces, which only CRIU's processes are in.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ijfs.live.sandbox import namespaces as ns

PLACE = Path("/proc/sys")


def make_writable() -> None:
    """Take the read-only flag off, for this mount namespace alone, where that is allowed: not in every container is it,
    and CRIU's own sentence says so then."""
    if is_read_only():
        with contextlib.suppress(OSError):
            ns.mount("none", PLACE, "", ns.MS_BIND | ns.MS_REMOUNT | ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)


def is_read_only() -> bool:
    """Whether nothing can be set there."""
    return bool(os.statvfs(PLACE).f_flag & os.ST_RDONLY)
