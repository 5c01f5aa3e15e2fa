"""Checkpoints of containers on their way in: an archive that podman or CRI-O exported, or the directory it holds.

An archive is a tar, plain or compressed by gzip or zstd, with CRIU's images below `checkpoint/` and the container's
configuration, its logs and its changed files beside that (`podman container checkpoint --export`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

from ijfs_engine.errors import IjfsError, StorageError

if TYPE_CHECKING:
    from ijfs_engine import SnapshotWriter

CHECKPOINT = "checkpoint"
"""Where CRIU's images are in an archive."""
IMAGES = "images"
"""Where they are in a snapshot."""
BESIDE = "container"
"""Where the rest is in a snapshot."""
CONFIG = "config.dump"
"""Podman's description of a container, in JSON, beside that."""
PIECE = 1 << 20
"""How much is copied at once, in bytes."""
PERMISSIONS = 0o777
"""Of a mode: no setuid bits."""
ZSTD = b"\x28\xb5\x2f\xfd"
"""What a zstd frame begins with (RFC 8878, 3.1.1)."""


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is what such an archive holds."""
    return (directory / CHECKPOINT / "inventory.img").is_file()


@contextlib.contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The archive as a directory, which is gone afterwards. IjfsError where it is none, StorageError."""
    with tempfile.TemporaryDirectory(prefix="ijfs-import-") as place:
        try:
            with archive.open("rb") as file:
                _unpack(file, Path(place))
        except (tarfile.TarError, EOFError, zlib.error, FileExistsError) as error:
            raise IjfsError(f"{archive} is no whole tar archive: {error}", hint=_HINT) from error
        if not is_checkpoint(Path(place)):
            raise IjfsError(f"{archive} holds no container's checkpoint: no `{CHECKPOINT}/` in it", hint=_HINT)
        yield Path(place)


_HINT = "`podman container checkpoint --export FILE NAME` writes one; a directory is imported as it is"


def _unpack(file: IO[bytes], place: Path) -> None:
    with _plain(file) as data, tarfile.open(fileobj=data, mode="r|*") as tar:
        free = shutil.disk_usage(place).free
        for member in tar:
            free -= member.size
            if free < 0:
                raise StorageError(
                    f"{place.parent} is too small to unpack the archive in", hint="TMPDIR names another directory"
                )
            _put(tar, member, place)


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    """One file or directory. The archive is a stranger's: no links, so that all stays below `place`."""
    where = PurePosixPath(member.name)
    if where.is_absolute() or ".." in where.parts:
        raise tarfile.ReadError(f"it names {member.name!r}, which is outside of it")
    at = place / where
    if member.isdir():
        at.mkdir(parents=True, exist_ok=True)
        return
    data = tar.extractfile(member) if member.isfile() else None
    if data is None:
        raise tarfile.ReadError(f"{member.name!r} is neither a file nor a directory")
    at.parent.mkdir(parents=True, exist_ok=True)
    with at.open("xb") as file:
        shutil.copyfileobj(data, file, PIECE)
    at.chmod(member.mode & PERMISSIONS)
    os.utime(at, (member.mtime, member.mtime))


@contextlib.contextmanager
def _plain(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Its bytes without zstd, which tarfile of Python 3.11 does not know."""
    head = file.read(len(ZSTD))
    file.seek(0)
    if head != ZSTD:
        yield file
        return
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
            yield cast("IO[bytes]", reader)
    except zstandard.ZstdError as error:
        raise tarfile.ReadError(str(error)) from error


def add(writer: SnapshotWriter, directory: Path) -> None:
    """Add such a directory to a snapshot. StorageError."""
    writer.add_directory(IMAGES, directory / CHECKPOINT)
    for child in sorted(directory.iterdir()):
        if child.name == CHECKPOINT or child.is_symlink():
            continue
        at = f"{BESIDE}/{child.name}"
        if child.is_dir():
            writer.add_directory(at, child)
        else:
            writer.add_file(at, child)


def meta(directory: Path) -> dict[str, Any]:
    """What its snapshot says of it: the container's name and its image's, where podman's own description is there."""
    try:
        said = description((directory / CONFIG).read_bytes())
    except OSError:
        said = {}
    return {"container": {key: said[key] for key in ("name", "rootfsImageName") if key in said}}


def description(data: bytes) -> dict[str, str]:
    """The texts in podman's description of a container, its file `config.dump`. Empty where it is of another make."""
    try:
        said: Any = json.loads(data)
    except ValueError:
        return {}
    return {key: value for key, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}
