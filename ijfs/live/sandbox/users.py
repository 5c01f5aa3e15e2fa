"""The users of a sandbox: what its /etc/passwd and /etc/group say. Called by enter.py, and by who shows a file's owner.

Read here and not by the C library: that would load what the sandbox's nsswitch.conf names, from the sandbox's files.
"""

from __future__ import annotations

from dataclasses import dataclass

PASSWD, GROUP = "/etc/passwd", "/etc/group"


@dataclass(frozen=True)
class User:
    """One line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


def users(passwd: str) -> list[User]:
    """All users; lines that are none are passed over."""
    found = []
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2].isdecimal() and fields[3].isdecimal():
            name, _, uid, gid, _, home, shell = fields
            found.append(User(name, int(uid), int(gid), home or "/", shell or "/bin/sh"))
    return found


def find(passwd: str, wanted: str) -> User | None:
    """A user by name or number; a number that has no name is a user without a group of its own."""
    for user in users(passwd):
        if wanted in (user.name, str(user.uid)):
            return user
    return User(wanted, int(wanted), int(wanted), "/", "/bin/sh") if wanted.isdecimal() else None


def groups(group: str) -> list[tuple[str, int, list[str]]]:
    """All groups: name, number, members."""
    lines = (line.split(":") for line in group.splitlines())
    return [(f[0], int(f[2]), [m for m in f[3].split(",") if m]) for f in lines if len(f) == 4 and f[2].isdecimal()]


def groups_of(group: str, user: User) -> list[int]:
    """The groups that a user is in."""
    return sorted({user.gid, *(gid for _, gid, members in groups(group) if user.name in members)})
