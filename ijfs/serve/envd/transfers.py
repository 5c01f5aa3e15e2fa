"""`GET /files` and `POST /files`: contents of files, streamed in both directions and never whole in memory."""

from __future__ import annotations

import errno
import os
import posixpath
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import anyio
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ijfs.live.errors import InstanceExitedError
from ijfs.sdk import aio
from ijfs.serve.envd.files import NoUserError, SandboxFiles
from ijfs.serve.errors import ApiError

PIECE = 1 << 18
ATTACHED = "x-metadata-"
"""How the headers begin that are attached to a file."""
GZIP = 31
"""zlib's number for a gzip stream."""
STATUS = {errno.ENOENT: 404, errno.ENOSPC: 507, errno.EDQUOT: 507, errno.EACCES: 403, errno.EPERM: 403}


class Transfers:
    """The two handlers, for one sandbox."""

    def __init__(self, repo: Path, name: str) -> None:
        self._repo, self._name = repo, name

    async def download(self, request: Request) -> Response:
        """A file's bytes."""
        path = request.query_params.get("path", "")
        fd = await self._call(self._open, path, request.query_params.get("username") or None)
        size = os.fstat(fd).st_size
        headers = {
            "content-length": str(size),
            "content-disposition": f"inline; filename*=utf-8''{_quoted(posixpath.basename(path))}",
        }
        return StreamingResponse(_pieces(fd, size), media_type="application/octet-stream", headers=headers)

    def _open(self, path: str, user: str | None) -> int:
        with SandboxFiles(self._repo, self._name, user) as files:
            return files.open(path)

    async def upload(self, request: Request) -> Response:
        """One file as the body, or any number as a form."""
        path = request.query_params.get("path") or None
        user = request.query_params.get("username") or None
        attached = {
            name.removeprefix(ATTACHED): value for name, value in request.headers.items() if name.startswith(ATTACHED)
        }
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            if path is None:
                raise ApiError(400, "say in the parameter `path` where the file goes")
            body = _body(request)
            return JSONResponse([await self._store(path, user, attached, body)])
        async with request.form(max_files=10_000) as form:
            parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            stored = [await self._store(path or part.filename or "", user, attached, _of_part(part)) for part in parts]
        if not stored:
            raise ApiError(400, "the form has no part called `file`")
        return JSONResponse(stored)

    async def _store(
        self, path: str, user: str | None, attached: Mapping[str, str], data: AsyncIterator[bytes]
    ) -> dict[str, Any]:
        """Write what comes; whole or not at all, also when the client vanishes in the middle."""
        files = await self._call(SandboxFiles, self._repo, self._name, user)
        with files:
            writing: AbstractContextManager[IO[bytes]] = files.writing(path, attached)
            file = await self._call(writing.__enter__)
            try:
                async for piece in data:
                    await self._call(file.write, piece)
            except BaseException as error:
                with anyio.CancelScope(shield=True):
                    await aio.in_thread(_leave, writing, error)
                raise
            await self._call(writing.__exit__, None, None, None)
            whole = files.whole(path)
        entry = {"name": posixpath.basename(whole), "type": "file", "path": whole}
        return entry | ({"metadata": dict(attached)} if attached else {})

    async def _call(self, call: Any, *args: Any) -> Any:
        try:
            return await aio.in_thread(call, *args)
        except NoUserError as error:
            raise ApiError(401, str(error)) from None
        except InstanceExitedError as error:
            raise ApiError(502, f"the sandbox was not found: {error}") from None
        except OSError as error:
            message = f"{error.filename or 'the file'}: {(error.strerror or str(error)).lower()}"
            raise ApiError(STATUS.get(error.errno or 0, 400), message) from None


def _leave(writing: AbstractContextManager[Any], error: BaseException) -> None:
    """End it by an error, which is raised elsewhere."""
    try:
        writing.__exit__(type(error), error, error.__traceback__)
    except BaseException as raised:
        if raised is not error:
            raise


async def _pieces(fd: int, size: int) -> AsyncIterator[bytes]:
    """As much as it had at first: one that grows meanwhile would break the length that was promised."""
    try:
        at = 0
        while at < size and (data := await aio.in_thread(os.pread, fd, min(PIECE, size - at), at)):
            at += len(data)
            yield data
    finally:
        os.close(fd)


async def _body(request: Request) -> AsyncIterator[bytes]:
    unpack = zlib.decompressobj(GZIP) if request.headers.get("content-encoding") == "gzip" else None
    async for data in request.stream():
        rest = data
        if unpack is None:
            yield rest
            continue
        while rest:
            try:
                yield unpack.decompress(rest, PIECE)
            except zlib.error as error:
                raise ApiError(400, f"the body is no gzip stream: {error}") from None
            rest = unpack.unconsumed_tail


async def _of_part(part: UploadFile) -> AsyncIterator[bytes]:
    while data := await part.read(PIECE):
        yield data


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
