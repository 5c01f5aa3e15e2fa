"""Checkpoints of containers on their way out: the archive that podman imports, or an OCI image that it restores."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ijfs.cli.containers.reading import BESIDE, CHECKPOINT, CONFIG, IMAGES, PIECE, description
from ijfs.cli.tree_totals import tree_of
from ijfs_engine.errors import IjfsError, UnknownNameError

if TYPE_CHECKING:
    from ijfs_engine import Entry, Reader, Snapshot, StoredFile

GZIP_LEVEL = 1
_PODMAN = "io.podman.annotations.checkpoint"
_CRIO = "io.kubernetes.cri-o.annotations.checkpoint.name"
_ANNOTATIONS = {
    "name": "name",
    "rawImageName": "RawImageName",
    "rootfsImageID": "rootfsImageID",
    "rootfsImageName": "rootfsImageName",
    "runtime.name": "runtime",
}
"""What podman says of such an image (its libpod/define/annotations.go), and where that is in a container's description.
Without `runtime.name` it takes an image for none of a checkpoint."""
_TYPES = {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE}


def write_archive(reader: Reader, record: Snapshot, file: Path) -> int:
    """Write what `podman container restore --import` reads; compressed where the name ends in .gz or .zst. The bytes
    that went into it. IjfsError for a snapshot that is no container's, CorruptError, OSError.

    The file has its name only when it is whole.
    """
    _check(reader, record)
    written = 0

    def write(out: BinaryIO) -> None:
        nonlocal written
        with _compressed(out, file.suffix) as data, _tar(data) as tar:
            written = _fill(tar, reader, record)

    _make(file, write)
    return written


def write_oci(reader: Reader, record: Snapshot, file: Path) -> int:
    """Write an OCI image archive whose one layer is the checkpoint: `podman load -i FILE`, then `podman container
    restore IMAGE`. The bytes that went into it. Errors as `write_archive`.

    Layout: OCI image specification 1.0, image-layout.md; the annotations are those of podman's `--create-image`.
    """
    said = _check(reader, record)
    written = 0

    def write(out: BinaryIO) -> None:
        nonlocal written
        with _beside(file) as layer:
            with _tar(layer) as tar:
                written = _fill(tar, reader, record)
            _write_layout(out, layer, said)

    _make(file, write)
    return written


def _check(reader: Reader, record: Snapshot) -> dict[str, str]:
    """What podman said of the container."""
    try:
        reader.lookup(record.root, IMAGES)
        file = reader.open(reader.lookup(record.root, f"{BESIDE}/{CONFIG}"))
    except UnknownNameError:
        raise IjfsError(
            "this snapshot is no container's: it did not come from an archive of podman's",
            hint="`ijfs import FILE` stores one; `ijfs export SNAPSHOT:images DIR` writes CRIU's images of any",
        ) from None
    return description(file.read(0, file.size))


def _fill(tar: tarfile.TarFile, reader: Reader, record: Snapshot) -> int:
    """The snapshot's two directories, as they stand in an archive."""
    total = 0
    for top, prefix in ((BESIDE, ""), (IMAGES, CHECKPOINT)):
        entry = reader.lookup(record.root, top)
        if prefix:
            tar.addfile(_info(prefix, entry))
        total += _fill_below(tar, reader, entry, prefix)
    return total


def _fill_below(tar: tarfile.TarFile, reader: Reader, directory: Entry, prefix: str) -> int:
    total = 0
    for entry in reader.tree(tree_of(directory)).entries:
        name = os.path.join(prefix, os.fsdecode(entry.name))
        info = _info(name, entry)
        if entry.kind == "d":
            tar.addfile(info)
            total += _fill_below(tar, reader, entry, name)
        elif entry.kind == "f":
            tar.addfile(info, io.BufferedReader(_Stored(reader.open(entry)), PIECE))
            total += entry.size
        elif entry.kind == "l":
            info.linkname = os.fsdecode(entry.target)
            tar.addfile(info)
    return total


def _info(name: str, entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = _TYPES.get(entry.kind, tarfile.REGTYPE)
    info.size = entry.size if entry.kind == "f" else 0
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.mtime = entry.mtime_ns // 1_000_000_000
    return info


class _Stored(io.RawIOBase):
    """A stored file as something to read from its beginning."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._file.size - self._at)
        self._file.read_into(self._at, view[:length])
        self._at += length
        return length


def _tar(out: BinaryIO) -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, copybufsize=PIECE)


@contextlib.contextmanager
def _compressed(out: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix in (".gz", ".tgz"):
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=GZIP_LEVEL, mtime=0) as packed:
            yield cast("BinaryIO", packed)
    elif suffix == ".zst":
        import zstandard

        with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
            yield cast("BinaryIO", writer)
    else:
        yield out


def _make(file: Path, write: Callable[[BinaryIO], None]) -> None:
    """A new file, or none."""
    with _beside(file) as out:
        write(out)
        out.flush()
        os.fsync(out.fileno())
        os.link(out.name, file)


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[BinaryIO]:
    """A file in the same directory under a name of its own, gone afterwards."""
    name = file.with_name(f".{file.name[:200]}.{secrets.token_hex(6)}.part")
    with name.open("xb+") as out:
        try:
            yield out
        finally:
            name.unlink()


def _write_layout(out: BinaryIO, layer: BinaryIO, said: dict[str, str]) -> None:
    name = said.get("name", "checkpoint")
    size = layer.tell()
    layer.seek(0)
    digest = "sha256:" + hashlib.file_digest(cast("io.BufferedReader", layer), "sha256").hexdigest()
    layer.seek(0)
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "history": [{"created_by": "ijfs export"}],
        }
    )
    layer_said = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [layer_said],
            "annotations": {
                **{f"{_PODMAN}.{theirs}": said.get(ours, "") for theirs, ours in _ANNOTATIONS.items()},
                _CRIO: name,
            },
        }
    )
    tag = {"org.opencontainers.image.ref.name": f"localhost/{name}:latest"}
    index = {
        "schemaVersion": 2,
        "manifests": [{**_descriptor("application/vnd.oci.image.manifest.v1+json", manifest), "annotations": tag}],
    }
    with _tar(out) as tar:
        for path, data in (
            ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
            ("index.json", _json(index)),
            (_blob(config), config),
            (_blob(manifest), manifest),
        ):
            _add(tar, path, io.BytesIO(data), len(data))
        _add(tar, f"blobs/sha256/{digest.removeprefix('sha256:')}", layer, size)


def _add(tar: tarfile.TarFile, path: str, data: BinaryIO, size: int) -> None:
    info = tarfile.TarInfo(path)
    info.size = size
    tar.addfile(info, data)


def _descriptor(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}


def _blob(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def _json(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
