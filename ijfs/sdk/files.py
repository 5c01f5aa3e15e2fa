"""A live program's files, read and written from outside: `Box.files`. Paths that do not begin with `/` are below the
directory that the program was started in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ijfs.live.errors import InstanceExitedError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.sandbox.file_access import FileAccess, FileInfo
from ijfs_engine.errors import IjfsError, UnknownNameError

AnyPath = str | os.PathLike[str]


class NoSuchFileError(UnknownNameError):
    """There is no such file in the sandbox."""

    default_hint = "`box.files.list` shows what there is"


class FileError(IjfsError):
    """A file in the sandbox cannot be read or written."""


class Files:
    """The files of one live program. Every call raises InstanceExitedError when it has ended, NoSuchFileError and
    FileError."""

    def __init__(self, repo: Path, name: str) -> None:
        self._repo, self._name = repo, name

    def read(self, path: AnyPath) -> bytes:
        """All bytes of a file."""
        with self._access() as (files, whole), files.reading(whole(path)) as file:
            return file.read()

    def read_text(self, path: AnyPath) -> str:
        """A file as UTF-8 text."""
        return self.read(path).decode()

    @contextmanager
    def open(self, path: AnyPath) -> Iterator[BinaryIO]:
        """A file to read piece by piece."""
        with self._access() as (files, whole), files.reading(whole(path)) as file:
            yield file

    def write(self, path: AnyPath, data: bytes | str, *, mode: int | None = None) -> None:
        """Make or replace a file, whole or not at all; directories that are missing are made. `mode`: its permissions
        (default: those it had, or 0644)."""
        with self._access() as (files, whole), files.writing(whole(path), mode=mode) as file:
            file.write(data.encode() if isinstance(data, str) else data)

    def list(self, path: AnyPath = ".") -> list[FileInfo]:
        """What a directory holds, by name."""
        with self._access() as (files, whole):
            return files.listing(whole(path))

    def info(self, path: AnyPath) -> FileInfo:
        """Kind, size, mode, owner and time of one file."""
        with self._access() as (files, whole):
            return files.info(whole(path))

    def exists(self, path: AnyPath) -> bool:
        """Whether there is such a file."""
        try:
            self.info(path)
        except NoSuchFileError:
            return False
        return True

    def make_directory(self, path: AnyPath) -> None:
        """A directory with all above it; nothing where it is there."""
        with self._access() as (files, whole):
            files.make_directory(whole(path))

    def remove(self, path: AnyPath) -> None:
        """A file, or a directory with all that is in it."""
        with self._access() as (files, whole):
            files.remove(whole(path))

    def rename(self, old: AnyPath, new: AnyPath) -> None:
        """Give a file another name; one that has that name goes."""
        with self._access() as (files, whole):
            files.rename(whole(old), whole(new))

    def upload(self, local: AnyPath, path: AnyPath) -> None:
        """Copy a file, or a directory with all that is in it, from this machine to `path`; symbolic links are
        followed."""
        Path(local).stat()  # what is wrong at this end is an ordinary OSError
        with self._access() as (files, whole):
            _upload(files, Path(local), whole(path))

    def download(self, path: AnyPath, local: AnyPath) -> None:
        """Copy a file, or a directory with its files and directories, to `local` on this machine; links in it are left
        out."""
        with self._access() as (files, whole):
            _download(files, whole(path), Path(local))

    @contextmanager
    def _access(self) -> Iterator[tuple[FileAccess, Callable[[AnyPath], str]]]:
        record = read_record(InstancePaths.of(self._repo, self._name))
        if record.program is None:
            raise InstanceExitedError(f"the program of `{self._name}` has ended")

        def whole(path: AnyPath) -> str:
            return os.path.normpath(os.path.join(record.spec.cwd, path))

        try:
            with FileAccess(record.program) as files:
                yield files, whole
        except FileNotFoundError as error:
            raise NoSuchFileError(f"there is no {error.filename} in `{self._name}`") from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise FileError(f"in `{self._name}`: {where}{(error.strerror or str(error)).lower()}") from error


def _upload(files: FileAccess, local: Path, path: str) -> None:
    if not local.is_dir():
        with local.open("rb") as source, files.writing(path, mode=local.stat().st_mode & 0o7777) as target:
            shutil.copyfileobj(source, target)
        return
    files.make_directory(path)
    for child in local.iterdir():
        _upload(files, child, os.path.join(path, child.name))


def _download(files: FileAccess, path: str, local: Path) -> None:
    if files.info(path).kind != "directory":
        with files.reading(path) as source, local.open("wb") as target:
            shutil.copyfileobj(source, target)
        return
    local.mkdir(parents=True, exist_ok=True)
    for child in files.listing(path):
        if child.kind in ("file", "directory"):
            _download(files, child.path, local / child.name)
