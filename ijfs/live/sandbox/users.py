"""The users of a sandbox: what its /etc/passwd and /etc/group say. Called by init.py, enter.py, and by who shows a
file's owner.

Read here and not by the C library: that would load what the sandbox's nsswitch.conf names, from the sandbox's files.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

NO_GROUP = 65534
"""`nogroup`: a number without a name is in no group that anybody else may be in."""
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
    """A user by name or number, who need not have a name; None where there is none of that name."""
    for user in users(passwd):
        if wanted in (user.name, str(user.uid)):
            return user
    return User(wanted, int(wanted), NO_GROUP, "/", "/bin/sh") if wanted.isdecimal() else None


def groups(group: str) -> list[tuple[str, int, list[str]]]:
    """All groups: name, number, members."""
    lines = (line.split(":") for line in group.splitlines())
    return [(f[0], int(f[2]), [m for m in f[3].split(",") if m]) for f in lines if len(f) == 4 and f[2].isdecimal()]


def groups_of(group: str, user: User) -> list[int]:
    """The groups that a user is in."""
    return sorted({user.gid, *(gid for _, gid, members in groups(group) if user.name in members)})


def become(wanted: str) -> dict[str, str]:
    """Have this process go on as one of the users of the root that it is in; the variables that a login sets. OSError
    where there is none."""
    user = find(_text(PASSWD), wanted)
    if user is None:
        raise PermissionError(errno.EPERM, "the sandbox has no user of this name", wanted)
    os.setgroups(groups_of(_text(GROUP), user))
    os.setgid(user.gid)
    os.setuid(user.uid)
    return {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
