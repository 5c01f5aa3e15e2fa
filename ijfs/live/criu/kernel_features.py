"""CRIU's cache of kernel features ("kdat"), kept where CRIU does not keep it itself.

Each CRIU first asks the kernel what it can do (makes a network device, traces a child, runs iptables …), which takes
30 to 60 ms, two thirds of a restore's time in CRIU. It keeps the answers in /run/criu.kdat, but only where /run is a
tmpfs, so that a reboot forgets them; in many containers and virtual machines it is none. There the forkserver has CRIU
write them into a tmpfs of its own (`build_cache`). They are kept under a name with the boot's id and CRIU's identity,
and every keeper mounts them where its CRIUs look (`mount_cache`), in its own mount namespace.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from pathlib import Path

from ijfs.live.criu import command as criu_command
from ijfs.live.errors import CriuMissingError
from ijfs.live.process import procfs
from ijfs.live.sandbox import namespaces as ns

PLACE = Path("/run/criu.kdat")
"""Compiled into CRIU (KDAT_RUNDIR)."""

KEPT = Path("/run/ijfs")

LIMIT_S = 20.0


def mount_cache() -> None:
    """Let CRIUs that this process starts find the cache. For a process with a mount namespace of its own.

    A CRIU outside takes the empty file that is mounted on for a stale one and removes it, and with it, in here, what is
    mounted: so this is called before each CRIU.
    """
    if _is_mounted():
        return
    cache = _cache_file()
    if cache is not None and cache.exists():
        with contextlib.suppress(OSError):
            PLACE.touch(0o600)
            ns.bind(cache, PLACE)


def _is_mounted() -> bool:
    with contextlib.suppress(OSError):
        return PLACE.stat().st_size > 0
    return False


def needs_cache() -> bool:
    """Whether `build_cache` would help."""
    cache = _cache_file()
    return cache is not None and not cache.exists()


def build_cache() -> None:
    """Have CRIU ask the kernel, and keep its answers. For a process with one thread that ends afterwards: it
    leaves it without its /run. OSError."""
    cache = _cache_file()
    if cache is None:
        return
    KEPT.mkdir(mode=0o700, exist_ok=True)
    directory = os.open(KEPT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ns.private_mounts()
    ns.mount("ijfs-run", PLACE.parent, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=700,size=1m")
    subprocess.run(
        [criu_command.find(), "check"], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False
    )
    data = PLACE.read_bytes()
    partial = f"{cache.name}.{os.getpid()}"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    os.rename(partial, cache.name, src_dir_fd=directory, dst_dir_fd=directory)


def _cache_file() -> Path | None:
    """Where this boot's answers to this CRIU are kept; None where CRIU keeps them itself, or there is no CRIU."""
    if _is_tmpfs(PLACE.parent):
        return None
    try:
        program = criu_command.find().resolve()
        status = program.stat()
    except (CriuMissingError, OSError):
        return None
    identity = f"{procfs.boot_id()} {program} {status.st_size} {status.st_mtime_ns}"
    return KEPT / f"criu-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.kdat"


def _is_tmpfs(path: Path) -> bool:
    """By its mount: Python has no statfs f_type."""
    device = os.stat(path).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == f"{os.major(device)}:{os.minor(device)}":
            return fields[fields.index("-") + 1] == "tmpfs"
    return False
