"""Containers of docker: a daemon of the test's own, with all of its state in a directory of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from waiting import patient

from containers import Containers, suite

DAEMON_S = 30


class DockerContainers(Containers):
    """Docker's daemon without a network of its own, and the image in it. A context that has to be closed."""

    remove = ("rm", "--force")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        socket = directory / "docker.sock"
        self._log = (directory / "dockerd.log").open("wb")
        self._daemon = subprocess.Popen(
            [
                *("dockerd", "--host", f"unix://{socket}", "--data-root", str(directory / "root")),
                *("--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid")),
                *("--iptables=false", "--ip6tables=false", "--bridge=none"),
            ],
            stdout=self._log,
            stderr=self._log,
        )
        self._podman = ["docker", "--host", f"unix://{socket}"]

    def why_not(self) -> str | None:
        """Why the daemon does not answer, where it does not."""
        deadline = time.monotonic() + patient(DAEMON_S)
        while self._daemon.poll() is None and time.monotonic() < deadline:
            if subprocess.run([*self._podman, "info"], capture_output=True, check=False).returncode == 0:
                return None
            time.sleep(0.2)
        return (self.directory / "dockerd.log").read_text()[-300:]

    def close(self) -> list[str]:
        """End the daemon and remove everything; what is left in spite of it."""
        listed = subprocess.run([*self._podman, "ps", "--all", "--quiet"], capture_output=True, text=True, check=False)
        for name in listed.stdout.split():
            subprocess.run([*self._podman, *self.remove, name], capture_output=True, check=False)
        self._daemon.terminate()
        self._daemon.wait(60)
        self._log.close()
        return super().close()


def why_no_docker() -> str | None:
    """Why there is no docker here; None where there is."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in ("dockerd", "docker", "containerd") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian's docker.io)"
    return None if suite() is not None else "the image is made of this machine's own Debian, and this is none"
