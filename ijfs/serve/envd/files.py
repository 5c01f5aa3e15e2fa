"""The files of one sandbox as envd shows them: entries with their owners' names and what clients attached to them.

All of it blocks, and is called in threads.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from ijfs.live.errors import InstanceExitedError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.sandbox import users
from ijfs.live.sandbox.file_access import FileAccess, FileInfo
from ijfs.serve.envd.messages import EntryInfo, FileType
from ijfs_engine.errors import IjfsError

ATTACHED = "user.e2b."
"""How the extended attributes begin that hold what clients attach to a file."""
MOST_ENTRIES = 100_000
"""Of one listing: a recursive one of `/` would not end."""
TYPES: dict[str, FileType] = {"file": "FILE_TYPE_FILE", "directory": "FILE_TYPE_DIRECTORY"}


class NoUserError(IjfsError):
    """The sandbox has no user of that name."""

    exit_code = 2


class SandboxFiles:
    """The files of one live program, for one call: a context manager. Relative paths are below the home directory of
    the user that is named, or else the directory that the program was started in. OSError as for any file;
    InstanceExitedError, NoUserError."""

    def __init__(self, repo: Path, name: str, user: str | None = None) -> None:
        record = read_record(InstancePaths.of(repo, name))
        if record.program is None:
            raise InstanceExitedError(f"the program of `{name}` has ended")
        self.access = FileAccess(record.program)
        self._passwd = self._text(users.PASSWD)
        self.user = self._user(user)
        self._home = self.user.home if self.user is not None else record.spec.cwd

    def __enter__(self) -> SandboxFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.access.__exit__()

    def _user(self, name: str | None) -> users.User | None:
        if name is None:
            return None
        found = users.find(self._passwd, name)
        if found is None:
            self.access.__exit__()
            raise NoUserError(f"the sandbox has no user `{name}`")
        return found

    def _text(self, path: str) -> str:
        with contextlib.suppress(OSError), self.access.reading(path) as file:
            return file.read().decode(errors="replace")
        return ""

    def whole(self, path: str) -> str:
        """The absolute path that is meant; the home directory where none is given."""
        return posixpath.normpath(posixpath.join(self._home, path))

    def entry(self, path: str) -> EntryInfo:
        """One file."""
        return self._entry(self.access.info(self.whole(path)))

    def exists(self, path: str) -> bool:
        """Whether there is such a file, be it a link that leads nowhere."""
        try:
            self.access.info(self.whole(path))
        except FileNotFoundError:
            return False
        return True

    def entries(self, path: str, depth: int) -> list[EntryInfo]:
        """What is in a directory, and so many levels of directories in it."""
        found = []
        for info in self.access.listing(self.whole(path)):
            found.append(self._entry(info))
            if depth > 1 and info.kind == "directory":
                found += self.entries(info.path, depth - 1)
            if len(found) > MOST_ENTRIES:
                raise OSError(errno.E2BIG, f"more than {MOST_ENTRIES} files: list fewer levels", path)
        return found

    @contextlib.contextmanager
    def writing(self, path: str, attached: Mapping[str, str]) -> Iterator[IO[bytes]]:
        """A file that has its name once it is whole, with what is attached to it; the user's, where one is named."""
        with self.access.writing(self.whole(path)) as file:
            for name, value in attached.items():
                os.setxattr(file.fileno(), ATTACHED + name, value.encode())
            if self.user is not None:
                os.fchown(file.fileno(), self.user.uid, self.user.gid)
            yield file

    def open(self, path: str) -> int:
        """A regular file to read, as a descriptor that outlives this object."""
        fd = self.access.open(self.whole(path), os.O_RDONLY | os.O_NONBLOCK)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise OSError(errno.EINVAL, f"is {what}", path)
        return fd

    def _entry(self, info: FileInfo) -> EntryInfo:
        mode = {"directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}.get(info.kind, stat.S_IFREG) | info.mode
        return EntryInfo(
            name=info.name,
            type=self._type(info),
            path=info.path,
            size=str(info.size),
            mode=info.mode,
            permissions=stat.filemode(mode),
            owner=self._owner(info.uid),
            group=self._group(info.gid),
            modified_time=_rfc3339(info.mtime_ns),
            symlink_target=info.target,
            metadata=self._attached(info),
            is_symlink=info.kind == "symlink",
        )

    def _type(self, info: FileInfo) -> FileType:
        """A link's is that of what it points at."""
        if info.kind != "symlink":
            return TYPES.get(info.kind, "FILE_TYPE_FILE")
        try:
            fd = self.access.open(info.path, os.O_PATH)
        except OSError:
            return "FILE_TYPE_SYMLINK"
        try:
            return "FILE_TYPE_DIRECTORY" if stat.S_ISDIR(os.fstat(fd).st_mode) else "FILE_TYPE_FILE"
        finally:
            os.close(fd)

    def _attached(self, info: FileInfo) -> dict[str, str]:
        if info.kind not in TYPES:
            return {}
        with contextlib.suppress(OSError):
            fd = self.access.open(info.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                names = [name for name in os.listxattr(fd) if name.startswith(ATTACHED)]
                return {n.removeprefix(ATTACHED): os.getxattr(fd, n).decode(errors="replace") for n in names}
            finally:
                os.close(fd)
        return {}

    def _owner(self, uid: int) -> str:
        return next((user.name for user in users.users(self._passwd) if user.uid == uid), str(uid))

    def _group(self, gid: int) -> str:
        found = users.groups(self._text(users.GROUP))
        return next((name for name, number, _ in found if number == gid), str(gid))


def _rfc3339(ns: int) -> str:
    seconds, rest = divmod(ns, 10**9)
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
