"""An image of this machine's own Debian, containers of it with podman, and a volume for a repository in them.

All of podman's state is in a directory of the test's own. The root file system is made by mmdebstrap once and kept in
.cache: half a minute. The checkout is shown in each container at its own path, with its `.venv` and `.prefix`, so the
image needs the same Python as the machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".cache" / "places"
PACKAGES = "python3,tini,iproute2,fuse3,libfuse3-3,libzstd1,libgomp1,mount,procps"
IMAGE = "localhost/ijfs-places"

SMALLEST = (
    *("SYS_ADMIN", "NET_ADMIN", "MKNOD", "DAC_OVERRIDE", "SYS_PTRACE", "SETPCAP", "SYS_CHROOT", "SYS_TIME"),
    *("CHOWN", "FOWNER", "FSETID", "SETFCAP"),
)
UNFILTERED = ("--security-opt", "seccomp=unconfined")

LIMIT_S = 180

# Podman has the runtime raise limits, which a root without CAP_SYS_RESOURCE may not.
RUNTIME = """#!/usr/bin/python3
import json, os, sys
arguments = sys.argv[1:]
if "create" in arguments:
    bundle = arguments[arguments.index("--bundle") + 1]
    with open(f"{bundle}/config.json") as file:
        config = json.load(file)
    config["process"].pop("rlimits", None)
    with open(f"{bundle}/config.json", "w") as file:
        json.dump(config, file)
os.execvp("runc", ["runc", *arguments])
"""


@dataclass(frozen=True)
class Ran:
    """What came of a script in a container."""

    code: int
    out: str
    err: str


class Containers:
    """Podman with a store of its own, and the image in it. A context that has to be closed."""

    remove: tuple[str, ...] = ("rm", "--force", "--ignore")
    """The words that take a container away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.volume = directory / "volume"
        self.volume.mkdir()
        runtime = directory / "runtime"
        runtime.write_text(RUNTIME)
        runtime.chmod(0o755)
        self._podman = [
            *("podman", "--root", str(directory / "storage"), "--runroot", str(directory / "run")),
            *("--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", str(runtime)),
        ]

    def load(self, archive: Path, image: str = IMAGE) -> None:
        """Make the image. CalledProcessError."""
        subprocess.run([*self._podman, "import", str(archive), image], check=True, capture_output=True)

    def run(
        self,
        script: str,
        *options: str,
        image: Sequence[str] = (IMAGE,),
        network: str = "none",
        limit_s: float = LIMIT_S,
    ) -> Ran:
        """A shell script in a new container, which is gone afterwards, whatever becomes of it."""
        name = f"ijfs-places-{uuid.uuid4().hex[:12]}"
        path = f"{CHECKOUT}/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        shown = ["-v", f"{self.volume}:/data", "-v", f"{CHECKOUT}:{CHECKOUT}:ro"]
        variables = ["-e", "IJFS_REPO=/data/repo", "-e", f"PATH={path}", "-e", "IJFS_CRIU_LIMIT_S=30"]
        command = [*self._podman, "run", "--rm", "--name", name, f"--network={network}", *shown, *variables]
        try:
            done = subprocess.run(
                [*command, *options, *image, "bash", "-c", script],
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        finally:
            subprocess.run([*self._podman, *self.remove, name], capture_output=True, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)

    def podman(self, *arguments: str) -> Ran:
        """Any command of podman's, with the checkout's CRIU."""
        criu = f"{CHECKOUT}/.prefix/bin"
        done = subprocess.run(
            [*self._podman, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{criu}:{os.environ['PATH']}"},
            timeout=LIMIT_S,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def close(self) -> list[str]:
        """Remove everything; what is left in spite of it."""
        subprocess.run([*self._podman, "rm", "--all", "--force"], capture_output=True, check=False)
        subprocess.run([*self._podman, "rmi", "--all", "--force"], capture_output=True, check=False)
        for mount in reversed(self._mounts()):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
        return [*self._mounts(), *([str(self.directory)] if self.directory.exists() else []), *self._processes()]

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if line.split()[4].startswith(f"{self.directory}/")]

    def _processes(self) -> list[str]:
        """Containers' monitors: they name the store on their command lines."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.directory) in line:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        return found


def why_not() -> str | None:
    """Why there are no containers here; None where there are."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in ("podman", "runc", "mmdebstrap") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if suite() is None:
        return "the image is made of this machine's own Debian, and this is none"
    return None


def suite() -> str | None:
    """This machine's Debian release."""
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME") if release.get("ID") == "debian" else None


def archive(release: str | None = None, packages: str = PACKAGES, name: str = "") -> Path:
    """The root file system of a Debian release (default: this machine's) with these packages, made where it is not kept
    under its name. CalledProcessError."""
    release = release or str(suite())
    kept = CACHE / f"{release}{name}.tar"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.stem}.new-{os.getpid()}.tar")
        # A mirror's unstable may be weeks old.
        lenient = '--aptopt=Acquire::Check-Valid-Until "false"'
        command = ["mmdebstrap", "--variant=minbase", lenient, f"--include={packages}", release, str(partial)]
        subprocess.run(command, check=True, capture_output=True)
        partial.rename(kept)
    return kept
