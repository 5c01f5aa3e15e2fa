"""What is written down about bases: the tags that name them, their snapshots' meta, and the table of what was walked.

Plain records, no behaviour but spelling. A base is an ordinary snapshot whose files are at `files/`; its tags keep it:
`base@NAME` is the newest version of a base, `base@NAME@ID` each version that is kept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs_engine import Snapshot

TAGS = "base@"
"""What every tag of a base begins with."""

DEFAULT = "machine"
"""The base of this machine's own root, which is made by itself where `/` is an overlay."""

NONE = "none"
"""As a wish: this machine's files themselves."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class BaseMeta(msgspec.Struct, frozen=True, kw_only=True):
    """A base's snapshot meta, under the key `base`. `origin`: the directory it was read from; `system`: what that says
    it is (PRETTY_NAME of os-release)."""

    name: str
    origin: str
    system: str = ""
    hostname: str = ""
    machine: str = ""
    files: int = 0


class FileKey(msgspec.Struct, frozen=True, array_like=True):
    """What tells a changed file from an unchanged one; ctime moves with every change of bytes or metadata."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class WalkedDirectory(msgspec.Struct, frozen=True, array_like=True):
    """One directory as it was when it was read: its path below the root (`b""` for that itself), its ctime, and the
    keys of what is in it but directories, packed (`keys_of`): most are never looked at."""

    path: bytes
    ctime_ns: int
    files: msgspec.Raw


class WalkedRoot(msgspec.Struct, frozen=True, array_like=True):
    """Everything that was read of a root; `left_out` are paths below it that were not entered."""

    version: int
    root: str
    left_out: list[bytes]
    directories: list[WalkedDirectory]


WALKED_VERSION = 1

_keys = msgspec.msgpack.Decoder(dict[bytes, FileKey])


def keys_of(directory: WalkedDirectory) -> dict[bytes, FileKey]:
    """Name → key of what is in a directory but directories."""
    return _keys.decode(directory.files)


class BadBaseNameError(IjfsError):
    """A name that cannot be a base's."""

    exit_code = 2
    default_hint = "letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 63"


def check_name(name: str) -> str:
    """The name itself, or BadBaseNameError."""
    if not _NAME.fullmatch(name) or name == NONE:
        raise BadBaseNameError(f"`{name}` cannot name a base")
    return name


def head_tag(name: str) -> str:
    """The tag of a base's newest version."""
    return f"{TAGS}{name}"


def version_tag(name: str, snapshot: str) -> str:
    """The tag of one version; `snapshot` in hex."""
    return f"{TAGS}{name}@{snapshot[:16]}"


def base_meta(snapshot: Snapshot) -> BaseMeta | None:
    """What a base's snapshot says of itself; None for any other snapshot."""
    found: Any = snapshot.meta.get("base")
    if "spec" in snapshot.meta or not isinstance(found, dict):
        return None
    try:
        return msgspec.convert(found, BaseMeta)
    except msgspec.ValidationError:
        return None
