"""Which remotes a repository has: names and URLs, in one small file of their own beside what is known of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError
from ijfs_engine.storage import disk

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_TAKEN: Final = ("branch", "tag", "latest")
"""Words that mean something before a slash, or alone, already."""


class RemoteName(msgspec.Struct, frozen=True):
    """A remote; `store` is the id of the tree that is there, in hex, empty until it was first seen."""

    name: str
    url: str
    store: str = ""


class RemoteNames:
    """The file. Written whole, by rename."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "names.json"

    def all(self) -> dict[str, RemoteName]:
        """By name. CorruptError, StorageError."""
        with disk.storage_errors(f"reading {self.path}"):
            try:
                data = self.path.read_bytes()
            except FileNotFoundError:
                return {}
        try:
            return {one.name: one for one in msgspec.json.decode(data, type=list[RemoteName])}
        except msgspec.MsgspecError as error:
            raise CorruptError(f"{self.path} cannot be parsed: {error}") from error

    def get(self, name: str) -> RemoteName:
        """UnknownNameError."""
        found = self.all().get(name)
        if found is None:
            raise UnknownNameError(f"there is no remote '{name}'", hint="`ijfs remote` lists them")
        return found

    def add(self, name: str, url: str) -> RemoteName:
        """A new one. IjfsError for a name or URL that cannot be."""
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise IjfsError(f"{name!r} cannot be the name of a remote", hint="use letters, digits, _, . and -")
        known = self.all()
        if name in known:
            raise IjfsError(
                f"there is a remote '{name}' already: {known[name].url}", hint=f"`ijfs remote remove {name}`"
            )
        from ijfs_engine.remote.bucket import check_url  # each verb asks for the names, few for a store

        made = RemoteName(name, check_url(url))
        self._write({**known, name: made})
        return made

    def seen(self, name: str, store: str) -> None:
        """Note which tree is there."""
        known = self.all()
        if name in known and known[name].store != store:
            self._write({**known, name: msgspec.structs.replace(known[name], store=store)})

    def remove(self, name: str) -> RemoteName:
        """Forget one; nothing happens to its store. UnknownNameError."""
        found = self.get(name)
        self._write({key: one for key, one in self.all().items() if key != name})
        return found

    def _write(self, known: dict[str, RemoteName]) -> None:
        with disk.storage_errors(f"writing {self.path}"):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk.write_file(self.path, msgspec.json.format(msgspec.json.encode(list(known.values()))))
