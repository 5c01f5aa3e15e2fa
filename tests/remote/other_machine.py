"""Another machine for `ijfs migrate`: a real sshd in namespaces of its own (network, mounts, process ids, host name),
with another /root and another repository. Fetches Debian's openssh-server once, 2 MB, and installs nothing.

Everything of it ends with the context manager: the first process of its namespace of process ids is killed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(os.environ.get("IJFS_SSHD", ROOT / ".cache/sshd"))
HERE, THERE = "10.97.31.1", "10.97.31.2"
"""Of the cable between the two: a pair of interfaces that ends with the namespace."""


def unpack() -> None:
    """Debian's package with what it needs and this machine lacks."""
    if (PACKAGES / "usr/sbin/sshd").exists():
        return
    plan = subprocess.run(["apt-get", "install", "-s", "--no-install-recommends", "openssh-server"],
                          check=True, capture_output=True, text=True).stdout  # fmt: skip
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    archives = PACKAGES / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", *names], check=True, cwd=archives, stdout=subprocess.DEVNULL)
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, PACKAGES], check=True)
    shutil.rmtree(archives)


class OtherMachine:
    """It, while it runs. `ssh`: what `--ssh` is given; `ijfs`: what `--ijfs` is given; `repo`: its repository."""

    def __init__(self, place: Path, first: int, repo: Path) -> None:
        self.place = place
        self.first = first
        self.repo = repo
        options = {"UserKnownHostsFile": place / "known", "StrictHostKeyChecking": "no", "ConnectTimeout": 3,
                   "ServerAliveInterval": 1, "ServerAliveCountMax": 3, "LogLevel": "ERROR"}  # fmt: skip
        self.ssh = shlex.join(
            ["ssh", "-i", str(place / "key"), *(f"-o{name}={value}" for name, value in options.items())]
        )
        variables = {"IJFS_REPO": repo, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": os.environ["PATH"]}
        self.ijfs = shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()),
                                sys.executable, "-P", "-m", "ijfs.cli"])  # fmt: skip

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A line for a shell there, by ssh."""
        return subprocess.run([*shlex.split(self.ssh), THERE, command], capture_output=True, text=True, check=False)

    def cable(self, *, plugged: bool) -> None:
        """Pull the cable out, or put it in."""
        subprocess.run(["ip", "link", "set", f"ijfs{self.first}", "up" if plugged else "down"], check=True)


@contextlib.contextmanager
def other_machine(place: Path, repo: Path) -> Iterator[OtherMachine]:
    """One, with what it needs in an empty directory `place`."""
    unpack()
    for key in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / key], check=True)
    (place / "passwd").write_text(Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
    (place / "config").write_text(
        f"ListenAddress {THERE}\nHostKey {place}/host\nAuthorizedKeysFile {place}/key.pub\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nPidFile none\nMaxStartups 100\n"
    )
    boot = place / "boot"
    sshd, libraries = PACKAGES / "usr/sbin/sshd", PACKAGES / "usr/lib/x86_64-linux-gnu"
    boot.write_text(
        "#!/bin/sh -e\nhostname other\nmount -t tmpfs tmpfs /root\nmount -t tmpfs tmpfs /run\nmkdir /run/sshd\n"
        # Control groups would be shared with this machine, whose ijfs takes away those of processes that it cannot see.
        "mount -t tmpfs tmpfs /sys/fs/cgroup\n"
        f"mount --bind {place}/passwd /etc/passwd\nip link set lo up\n"
        f"until ip -4 addr show | grep -q {THERE}; do sleep 0.05; done\n"
        f"LD_LIBRARY_PATH={libraries} exec {sshd} -D -e -f {place}/config\n"
    )
    boot.chmod(0o755)
    apart = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with (place / "sshd.log").open("wb") as log:
        machine = subprocess.Popen([*apart, boot], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children")
        assert eventually(lambda: bool(children.read_text().split()))
        first = int(children.read_text().split()[0])
        here, there = f"ijfs{first}", f"ijft{first}"
        link = ["ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", str(first)]
        subprocess.run(link, check=True)
        inside = ["nsenter", "-t", str(first), "-n"]
        subprocess.run([*inside, "ip", "link", "set", there, "up"], check=True)
        subprocess.run([*inside, "ip", "addr", "add", f"{THERE}/30", "dev", there], check=True)
        subprocess.run(["ip", "addr", "add", f"{HERE}/30", "dev", here], check=True)
        subprocess.run(["ip", "link", "set", here, "up"], check=True)
        other = OtherMachine(place, first, repo)
        assert eventually(lambda: other.run("true").returncode == 0), (place / "sshd.log").read_text()
        yield other
    finally:
        machine.kill()
        machine.wait()
