"""Which of the host's mounts a sandbox gets beside the root, and where their files go in a snapshot.

An overlay over `/` shows only the root filesystem: /home or /data on a disk of its own would be empty inside. Each real
mount of the host becomes a Volume, and so does a working directory that the sandbox's own /tmp would hide. Called by
rootfs.py (mounting), sandbox.py (choosing), checkpoint/workspace.py (saving).

In a snapshot every volume's files are under `files/` at the volume's path, as a person would look for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ijfs.live.model.records import Volume

# Filesystems of the kernel's own and in memory: nobody keeps files there. The sandbox has its own of those it needs.
_PSEUDO = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs", "securityfs", "selinuxfs"),
        *("sysfs", "tmpfs", "tracefs"),
    )
)

# Directories that every sandbox has of its own; the last three are on its overlay and begin empty.
OWN = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp")


class HostMount(NamedTuple):
    """A line of /proc/self/mountinfo."""

    path: Path
    kind: str


def host_mounts(mountinfo: str) -> list[HostMount]:
    """The mounts of a mountinfo file that hold files, parents before children. A mount that a later one hides is there
    too: in the sandbox both are mounted again, and the later one hides it as on the host."""
    found: dict[Path, HostMount] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        path = Path(
            left.split()[4].encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")
        )
        kind = right.split()[0]
        # A FUSE mount has a program behind it that may hang; `fuseblk` is a disk (ntfs-3g) and stays.
        if kind not in _PSEUDO and kind != "fuse" and not kind.startswith("fuse."):
            found[path] = HostMount(path, kind)
        else:
            found.pop(path, None)
    return sorted(found.values(), key=lambda mount: (len(mount.path.parts), mount.path))


def is_below(path: Path, parents: Iterable[str | Path]) -> bool:
    """Whether the path is one of `parents` or lies in one."""
    return any(path == Path(parent) or Path(parent) in path.parents for parent in parents)


def choose(
    cwd: str, repo: Path, mountinfo: str, needs: Iterable[Path] = ()
) -> tuple[tuple[Volume, ...], tuple[Path, ...]]:
    """(volumes of a sandbox, files to be copied into it because they are mounts of their own), for a program to start.

    `needs` are directories that the program cannot do without, as it cannot without `cwd`. Those that the sandbox's own
    /tmp would hide become volumes: at the path given, and, where that leads through links, at the real path as well.
    Files have to be copied because containers bind single ones such as /etc/resolv.conf, and no overlay stands on a
    file.
    """
    directories: list[Path] = []
    files: list[Path] = []
    for mount in host_mounts(mountinfo):
        hidden = mount.path == Path("/") or is_below(mount.path, OWN) or is_below(mount.path, [repo])
        if not hidden:
            (directories if mount.path.is_dir() else files).append(mount.path)
    wanted = (Path(cwd), *needs)
    for path in sorted({Path(os.path.abspath(path)) for path in wanted} | {path.resolve() for path in wanted}):
        hidden = is_below(path, OWN[3:]) and path.is_dir() and path not in map(Path, OWN)
        if hidden and not is_below(path, directories):
            directories.append(path)
    volumes = tuple(Volume(f"v{number}", str(path)) for number, path in enumerate(directories))
    return volumes, tuple(files)
