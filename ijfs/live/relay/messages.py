"""Jupyter's messages in a ZMTP connection: read as they pass, and made where the keeper has something to say itself.

Used by kernel_traffic.py. Wire format: zmtp.py has it of frames; a message is frames, of which `<IDS|MSG>`, the
signature, header, parent header, metadata and content follow one another
(https://jupyter-client.readthedocs.io/en/stable/messaging.html).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from ijfs.live.relay.zmtp import COMMAND, GREETING, LONG, MORE

DELIMITER = b"<IDS|MSG>"

KEPT = 256 << 10
"""Of a frame, and frames of a message, so much is kept: headers are some hundred bytes, contents may be images."""
MOST_FRAMES = 32


class Header(msgspec.Struct, frozen=True):
    """As much of a message's header as the keeper needs."""

    msg_id: str = ""
    msg_type: str = ""
    session: str = ""
    username: str = ""


class Message(NamedTuple):
    """A message that passed: `before` are frames before the delimiter; `raw` its header as it came."""

    before: tuple[bytes, ...]
    header: Header
    parent: Header
    content: bytes
    raw: bytes


class MessageReader:
    """One direction of a connection, from its greeting on, or (`greeted`) from between two messages."""

    def __init__(self, *, greeted: bool = False) -> None:
        self._left = 0 if greeted else GREETING
        self._flags = COMMAND  # the greeting is no part of a message, and neither are commands
        self._head = bytearray()
        self._frame = bytearray()
        self._frames: list[bytes] = []
        self.greeted = greeted

    @property
    def at_rest(self) -> bool:
        """Whether nothing is half through: no message, no frame."""
        return self.greeted and not (self._left or self._head or self._frames)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete."""
        found: list[Message] = []
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._frame += data[at : at + min(step, KEPT - len(self._frame))]
                self._left -= step
                at += step
            else:
                self._head.append(data[at])
                at += 1
                if len(self._head) < (9 if self._head[0] & LONG else 2):
                    continue
                self._flags, self._left = self._head[0], int.from_bytes(self._head[1:], "big")
                self._head.clear()
            if not self._left:
                found += self._frame_ended()
        return found

    def _frame_ended(self) -> list[Message]:
        frame = bytes(self._frame)
        self._frame.clear()
        self.greeted = True
        if self._flags & COMMAND:
            return []
        if len(self._frames) < MOST_FRAMES:
            self._frames.append(frame)
        if self._flags & MORE:
            return []
        frames, self._frames = self._frames, []
        message = message_of(frames)
        return [message] if message is not None else []


def message_of(frames: Sequence[bytes]) -> Message | None:
    """The message that frames are; None where they are none."""
    if DELIMITER not in frames:
        return None
    at = frames.index(DELIMITER)
    try:
        _, raw, parent, _, content, *_ = frames[at + 1 :]
        return Message(tuple(frames[:at]), _header(raw), _header(parent), content, raw)
    except (ValueError, msgspec.DecodeError):
        return None


def _header(data: bytes) -> Header:
    return msgspec.json.decode(data, type=Header)


def made(kind: str, content: dict[str, Any], parent: Message, key: bytes, *, topic: bytes | None = None) -> bytes:
    """A message from the kernel about a request, as it goes over the wire; `topic`: over iopub."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "session": parent.header.session,
        "username": parent.header.username,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime()),
        "version": "5.3",
    }
    parts = [json.dumps(header).encode(), parent.raw, b"{}", json.dumps(content).encode()]
    before = parent.before if topic is None else (topic,)
    return encoded([*before, DELIMITER, _signature(parts, key), *parts])


def _signature(parts: Iterable[bytes], key: bytes) -> bytes:
    if not key:
        return b""
    found = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        found.update(part)
    return found.hexdigest().encode()


def encoded(frames: Sequence[bytes]) -> bytes:
    """Frames of one message as ZMTP has them."""
    found = bytearray()
    for number, frame in enumerate(frames, 1):
        flags = MORE if number < len(frames) else 0
        long = len(frame) > 255
        found += bytes([flags | LONG if long else flags]) + len(frame).to_bytes(8 if long else 1, "big") + frame
    return bytes(found)
