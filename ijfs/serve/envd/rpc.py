"""The two services as Connect RPC, which the package connectrpc speaks: messages in JSON, framing and errors are its.

`service` makes an ASGI application of a service's methods. The binary codec is not offered: it would need compiled
message classes, and the clients speak JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo
from connectrpc.server import ConnectASGIApplication, Endpoint

MOST_BYTES = 64 << 20
"""Of one message. Files come another way; this is for input of commands."""


class JsonCodec:
    """Messages as msgspec writes and reads them."""

    def name(self) -> str:
        """As the content type has it."""
        return "json"

    def encode(self, message: Any) -> bytes:
        """A message's bytes."""
        return msgspec.json.encode(message)

    def decode(self, data: bytes | bytearray, message_class: Any) -> Any:
        """A message; ConnectError for what is none."""
        try:
            return msgspec.json.decode(data, type=message_class)
        except msgspec.DecodeError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"this is no {message_class.__name__}: {error}") from None


class Service(ConnectASGIApplication[None]):
    """An ASGI application with some methods of one service."""

    def __init__(self, name: str, endpoints: Mapping[str, Endpoint[Any, Any]]) -> None:
        self._name = name
        super().__init__(
            service=None,
            endpoints=lambda _: {f"/{name}/{method}": endpoint for method, endpoint in endpoints.items()},  # type: ignore[misc]
            codecs=[JsonCodec()],
            compressions=(),
            read_max_bytes=MOST_BYTES,
        )

    @property
    def path(self) -> str:
        """Where its methods are."""
        return f"/{self._name}"


def method(service: str, name: str, input: type[Any], output: type[Any]) -> MethodInfo[Any, Any]:
    """What connectrpc wants to know of a method."""
    return MethodInfo(
        name=name, service_name=service, input=input, output=output, idempotency_level=IdempotencyLevel.UNKNOWN
    )
