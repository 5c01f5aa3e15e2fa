"""The proof that the demo ends clean: what it made is remembered while it lives and looked for when it is over."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NAMESPACES = ("net", "pid", "ipc", "uts")
"""Held open by the watch itself, so that the kernel cannot give their numbers to somebody else's. A mount namespace is
not held: what is mounted in it would stay. Its processes are in the others too."""
SCRATCH = (Path("/dev/shm"), Path("/tmp"), Path("/run"))


@dataclass
class Watch:
    """What belongs to one demo: its directory and the namespaces it was seen to make.

    A context manager: it holds descriptors of the namespaces.
    """

    directory: Path
    namespaces: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        while self.namespaces:
            os.close(self.namespaces.popitem()[1])

    def saw(self, pid: int) -> None:
        """Remember and hold the namespaces of a live program, but for those that this process shares."""
        own = set(_namespaces_of("self"))
        for kind in NAMESPACES:
            name = _link(f"/proc/{pid}/ns/{kind}")
            if name and name not in own and name not in self.namespaces:
                self.namespaces[name] = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)

    def processes(self) -> list[str]:
        """Processes that work in the directory, were started with it, hold files in it, or are in its namespaces."""
        # A shell or `timeout` that started this process may have the directory in its command line.
        not_ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        found = psutil.process_iter(["name", "cmdline", "cwd"])
        return [f"{one.info['name']} ({one.pid})" for one in found if one.pid not in not_ours and self._is_ours(one)]

    def mounts(self) -> list[str]:
        """Mount points below the directory, and namespaces that a mount keeps."""
        found = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            root, place = line.split()[3:5]
            if place.startswith(str(self.directory)) or root in self.namespaces:
                found.append(place)
        return found

    def kept_namespaces(self) -> list[str]:
        """Namespaces that a process is in or holds open."""
        others = [pid for pid in psutil.pids() if pid != os.getpid()]
        held = {name for pid in others for name in (*_namespaces_of(pid), *_open_files(pid))}
        return sorted(self.namespaces.keys() & held)

    def files(self) -> list[str]:
        """The directory, if it is there, and whatever bears its name in the usual scratch places."""
        scratch = [entry for place in SCRATCH if place.is_dir() for entry in place.iterdir()]
        named = {entry for entry in scratch if self.directory.name in entry.name}
        return sorted(str(path) for path in {self.directory, *named} if path.exists())

    def _is_ours(self, process: psutil.Process) -> bool:
        directory = str(self.directory)
        if any(directory in word for word in process.info["cmdline"] or ()):
            return True
        links = [*_open_files(process.pid), process.info["cwd"] or ""]
        return any(link.startswith(directory) for link in links) or bool(
            self.namespaces.keys() & set(_namespaces_of(process.pid))
        )


def _namespaces_of(pid: int | str) -> list[str]:
    return [link for kind in NAMESPACES if (link := _link(f"/proc/{pid}/ns/{kind}"))]


def _open_files(pid: int) -> list[str]:
    """What its descriptors point to; psutil shows regular files only, and a namespace may be held too."""
    try:
        return [_link(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
