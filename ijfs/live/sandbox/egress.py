"""Where a sandbox may connect to, when that was said (`--network allow=HOST:PORT,…`). Called by sandbox.py.

Three things together: rules of the kernel's packet filter in the sandbox's own network (iptables), which nothing in it
may change (rights.py: it has neither CAP_NET_ADMIN nor CAP_NET_RAW); no DNS at all, because whoever may ask for any
name may send anything in names; and names in its /etc/hosts with the addresses that they had when it started, or was
restored. TCP alone, IPv4 alone, as slirp4netns is run. docs/security.md says what that does not stop."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ijfs.live.errors import CommandError, SandboxError
from ijfs.live.sandbox import namespaces as ns

PROGRAMS = ("iptables-restore", "ip6tables-restore")
MOST = 256
"""Places that one sandbox may be let out to."""
NO_DNS = "# no DNS: the names that may be reached are in /etc/hosts\n"

_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_BEGIN, _END = "# may be reached (written by ijfs)\n", "# end of what may be reached\n"
_MOST_HOSTS = 1 << 20

_RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A OUTPUT -o lo -j ACCEPT
{allowed}-A OUTPUT -j REJECT --reject-with {kind}
COMMIT
"""


class Place(NamedTuple):
    """Where to: a name, an IPv4 address or a network of such (`10.0.0.0/8`), and a TCP port."""

    host: str
    port: int

    @property
    def is_name(self) -> bool:
        """Whether it has to be resolved."""
        return not _is_network(self.host)


class Resolved(NamedTuple):
    """Each host's addresses, and the names that have none."""

    addresses: Mapping[str, Sequence[str]]
    missing: Sequence[str]


def parse(words: Iterable[str]) -> tuple[Place, ...]:
    """The places that `HOST:PORT` words mean. CommandError: also for what a stranger's snapshot says."""
    found = tuple(dict.fromkeys(_place(word) for word in words))
    if len(found) > MOST:
        raise CommandError(f"{len(found)} places to connect to are more than {MOST}")
    return found


def _place(word: str) -> Place:
    host, _, port = word.rpartition(":")
    sound = port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535
    if not sound or not (_is_network(host) or (_NAME.fullmatch(host) and not re.fullmatch(r"[\d.]+", host))):
        raise CommandError(
            f"'{word}' is no HOST:PORT to connect to",
            hint="a name, an IPv4 address or a network of such, and a port: pypi.org:443, 10.0.0.0/8:5432",
        )
    return Place(host.lower(), int(port))


def _is_network(host: str) -> bool:
    try:
        ipaddress.IPv4Network(host)
    except ValueError:
        return False
    return True


def missing_programs() -> list[str]:
    """What this machine lacks for it."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def resolve(places: Sequence[Place]) -> Resolved:
    """Their addresses now, as this machine resolves names."""
    addresses: dict[str, list[str]] = {}
    for host in dict.fromkeys(place.host for place in places):
        addresses[host] = _addresses(host) if not _is_network(host) else [host]
    return Resolved(addresses, [host for host, found in addresses.items() if not found])


def _addresses(host: str) -> list[str]:
    with contextlib.suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return list(dict.fromkeys(str(each[4][0]) for each in found))
    return []


def close(network_fd: int, places: Sequence[Place], resolved: Resolved) -> None:
    """Let nothing out of that network but to those places. SandboxError, with nothing let out that was not before."""
    if missing := missing_programs():
        raise SandboxError(f"{missing[0]} is not installed", hint="install the package `iptables`")
    allowed = "".join(
        f"-A OUTPUT -d {address} -p tcp --dport {place.port} -j ACCEPT\n"
        for place in places
        for address in resolved.addresses[place.host]
    )
    with ns.in_network(network_fd):
        _load(PROGRAMS[0], _RULES.format(allowed=allowed, kind="icmp-admin-prohibited"))
        _load(PROGRAMS[1], _RULES.format(allowed="", kind="icmp6-adm-prohibited"))


def _load(program: str, rules: str) -> None:
    done = subprocess.run([program], input=rules, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason"])[0]
        raise SandboxError(f"the sandbox's connections cannot be restricted: {program}: {said}")


def put_names(root: Path, places: Sequence[Place], resolved: Resolved) -> None:
    """In a sandbox's files below `root`: the names and their addresses in /etc/hosts, in place of those from before.
    No link in there is followed: it may be a stranger's. SandboxError."""
    lines = [f"{each}\t{p.host}\n" for p in places if p.is_name for each in resolved.addresses[p.host]]
    block = _BEGIN + "".join(dict.fromkeys(lines)) + _END
    try:
        etc = os.open(root / "etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            before = _hosts(etc)
            _replace(etc, "hosts", _without_block(before) + block, unless=before)
            _replace(etc, "resolv.conf", NO_DNS)
        finally:
            os.close(etc)
    except OSError as error:
        raise SandboxError(f"the sandbox's /etc/hosts cannot be written: {error.strerror}") from error


def _without_block(text: str) -> str:
    before, begin, rest = text.partition(_BEGIN)
    return before + rest.partition(_END)[2] if begin else text


def _hosts(etc: int) -> str:
    with contextlib.suppress(OSError):
        fd = os.open("hosts", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=etc)
        with os.fdopen(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return file.read(_MOST_HOSTS).decode(errors="replace")
    return ""


def _replace(directory: int, name: str, text: str, *, unless: str | None = None) -> None:
    if text == unless:
        return
    new = f".{name}.ijfs"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, 0o644, dir_fd=directory), "w") as file:
        file.write(text)
    os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
