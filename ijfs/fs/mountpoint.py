"""Mounting and unmounting from the outside: what `ijfs mount` and `ijfs umount` call.

The filesystem itself runs in a process of its own (`ijfs.fs.daemon`). What is mounted where is asked of the kernel
(mountinfo: the type is `fuse.ijfs`, the source the repository), so no file can be wrong about it; only a daemon's pid
and log are kept, under the user's state directory.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import platformdirs

from ijfs.fs import mountinfo
from ijfs.fs.errors import MountBusyError, MountError, MountPointError, NotMountedError
from ijfs_engine import errors, make_directories
from ijfs_engine.errors import IjfsError

KIND = "fuse.ijfs"

# A cold start of the daemon takes 0.5 s here; on a busy machine ten times that.
START_TIMEOUT_S = 60.0
# What the daemon may still do after the mount is gone: end requests that read chunks.
STOP_TIMEOUT_S = 10.0

_MNT_DETACH = 2


@dataclass(frozen=True, slots=True)
class MountedRepository:
    """One mount of a repository: where, of which, and the daemon's pid if it runs (None: the mount is dead)."""

    mountpoint: Path
    repository: Path
    pid: int | None


def mount(repository: Path, mountpoint: Path, *, allow_other: bool = False) -> MountedRepository:
    """Mount in the background; returns when the filesystem answers. A dead mount of ours there is cleaned away first.

    MountPointError, MountError, and what opening the repository raises.
    """
    mountpoint = prepare(mountpoint)
    repository = repository.resolve()
    state = _State.of(mountpoint)
    make_directories(state.directory)
    process, answer = _start(repository, mountpoint, allow_other, state)
    if "error" in answer:
        process.wait()
        kind: type[IjfsError] = getattr(errors, answer.get("type") or "", MountError)
        raise kind(answer["error"] or "", hint=answer.get("hint"))
    state.pid_file.write_text(str(process.pid))
    # It outlives us on purpose, and is nobody's child to wait for then.
    process.returncode = 0
    return MountedRepository(mountpoint, repository, process.pid)


def prepare(mountpoint: Path) -> Path:
    """The absolute path of a directory that can be mounted on; clears a dead mount of ours. MountPointError."""
    _check_machine()
    mountpoint = mountpoint.parent.resolve() / mountpoint.name
    there = mountinfo.find_mount(mountpoint)
    if there is not None and there.kind == KIND:
        if not _is_dead(mountpoint):
            raise MountPointError(
                f"{mountpoint} already shows the repository {there.source}", hint=f"`ijfs umount {mountpoint}`"
            )
        _detach(mountpoint)
    try:
        with os.scandir(mountpoint) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        raise MountPointError(f"{mountpoint} does not exist", hint=f"mkdir {mountpoint}") from None
    except NotADirectoryError:
        raise MountPointError(f"{mountpoint} is not a directory") from None
    except OSError as error:
        raise MountPointError(f"{mountpoint} cannot be mounted on: {error.strerror}") from error
    if not empty:
        raise MountPointError(
            f"{mountpoint} is not empty", hint="choose an empty directory: a mount hides what is in it"
        )
    return mountpoint


def umount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Take a mount away and wait for its daemon to end. `lazy`: out of sight now, gone when the last user lets go.

    NotMountedError, MountBusyError (which names who uses it), MountError.
    """
    mountpoint = mountpoint.parent.resolve() / mountpoint.name
    there = mountinfo.find_mount(mountpoint)
    if there is None or there.kind != KIND:
        raise NotMountedError(f"no ijfs filesystem is mounted at {mountpoint}")
    state = _State.of(mountpoint)
    pid = state.running_pid()
    if lazy or _is_dead(mountpoint):
        _detach(mountpoint)
    else:
        _unmount(mountpoint)
    if pid is not None and not lazy:
        _end(pid)
    state.pid_file.unlink(missing_ok=True)


def mounts_of(repository: Path | None = None) -> list[MountedRepository]:
    """The mounts of one repository, or of all."""
    wanted = None if repository is None else str(repository.resolve())
    return [
        MountedRepository(mount.path, Path(mount.source), _State.of(mount.path).running_pid())
        for mount in mountinfo.mounts()
        if mount.kind == KIND and mount.source == (wanted or mount.source)
    ]


@dataclass(frozen=True, slots=True)
class _State:
    """Where a daemon's pid and log are kept: under a name made from the mount point."""

    mountpoint: Path
    directory: Path
    name: str

    @classmethod
    def of(cls, mountpoint: Path) -> _State:
        digest = hashlib.blake2b(os.fsencode(mountpoint), digest_size=8).hexdigest()
        return cls(mountpoint, platformdirs.user_state_path("ijfs") / "mounts", digest)

    @property
    def pid_file(self) -> Path:
        return self.directory / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def running_pid(self) -> int | None:
        """The daemon's pid if it still is that daemon."""
        with suppress(OSError, ValueError):
            pid = int(self.pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"ijfs.fs.daemon" in words and os.fsencode(self.mountpoint) in words:
                return pid
        return None


def _check_machine() -> None:
    if not Path("/dev/fuse").exists():
        raise MountError("this machine has no /dev/fuse", hint="`modprobe fuse`; for a container: `--device /dev/fuse`")
    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is missing", hint="install the package fuse3")


def _start(
    repository: Path, mountpoint: Path, allow_other: bool, state: _State
) -> tuple[subprocess.Popen[bytes], dict[str, str | None]]:
    """Start the daemon and hear what it says."""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "ijfs.fs.daemon", "--ready-fd", str(write_end)]
    command += ["--repository", os.fspath(repository), "--mountpoint", os.fspath(mountpoint)]
    command += ["--allow-other"] if allow_other else []
    with open(read_end, "rb") as answers, state.log.open("wb") as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[write_end],
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        if not select.select([answers], [], [], START_TIMEOUT_S)[0]:
            process.kill()
            process.wait()
            raise MountError(f"the filesystem did not answer within {START_TIMEOUT_S:.0f} s", hint=f"see {state.log}")
        answer = answers.read()
    if not answer:
        process.wait()
        raise MountError(f"the filesystem ended while it started: {_last_line(state.log)}", hint=f"see {state.log}")
    return process, json.loads(answer)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"


def _is_dead(mountpoint: Path) -> bool:
    """Whether the process behind a FUSE mount is gone. A live one answers; its answer does not matter.

    Not by stat: the kernel would answer that itself, from what it was told before.
    """
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _unmount(mountpoint: Path) -> None:
    result = subprocess.run(["fusermount3", "-u", os.fspath(mountpoint)], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    users = _users_of(mountpoint)
    if users or "busy" in result.stderr:
        named = ", ".join(users[:5]) or "a program of another user or namespace"
        raise MountBusyError(f"{mountpoint} is in use by {named}")
    raise MountError(f"cannot unmount {mountpoint}: {result.stderr.strip()}")


def _detach(mountpoint: Path) -> None:
    """Unmount lazily: never refused as busy."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(mountpoint), _MNT_DETACH) != 0:
            raise MountError(f"cannot unmount {mountpoint}: {os.strerror(ctypes.get_errno())}")
        return
    result = subprocess.run(["fusermount3", "-uz", os.fspath(mountpoint)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MountError(f"cannot unmount {mountpoint}: {result.stderr.strip()}")


class OpenSnapshot(NamedTuple):
    """A snapshot that somebody reads in a mount."""

    snapshot: str
    """Its id, in hex."""
    mountpoint: Path
    by: str
    """A program and its pid."""


def opened_in_mounts(repository: Path, snapshots: Collection[str]) -> list[OpenSnapshot]:
    """Which of these snapshots (ids in hex) are in use in a mount of the repository, as far as this user may see."""
    found = []
    for mount in mounts_of(repository) if snapshots else []:
        prefix = f"{mount.mountpoint}/snapshots/"
        for user, paths in _uses(prefix):
            ids = {path.removeprefix(prefix).partition("/")[0] for path in paths}
            found += [OpenSnapshot(ident, mount.mountpoint, user) for ident in sorted(ids.intersection(snapshots))]
    return found


def _users_of(mountpoint: Path) -> list[str]:
    """Who has a working directory, root or open file in a mount, as "name (pid)"."""
    return [user for user, _ in _uses(os.fspath(mountpoint))]


def _uses(prefix: str) -> Iterator[tuple[str, list[str]]]:
    """The programs that use something below a path, and what they use; links are read, never followed."""
    bare = prefix.rstrip("/")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        paths = [path for path in _paths_in_use(process) if path == bare or path.startswith(bare + "/")]
        if paths:
            with suppress(OSError):
                yield f"{(process / 'comm').read_text().strip()} ({process.name})", paths


def _paths_in_use(process: Path) -> list[str]:
    links = [process / "cwd", process / "root"]
    with suppress(OSError):
        links += (process / "fd").iterdir()
    paths = []
    for link in links:
        with suppress(OSError):
            paths.append(os.readlink(link))
    return paths


def _end(pid: int) -> None:
    """End the daemon and wait for it, so that who unmounts may at once remove the repository. MountError.

    The unmounting alone may not: mount namespaces made meanwhile (of containers, of live instances) have copies of the
    mount, and it is not over for the kernel before the last of them is.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], STOP_TIMEOUT_S)[0]:
            raise MountError(f"it is unmounted, but its process {pid} does not end", hint=f"`kill {pid}`")
    finally:
        os.close(process)
