"""The ways to open an encrypted tree, kept in its store beside it: who clones it needs them before anything else."""

from __future__ import annotations

from ijfs_engine.remote.bucket import Bucket
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.key_files import KeyFile, decode_key_file, encode_key_file, read_key_files

_KEYS = "keys"


def send_keys(directory: RepositoryDirectory, bucket: Bucket) -> None:
    """Have a store know the ways that a repository has, if it is encrypted. One that was removed here is removed by
    `remove_keys`: another machine may have added one of its own. RemoteError, StorageError."""
    for file in read_key_files(directory.keys).files if directory.crypt.seals else ():
        bucket.put(f"{_KEYS}/{file.name}", encode_key_file(file))


def remove_keys(bucket: Bucket, names: list[str]) -> None:
    """Take ways out of a store. RemoteError."""
    bucket.delete([f"{_KEYS}/{name}" for name in names])


def keys_at(url: str) -> list[KeyFile]:
    """The ways to open the tree at a URL; none for one that is not encrypted. RemoteError, CorruptError."""
    bucket = Bucket.open(url)
    return [decode_key_file(bucket.get(found.path)) for found in bucket.list(_KEYS)]
