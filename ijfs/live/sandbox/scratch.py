"""The host's /tmp and /var/tmp in a sandbox: their files are seen like all others, and written over in its own layer.

What programs outside listen on or lock there is not seen. An overlay connects nobody to a socket of the host, and who
finds the lock file of a server that runs outside does not start: an X server, a database. Called by rootfs.py; which of
these directories are mounts of their own, volumes.py says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

SCRATCH = ("/tmp", "/var/tmp")
MODE = 0o1777

# Directories that hold sockets, and files that lock: of X and its fonts, tmux, systemd's services, snaps. None that
# somebody may have called so: a directory `ssh-keys` is a person's, and an agent's socket connects nobody anyway.
_OF_RUNNING_PROGRAMS = (".*-unix", ".X*-lock", "tmux-[0-9]*", "systemd-private-*", "snap-private-tmp")


def hide_running(host: Path, upper: Path) -> None:
    """Write into the layer over a scratch directory what takes the sockets and locks of the host from sight."""
    for name in _left_out(host):
        at = upper / name
        if not os.path.lexists(at):
            os.mknod(at, stat.S_IFCHR, os.makedev(0, 0))  # overlayfs's whiteout


def _left_out(host: Path) -> Iterator[str]:
    """Names there that belong to programs which run outside. A server's lock file begins with its socket's name."""
    with os.scandir(host) as entries:
        found = {entry.name: _is_socket(entry) for entry in entries}
    sockets = tuple(name for name, is_socket in found.items() if is_socket)
    for name in found:
        if (sockets and name.startswith(sockets)) or any(fnmatchcase(name, shape) for shape in _OF_RUNNING_PROGRAMS):
            yield name


def _is_socket(entry: os.DirEntry[str]) -> bool:
    """Also for a file that has gone meanwhile. What is known to be a file or directory is not asked for again."""
    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
        return False
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except OSError:
        return False
