"""Which of the host's mounts a sandbox gets beside the root, and where their files go in a snapshot.

An overlay over `/` shows only the root filesystem: /home or /data on a disk of its own would be empty inside. Each real
mount of the host becomes a Volume, /tmp too where it is one, and so does a working directory below /tmp or /run. Called
by rootfs.py (mounting), sandbox.py (choosing), checkpoint/workspace.py (saving).

In a snapshot every volume's files are under `files/` at the volume's path, as a person would look for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ijfs.live.model.records import Volume, VolumeKind
from ijfs.live.sandbox.lower import inside
from ijfs.live.sandbox.scratch import SCRATCH

# Filesystems of the kernel's own and in memory: nobody keeps files there. The sandbox has its own of those it needs.
_PSEUDO = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs", "securityfs", "selinuxfs"),
        *("sysfs", "tmpfs", "tracefs"),
    )
)

# Directories of which every sandbox has its own. The last three are on its overlays: /run begins empty, and in /tmp and
# /var/tmp, where nobody looks for what is to be kept, the host's files are below what the program writes.
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
        path = _mount_path(line)
        kind = line.partition(" - ")[2].split()[0]
        # A FUSE mount has a program behind it that may hang; `fuseblk` is a disk (ntfs-3g) and stays.
        if kind not in _PSEUDO and kind != "fuse" and not kind.startswith("fuse."):
            found[path] = HostMount(path, kind)
        else:
            found.pop(path, None)
    return sorted(found.values(), key=lambda mount: (len(mount.path.parts), mount.path))


def mount_points() -> list[Path]:
    """Every mount point of this process's mount namespace, whatever is mounted there."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return sorted({_mount_path(line) for line in lines})


def kind_at(path: Path) -> str:
    """The filesystem that a path lies on, by its name in mountinfo (`overlay`, `ext4`, …)."""
    path = path.resolve()
    kind, deepest = "", -1
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        mount = _mount_path(line)
        if is_below(path, [mount]) and len(mount.parts) >= deepest:
            kind, deepest = line.partition(" - ")[2].split()[0], len(mount.parts)
    return kind


def is_layered(kind: str) -> bool:
    """Whether that filesystem shows files of others, so that no overlay of ours may stand on it: files that a program
    maps would belong to a mount that is nowhere listed, and CRIU cannot save it."""
    return kind in ("overlay", "aufs", "unionfs") or kind.startswith("fuse.")


def _mount_path(line: str) -> Path:
    """The mount point of a line of mountinfo, which has its spaces and the like in octal."""
    text = line.partition(" - ")[0].split()[4].encode(errors="surrogateescape")
    return Path(text.decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape"))


def is_below(path: Path, parents: Iterable[str | Path]) -> bool:
    """Whether the path is one of `parents` or lies in one."""
    return any(path == Path(parent) or Path(parent) in path.parents for parent in parents)


def choose(
    cwd: str,
    repo: Path,
    mountinfo: str,
    needs: Iterable[Path] = (),
    *,
    below: Path = Path("/"),
    given: Mapping[str, VolumeKind] = MappingProxyType({}),
) -> tuple[tuple[Volume, ...], tuple[Path, ...]]:
    """(volumes of a sandbox, files to be copied into it because they are mounts of their own), for a program to start.

    `needs` are directories that the program cannot do without, as it cannot without `cwd`. Those below /tmp and /run
    become volumes, for what is written there is no scratch and may be adopted: at the path given, and, where that leads
    through links, at the real path as well. So do those that the root `below` has not got (a base of another system).
    `given` are folders of the host that it gets as they are (host_folders.py), and what they are to be.
    Files have to be copied because containers bind single ones such as /etc/resolv.conf, and no overlay stands on a
    file.
    """
    directories = [Path(path) for path in given]
    files: list[Path] = []
    for mount in host_mounts(mountinfo):
        hidden = mount.path == Path("/") or is_below(mount.path, OWN) or is_below(mount.path, [repo])
        if not hidden and str(mount.path) not in given:
            (directories if mount.path.is_dir() else files).append(mount.path)
    wanted = (Path(cwd), *needs)
    for path in sorted({Path(os.path.abspath(path)) for path in wanted} | {path.resolve() for path in wanted}):
        absent = is_below(path, OWN[3:]) or inside(below, str(path)) is None
        hidden = absent and path.is_dir() and path not in map(Path, OWN)
        if hidden and not is_below(path, directories):
            directories.append(path)
    scratch = _scratch_mounts(mountinfo) if below == Path("/") else []
    directories = [*(path for path in scratch if path not in directories), *directories]
    kinds = ((str(path), given.get(str(path), "overlay")) for path in directories)
    return tuple(Volume(f"v{number}", path, kind) for number, (path, kind) in enumerate(kinds)), tuple(files)


def _scratch_mounts(mountinfo: str) -> list[Path]:
    """Scratch directories that are mounts of their own, mostly in memory, and that an overlay may stand on."""
    kinds = {_mount_path(line): line.partition(" - ")[2].split()[0] for line in mountinfo.splitlines()}
    found = [Path(path) for path in SCRATCH if Path(path) in kinds]
    return [path for path in found if not is_layered(kinds[path]) and path.resolve() == path]
