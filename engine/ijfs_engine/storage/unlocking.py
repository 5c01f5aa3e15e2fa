"""Who opens an encrypted repository gets its key ring here: from this process, the kernel's keyring, the environment,
or a person at a terminal.

`RepositoryDirectory.find` asks. The command line says how a person is asked (`ask_by`); a program without a terminal,
as a live program's keeper, has what the one before it left.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ijfs_engine.errors import CorruptError, IjfsError, StorageError
from ijfs_engine.format.crypt import KeyRing
from ijfs_engine.storage import kernel_keys
from ijfs_engine.storage.asking import who_asks
from ijfs_engine.storage.key_files import (
    PASSPHRASE,
    RECIPIENTS,
    KeyFile,
    decode_ring,
    encode_ring,
    open_with_identity,
    open_with_passphrase,
    read_key_files,
)

PASSPHRASE_VARIABLE: Final = "IJFS_PASSPHRASE"
FILE_VARIABLE: Final = "IJFS_PASSPHRASE_FILE"
COMMAND_VARIABLE: Final = "IJFS_PASSPHRASE_COMMAND"
IDENTITY_VARIABLE: Final = "IJFS_IDENTITY"
"""A file with a private key of age or ssh."""
KEEP_VARIABLE: Final = "IJFS_KEY_TTL_S"
"""How long the kernel keeps a key ring, in seconds; 0: not at all."""
SECRET_VARIABLES: Final = (PASSPHRASE_VARIABLE, FILE_VARIABLE, COMMAND_VARIABLE, IDENTITY_VARIABLE)
"""What no program that is saved may have in its environment."""
_KEEP_S: Final = 12 * 3600
_COMMAND_S: Final = 120


class LockedRepositoryError(IjfsError):
    """The repository is encrypted, and nothing that opens it was given, or the wrong thing."""

    exit_code = 11
    default_hint = f"type its passphrase at a terminal, or set one of {', '.join(SECRET_VARIABLES)}"


_rings: dict[bytes, KeyRing] = {}
_openers: dict[bytes, str] = {}
"""By repository: the name of the key that opened it, for this process."""
_made: dict[bytes, set[str]] = {}
"""By repository: names of the keys that this process has made."""


def unlock(path: Path, repository: bytes) -> KeyRing:
    """The key ring of the repository with this id at `path`. LockedRepositoryError, CorruptError, StorageError."""
    ways = read_key_files(path / "keys")
    files = ways.files or ways.doubtful
    known = _kept(repository)
    # Who has it in memory yet can make a new key where all files are lost.
    if known is not None and (not files or newest_file(files).is_of(known)):
        return known
    if not files:
        what = "damaged" if ways.damaged else "lost"
        raise LockedRepositoryError(
            f"all keys of {path} are {what}: nothing in it can be read",
            hint="put back its directory `keys` from a copy, or from a remote's `keys/`",
        )
    ring, file = _opened(os.fspath(path), files)
    remember(repository, ring)
    _openers[repository] = file.name
    return ring


def note_made(repository: bytes, name: str) -> None:
    """That this process has made a key."""
    _made.setdefault(repository, set()).add(name)


def made_here(repository: bytes) -> frozenset[str]:
    """Names of the keys that this process has made: who called it knows what opens them."""
    return frozenset(_made.get(repository, ()))


def opener(repository: bytes) -> str | None:
    """The name of the key that opened a repository; None where its ring was in memory already."""
    return _openers.get(repository)


def open_ring(where: str, files: Sequence[KeyFile]) -> KeyRing:
    """The key ring that files hold, by what the environment or a person gives; `where` is what it opens, for people.
    LockedRepositoryError, CorruptError, StorageError."""
    return _opened(where, files)[0]


def _opened(where: str, files: Sequence[KeyFile]) -> tuple[KeyRing, KeyFile]:
    found = _given(where, files) or _asked(where, files)
    if found is None:
        raise LockedRepositoryError(f"{where} is encrypted, and nothing that opens it was given")
    if not newest_file(files).is_of(found[0]):
        hint = "`ijfs keyring rotate` with the key that began it finishes it"
        raise LockedRepositoryError(f"this key of {where} is from before a rotation that was not finished", hint=hint)
    return found


def newest_file(files: Iterable[KeyFile]) -> KeyFile:
    """One that the last rotation wrote."""
    return max(files, key=lambda file: file.newest)


def opened_by(files: Iterable[KeyFile], passphrase: str) -> tuple[KeyRing, KeyFile] | None:
    """The ring and which file a passphrase opens; None where it opens none. CorruptError, StorageError."""
    for file in files:
        if file.how == PASSPHRASE and (ring := open_with_passphrase(file, passphrase)) is not None:
            return ring, file
    return None


def remember(repository: bytes, ring: KeyRing) -> None:
    """Keep a ring for this process and, for a time, for others of this user."""
    _rings[repository] = ring
    seconds = _keep_seconds()
    if seconds:
        kernel_keys.keep(_kernel_name(repository), encode_ring(ring), seconds)


def forget(repository: bytes) -> bool:
    """Let go of a ring, in this process and in the kernel; whether it was kept there."""
    _rings.pop(repository, None)
    return kernel_keys.forget(_kernel_name(repository))


def passphrase_given() -> str | None:
    """What the environment says; None where it says nothing. IjfsError, StorageError."""
    if (typed := os.environ.get(PASSPHRASE_VARIABLE)) is not None:
        return typed
    if (file := os.environ.get(FILE_VARIABLE)) is not None:
        try:
            return Path(file).read_text(errors="surrogateescape").removesuffix("\n")
        except OSError as error:
            raise StorageError.of(f"reading {FILE_VARIABLE}", error) from error
    command = os.environ.get(COMMAND_VARIABLE)
    return _said_by(command) if command is not None else None


def _said_by(command: str) -> str:
    try:
        done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, timeout=_COMMAND_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise IjfsError(f"{COMMAND_VARIABLE} gave no passphrase: {error}") from None
    return os.fsdecode(done.stdout).removesuffix("\n")


def _kept(repository: bytes) -> KeyRing | None:
    found = _rings.get(repository)
    if found is None and _keep_seconds() and (kept := kernel_keys.find(_kernel_name(repository))) is not None:
        with suppress(CorruptError):
            found = _rings[repository] = decode_ring(kept)
    return found


def _keep_seconds() -> int:
    text = os.environ.get(KEEP_VARIABLE) or str(_KEEP_S)
    if not text.isdecimal():
        raise IjfsError(f"{KEEP_VARIABLE} is {text!r}, no number of seconds")
    return int(text)


def _kernel_name(repository: bytes) -> str:
    return f"ijfs:{repository.hex()}"


def _given(where: str, files: Sequence[KeyFile]) -> tuple[KeyRing, KeyFile] | None:
    identity = os.environ.get(IDENTITY_VARIABLE)
    for file in files if identity is not None else ():
        if file.how == RECIPIENTS and identity and (ring := open_with_identity(file, Path(identity))) is not None:
            return ring, file
    passphrase = passphrase_given()
    return _by_passphrase(where, files, passphrase) if passphrase is not None else None


def _asked(where: str, files: Sequence[KeyFile]) -> tuple[KeyRing, KeyFile] | None:
    ask = who_asks()
    if ask is None or all(file.how != PASSPHRASE for file in files):
        return None
    passphrase = ask(where)
    return _by_passphrase(where, files, passphrase) if passphrase is not None else None


def _by_passphrase(where: str, files: Sequence[KeyFile], passphrase: str) -> tuple[KeyRing, KeyFile]:
    found = opened_by(files, passphrase)
    if found is None:
        names = ", ".join(file.name for file in files if file.how == PASSPHRASE)
        raise LockedRepositoryError(
            f"that passphrase does not open {where}", hint=f"try again; its keys are called {names}"
        )
    return found
