"""A sandbox's way out, on request: slirp4netns, a user-mode TCP/IP stack. Called by sandbox.py.

A sandbox has a network namespace of its own with a loopback and nothing else, unless its spec says `slirp4netns`: then
programs inside may connect to anything the host can reach, but not to the host's own loopback, and nobody outside can
connect to them but through the relay. Addresses are slirp4netns's fixed ones (10.0.2.100), the same in every sandbox,
so that a restored program finds the network it had. Connections to the outside do not survive a restore: their peers
answered another process.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess

from ijfs.live.errors import SandboxError

NAMESERVER = "10.0.2.3"
RESOLV_CONF = f"nameserver {NAMESERVER}\n"
READY_LIMIT_S = 10.0


class Slirp:
    """A running slirp4netns. It ends when `close` is called, or with the keeper."""

    def __init__(self, network_fd: int, *, dns: bool = True) -> None:
        program = shutil.which("slirp4netns")
        if program is None:
            raise SandboxError("slirp4netns is not installed", hint="install the package `slirp4netns`")
        ready, ready_theirs = os.pipe()
        exit_theirs, self._exit = os.pipe()
        target = f"/proc/{os.getpid()}/fd/{network_fd}"
        try:
            self._process = subprocess.Popen(
                [
                    *(program, "--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path"),
                    *([] if dns else ["--disable-dns"]),
                    *(f"--ready-fd={ready_theirs}", f"--exit-fd={exit_theirs}", target, "tap0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[ready_theirs, exit_theirs],
                start_new_session=True,
            )
        finally:
            os.close(ready_theirs)
            os.close(exit_theirs)
        self._wait(ready)

    def _wait(self, ready: int) -> None:
        with os.fdopen(ready, "rb") as pipe:
            readable, _, _ = select.select([pipe], [], [], READY_LIMIT_S)
            if readable and pipe.read(1):
                return
        self.close()
        said = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        raise SandboxError(f"slirp4netns could not give the sandbox a network: {said.splitlines()[-1:] or 'no reason'}")

    def close(self) -> None:
        """End it."""
        fd, self._exit = self._exit, -1
        if fd >= 0:
            os.close(fd)
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
