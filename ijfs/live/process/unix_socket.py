"""Unix sockets that only their owner may reach, at paths of any length."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ijfs.live.model.paths import short_path


def bound(path: Path) -> socket.socket:
    """A stream socket at a path where nothing is, 0600; to listen is the caller's. OSError.

    For a process with one thread, or one whose other threads make no files: their permissions are the umask's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with short_path(path) as name:
            sock.bind(name)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock
