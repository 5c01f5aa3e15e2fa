"""What comes in a request's body, as a record."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from ijfs.serve.errors import ApiError

MOST_BYTES = 64 << 20
"""Of a JSON body: a cell may hold a file."""

T = TypeVar("T")


async def body(request: Request, kind: type[T]) -> T:
    """The body, which is JSON; an empty one is `{}`. ApiError 400 and 413."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_BYTES:
            raise ApiError(413, f"a request may have {MOST_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(bytes(data) or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is not what this call takes: {error}") from None
