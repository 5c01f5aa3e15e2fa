"""`sudo ijfs`: whose programs and repository they are. Root's, unless the setting `user` is `sudo`: then those of who
typed it.

The repository stays root's to read all the same, in that user's data directory: it holds the memory of programs, and
root's keepers write it.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from ijfs import settings

CALLER = "sudo"
"""As the value of `--user` and of the setting: who called sudo."""


def caller() -> pwd.struct_passwd | None:
    """Who typed `sudo`; None where nobody did, or root itself."""
    number = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not number.isdecimal() or int(number) == 0:
        return None
    try:
        return pwd.getpwuid(int(number))
    except KeyError:
        return None


def repository() -> Path | None:
    """The repository of who called sudo, where the setting asks for it."""
    found = caller() if settings.value("user") == CALLER else None
    return Path(found.pw_dir) / ".local/share/ijfs" if found is not None else None


def whose(path: Path) -> str:
    """What to say of a repository that is root's, to one who may take it for their own; "" where there is no need."""
    found = caller()
    if found is None:
        return ""
    return (
        f"this is root's repository, {path}, and programs run as root; `sudo ijfs config user sudo` makes both "
        f"{found.pw_name}'s, `-r` or IJFS_REPO (`sudo -E`) names another repository"
    )


def program_user(given: str) -> str:
    """The user that a program is to run as, for an InstanceSpec; "" for root."""
    if given != CALLER:
        return "" if given in ("root", "0") else given
    found = caller()
    return str(found.pw_uid) if found is not None else ""
