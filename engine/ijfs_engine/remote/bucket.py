"""The object store, as the modules above use it: whole objects, ranges, put-if-absent, lists. Everything that reaches
the network passes here.

The store itself is obstore's (S3 and what speaks like it, Google's, Azure's, a directory). It repeats what failed for a
reason that passes; here its errors become ours, and requests and bytes are counted.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from ijfs_engine.errors import IjfsError, StorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES: Final = ("s3", "gs", "az", "https", "file")
_CONNECT_S: Final = 5
_REQUEST_S: Final = 60
"""Of one request; a pack of 64 MiB takes 5 s at 100 Mbit/s."""
_RETRY_S: Final = 120
"""How long a request that fails for a passing reason (500, 503, a broken connection) is repeated."""
_PAUSES_S: Final = (0.1, 0.5, 2.0)
_T = TypeVar("_T")
_NO_BUCKET_CODES: Final = ("NoSuchBucket", "ContainerNotFound")
_NO_BUCKET: Final = "make the bucket first, or check the URL"
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_PLAIN: Final = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "AZURE_STORAGE_USE_EMULATOR")
_OF_THE_MACHINE: Final = "169.254.169.254"
"""Where cloud machines ask for their own identity: the last resort of who was given no other."""
_DELETE_AT_ONCE: Final = 1000


class RemoteError(StorageError):
    """The object store refused, or does not answer."""


class MissingObjectError(RemoteError):
    """There is no object of that name."""


class BrokenOffError(RemoteError):
    """A connection broke in the middle of an answer: the one failure that the library does not repeat by itself."""


class Found(NamedTuple):
    """One object of a list; `modified_ns` is by the store's clock."""

    path: str
    size: int
    modified_ns: int


@dataclass
class Traffic:
    """What went over the wire since it was made."""

    requests: int = 0
    sent: int = 0
    received: int = 0


class Bucket:
    """One place in an object store. Safe to use from several threads; a forked child opens its own."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self._store = store
        self._lock = Lock()
        self.url = url
        self.traffic = Traffic()

    @classmethod
    def open(cls, url: str, *, request_s: float = _REQUEST_S, retry_s: float = _RETRY_S) -> Bucket:
        """The place that a URL names; nothing is asked of it yet. How long a request may take, and how long one that
        fails for a passing reason is repeated. IjfsError, RemoteError."""
        with _errors(f"opening {url}"):
            return cls(_store(url, request_s, retry_s), url)

    def get(self, path: str) -> bytes:
        """A whole object. MissingObjectError, RemoteError."""
        import obstore

        def get() -> bytes:
            with _errors(f"reading {self.url}/{path}"):
                return bytes(obstore.get(self._store, path).bytes())

        data = _again(get)
        self._count(received=len(data))
        return data

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of an object. MissingObjectError; RemoteError, also where there are fewer."""
        import obstore

        with _errors(f"reading {self.url}/{path}"):
            data = bytes(obstore.get_range(self._store, path, start=start, end=end))
        self._count(received=len(data))
        if len(data) != end - start:
            raise RemoteError(f"{self.url}/{path} ends after {start + len(data)} bytes", hint="`ijfs fsck REMOTE`")
        return data

    def put(self, path: str, data: bytes) -> None:
        """Write an object, over the one that is there. The store checks its hash where it speaks S3. RemoteError."""
        self._put(path, data, "overwrite")

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; whether it was written. RemoteError."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._put(path, data, "create")
        except (AlreadyExistsError, PreconditionError):
            self._count()
            return False
        return True

    def _put(self, path: str, data: bytes, mode: Any) -> None:
        import obstore

        with _errors(f"writing {self.url}/{path}"):
            obstore.put(self._store, path, data, mode=mode, use_multipart=False)
        self._count(sent=len(data))

    def size(self, path: str) -> int | None:
        """How long an object is; None where there is none. RemoteError."""
        found = self.look(path)
        return found.size if found is not None else None

    def look(self, path: str) -> Found | None:
        """An object's size and when it was written; None where there is none. RemoteError."""
        import obstore

        self._count()
        try:
            with _errors(f"looking for {self.url}/{path}"):
                return _found(obstore.head(self._store, path))
        except MissingObjectError:
            return None

    def list(self, prefix: str) -> Iterator[Found]:
        """All objects whose names begin with a directory. RemoteError."""
        import obstore

        with _errors(f"listing {self.url}/{prefix}"):
            for page in obstore.list(self._store, prefix, chunk_size=1000):
                self._count()
                yield from map(_found, page)

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; those that are gone are fine. RemoteError."""
        import obstore

        for at in range(0, len(paths), _DELETE_AT_ONCE):
            lot = list(paths[at : at + _DELETE_AT_ONCE])

            def delete(lot: list[str] = lot) -> None:
                with contextlib.suppress(MissingObjectError), _errors(f"deleting in {self.url}"):
                    obstore.delete(self._store, lot)

            _again(delete)
            self._count()

    def _count(self, sent: int = 0, received: int = 0) -> None:
        with self._lock:
            self.traffic.requests += 1
            self.traffic.sent += sent
            self.traffic.received += received


def _again(call: Callable[[], _T]) -> _T:
    """Call, and again after a while where a connection broke in the middle; of what may be done twice. RemoteError."""
    for pause_s in _PAUSES_S:
        try:
            return call()
        except BrokenOffError:
            time.sleep(pause_s)
    return call()


def _found(meta: Any) -> Found:
    return Found(meta["path"], meta["size"], int(meta["last_modified"].timestamp() * 1e9))


def check_url(url: str) -> str:
    """The URL without a slash at its end. IjfsError for one that names no place in a store."""
    parts = urlsplit(url)
    if parts.scheme == "":
        hint = (
            f"`file://{url}`"
            if url.startswith("/")
            else "`s3://BUCKET/PREFIX`, `gs://…`, `az://…`, `file:///DIRECTORY`"
        )
        raise IjfsError(f"{url!r} is no URL", hint=hint)
    if parts.scheme not in SCHEMES:
        raise IjfsError(f"{url!r}: there is no store for {parts.scheme}:", hint=f"one of {', '.join(SCHEMES)}")
    if parts.username or parts.password:
        raise IjfsError("a URL with a password would be kept where others may read it",
                        hint="the usual variables and profiles have it: docs/remotes.md")  # fmt: skip
    if not (parts.netloc or (parts.scheme == "file" and len(parts.path) > 1)):
        raise IjfsError(f"{url!r} names no bucket")
    return url.rstrip("/")


def _store(url: str, request_s: float, retry_s: float) -> ObjectStore:
    try:
        from obstore.store import LocalStore, from_url
    except ModuleNotFoundError:
        raise IjfsError("object stores need a library that is not installed",
                        hint="`pip install 'ijfs[remote]'`") from None  # fmt: skip
    parts = urlsplit(check_url(url))
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)), mkdir=True)
    retry: Any = {"max_retries": 12, "retry_timeout": timedelta(seconds=retry_s)}
    options: Any = {
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "timeout": timedelta(seconds=request_s),
        "allow_http": _is_plain(),
    }
    config: Any = _profile() if parts.scheme == "s3" else None
    return from_url(url, config=config, client_options=options, retry_config=retry)


def _is_plain() -> bool:
    """Whether somebody asked for an endpoint without TLS."""
    variables = os.environ
    return any(variables.get(name, "").startswith("http://") for name in _ENDPOINTS) or any(
        variables.get(name, "").lower() in ("true", "1") for name in _PLAIN
    )


def _profile() -> dict[str, str] | None:
    """What ~/.aws says where no variable does: obstore reads the variables and the machine's own identity alone."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    import configparser

    name = os.environ.get("AWS_PROFILE", "default")
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(configparser.Error):
            parser.read(os.environ.get(variable) or Path.home() / ".aws" / file)
        if parser.has_section(section):
            found.update(parser[section])
    names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key",
             "aws_session_token": "session_token", "region": "region", "endpoint_url": "endpoint"}  # fmt: skip
    return {names[key]: value for key, value in found.items() if key in names} or None


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """The store's errors as ours, but for those that say that an object is there already."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        if any(code in str(error) for code in _NO_BUCKET_CODES):
            raise RemoteError(f"{what}: there is no such bucket", hint=_NO_BUCKET) from error
        raise MissingObjectError(f"{what}: it is not there") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise RemoteError(f"{what}: the store says no", hint="check the credentials: docs/remotes.md") from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise
    except exceptions.BaseError as error:
        if _OF_THE_MACHINE in str(error):
            raise RemoteError(f"{what}: there are no credentials", hint="docs/remotes.md says where from") from error
        if any(code in str(error) for code in _NO_BUCKET_CODES):
            raise RemoteError(f"{what}: there is no such bucket", hint=_NO_BUCKET) from error
        broken_off = "body error" in str(error).partition("Debug source")[0]
        raise (BrokenOffError if broken_off else RemoteError)(
            f"{what}: {_sentence(error)}", hint="check the URL and the network, then try again"
        ) from error
    except OSError as error:
        raise RemoteError.of(what, error) from error


def _sentence(error: BaseException) -> str:
    """The first line of what the library says, which goes on with its own structures; of a request that was repeated
    what it failed with at last, for what was asked is said already."""
    line = str(error).splitlines()[0][:300]
    repeated = re.fullmatch(r".*?, after (\d+) retries,.*? - (.*)", line)
    return f"{repeated[2]}, {int(repeated[1]) + 1} times in a row" if repeated else line
