"""A sandbox's filesystems: an overlay over the host's root, an own /dev and /dev/shm; made in the keeper's mounts.

The keeper has a mount namespace of its own, so nothing here is seen on the host, and all of it is gone with the last
process that uses it. Starting (init.py) and restoring (checkpoint/restore.py) build the same tree, so that what CRIU
wrote down fits what it finds: the overlay is CRIU's --root, /dev and /dev/shm are mounts it is told of (EXTERNAL).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from ijfs.live.errors import SandboxError
from ijfs.live.model.paths import RUN_INSIDE, OverlayDirectories, SandboxPaths
from ijfs.live.model.records import Volume
from ijfs.live.sandbox import disk, scratch
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.volumes import mount_points
from ijfs_engine.errors import StorageError, is_of_a_disk

# FACTS of the filesystem layer: without `index` hard links split at copy-up; without `nfs_export` CRIU cannot resolve
# the file handles of inotify watches; `redirect_dir=nofollow`, because the other two need it.
OVERLAY_OPTIONS = "index=on,nfs_export=on,redirect_dir=nofollow"

# Empty at the start, and on the overlay as the scratch directories are (not tmpfs): so it is saved as files, and only
# what changed is stored. CRIU would tar and gzip a tmpfs while the program stands still.
RUN_MODE = 0o755

OPAQUE = "trusted.overlay.opaque"

# Mounts of every sandbox that CRIU is told of: key, and where it is inside. Volumes come on top (external_mounts).
EXTERNAL = {"dev": "/dev", "shm": "/dev/shm"}

# name: (mode, major, minor); <linux/major.h>, Documentation/admin-guide/devices.txt
DEVICES = {
    "null": (0o666, 1, 3),
    "zero": (0o666, 1, 5),
    "full": (0o666, 1, 7),
    "random": (0o666, 1, 8),
    "urandom": (0o666, 1, 9),
    "tty": (0o666, 5, 0),
}
OTHER_NAMES = ("ptmx", "pts", "shm")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


def make_directories(paths: SandboxPaths, volumes: Sequence[Volume]) -> None:
    """The directories everything else goes into."""
    for path in (paths.upper, paths.work, paths.dev, paths.shm, paths.mountpoint, paths.criu):
        path.mkdir(parents=True, exist_ok=True)
    paths.upper.chmod(0o755)
    for volume in volumes:
        of_volume = paths.volume(volume.key)
        for path in (of_volume.upper, of_volume.work, of_volume.mountpoint):
            path.mkdir(parents=True, exist_ok=True)


def prepare_upper(
    paths: SandboxPaths, volumes: Sequence[Volume] = (), copies: Sequence[Path] = (), *, lower: Path = Path("/")
) -> None:
    """A new program's writable layer: scratch directories, a /run of its own, mount points, single files."""
    make_directories(paths, volumes)
    hidden = ["/run", *(name for name in scratch.SCRATCH if not _shows_scratch(Path(name), lower))]
    for name, mode in {"/run": RUN_MODE, **dict.fromkeys(scratch.SCRATCH, scratch.MODE)}.items():
        _make_directory(paths, name, mode, opaque=name in hidden)
        if name not in hidden:
            scratch.hide_running(Path(name), paths.upper / name.lstrip("/"))
    if (paths.upper / "var").exists():
        (paths.upper / "var").chmod(0o755)
    (paths.upper / RUN_INSIDE.lstrip("/")).mkdir(exist_ok=True)
    for volume in volumes:
        upper = paths.volume(volume.key).upper
        _make_way(paths, Path(volume.path), hidden)
        if volume.kind == "overlay":
            _look_alike(Path(volume.path), upper)
            if volume.path in scratch.SCRATCH:
                scratch.hide_running(Path(volume.path), upper)
    for path in copies:
        target = paths.upper / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        _look_alike(path, target)


def _make_way(paths: SandboxPaths, volume: Path, hidden: Sequence[str]) -> None:
    """Directories of the host's that lead to a volume in a directory of the sandbox's own, which is empty: with the
    host's owners and modes, because who may not go there on the host may not in a sandbox."""
    for path in reversed(volume.parents):
        target = paths.upper / str(path).lstrip("/")
        if not target.exists() and any(Path(name) in path.parents for name in hidden) and path.is_dir():
            target.mkdir()
            _look_alike(path, target)


def _look_alike(source: Path, target: Path) -> None:
    """Times, mode, attributes, and the owner."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)


def _make_directory(paths: SandboxPaths, name: str, mode: int, *, opaque: bool) -> None:
    """A directory of the root's writable layer; an opaque one begins empty, whatever lies below. One that an ended
    program has left stays as it is."""
    path = paths.upper / name.lstrip("/")
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    if opaque:
        os.setxattr(path, OPAQUE, b"y")


def _shows_scratch(path: Path, lower: Path) -> bool:
    """Whether the root's overlay can show the host's files of a scratch directory: not those of a mount of its own,
    which is a volume, not through a link, and not on a base."""
    is_of_the_root = path not in mount_points() and path.is_dir() and path.resolve() == path
    return lower == Path("/") and is_of_the_root


def mount_root(
    paths: SandboxPaths,
    volumes: Sequence[Volume] = (),
    *,
    gpu: bool = False,
    lower: Path = Path("/"),
    fill_dev: Callable[[Path], None] = lambda dev: None,
) -> None:
    """Mount the overlays, /dev and /dev/shm of a sandbox in the calling process's mount namespace. `lower` is the root
    that it stands on; `fill_dev` puts into /dev what a program had there."""
    try:
        mount_overlay(lower, paths, paths.mountpoint, numbers=disk.keeps_numbers(paths))
        for volume in volumes:
            _mount_volume(paths, volume)
        mount_devices(paths, gpu=gpu, fill=fill_dev)
    except OSError as error:
        unmount_root(paths)
        if is_of_a_disk(error):
            raise StorageError.of("the sandbox's files cannot be mounted", error) from error
        raise SandboxError(f"the sandbox's files cannot be mounted: {error.strerror}", hint=_HINT) from error


def mount_overlay(lower: Path, layers: OverlayDirectories, target: Path, *, numbers: bool = False) -> None:
    """One overlay over a directory of the host. With `numbers`, what was written has the inode numbers of its own
    filesystem there. OSError."""
    options = f"lowerdir={_escape(lower)},upperdir={_escape(layers.upper)},workdir={_escape(layers.work)}"
    options += f",{OVERLAY_OPTIONS}{',xino=on' if numbers else ''}"
    ns.mount("overlay", target, "overlay", 0, options)


def _mount_volume(paths: SandboxPaths, volume: Volume) -> None:
    """A volume's overlay, or the directory that it is. For an overlay, a path this machine does not have is an empty
    directory below what was written there."""
    of_volume = paths.volume(volume.key)
    lower = Path(volume.path)
    if volume.kind != "overlay":
        ns.bind(of_volume.upper if volume.kind == "private" else lower, of_volume.mountpoint)
        if volume.kind == "readonly":
            ns.mount("none", of_volume.mountpoint, "", ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY)
        return
    if not lower.is_dir():
        lower = of_volume.root / "empty"
        lower.mkdir(exist_ok=True)
    mount_overlay(lower, of_volume, of_volume.mountpoint, numbers=disk.keeps_numbers(paths))


def require_folder(volume: Volume) -> None:
    """SandboxError where a folder of the host is not there that the program works in."""
    if volume.kind in ("shared", "bind", "readonly") and not Path(volume.path).is_dir():
        raise SandboxError(
            f"the folder {volume.path}, which the program works in, is not on this machine",
            hint="bring it back under this name, or mount what it was on",
        )


def overlay_fits(paths: SandboxPaths, volume: Volume) -> bool:
    """Whether an overlay can stand on the volume's filesystem; tried, because no list of filesystems is right."""
    try:
        _mount_volume(paths, volume)
    except OSError:
        return False
    ns.umount(paths.volume(volume.key).mountpoint)
    return True


def external_inside(volumes: Sequence[Volume]) -> dict[str, str]:
    """key → path inside, of every mount CRIU does not save."""
    return {**EXTERNAL, **{volume.key: volume.path for volume in volumes}}


def external_outside(paths: SandboxPaths, volumes: Sequence[Volume]) -> dict[str, Path]:
    """key → path in the keeper's mount namespace, of the same mounts."""
    own = {"dev": paths.dev, "shm": paths.shm}
    return {**own, **{volume.key: paths.volume(volume.key).mountpoint for volume in volumes}}


def mount_devices(paths: SandboxPaths, *, gpu: bool, fill: Callable[[Path], None] = lambda dev: None) -> None:
    """The sandbox's /dev (a tmpfs with the usual nodes, and what `fill` puts there before) and /dev/shm."""
    ns.mount("ijfs-dev", paths.dev, "tmpfs", ns.MS_NOSUID, "mode=755,size=1m")
    fill(paths.dev)
    old = os.umask(0)
    try:
        for name, (mode, major, minor) in DEVICES.items():
            os.mknod(paths.dev / name, stat.S_IFCHR | mode, os.makedev(major, minor))
        if gpu:
            _copy_gpu_nodes(paths.dev)
    finally:
        os.umask(old)
    for name, target in LINKS.items():
        (paths.dev / name).symlink_to(target)
    (paths.dev / "ptmx").symlink_to("pts/ptmx")
    (paths.dev / "pts").mkdir()
    (paths.dev / "shm").mkdir()
    ns.mount("ijfs-shm", paths.shm, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")


def _copy_gpu_nodes(dev: Path) -> None:
    for node in sorted(Path("/dev").glob("nvidia*")):
        if node.is_char_device():
            os.mknod(dev / node.name, stat.S_IFCHR | 0o666, node.stat().st_rdev)
    capabilities = Path("/dev/nvidia-caps")
    if capabilities.is_dir():
        (dev / "nvidia-caps").mkdir()
        for node in sorted(capabilities.iterdir()):
            os.mknod(dev / "nvidia-caps" / node.name, stat.S_IFCHR | 0o666, node.stat().st_rdev)


def unmount_root(paths: SandboxPaths) -> None:
    """Take the sandbox's mounts out of the calling process's mount namespace; a program that runs in it keeps them."""
    for path in ns.mounts_below(paths.root):
        ns.umount(path)


def _escape(path: Path) -> str:
    """Overlay options split at commas and colons."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


_HINT = (
    "the repository has to be on a filesystem an overlay can write to (ext4, xfs, btrfs, tmpfs; not another overlay or "
    "NFS); `ijfs doctor` checks it"
)
