"""What a kernel is doing, read off what its clients say to it and it to them. Held by relay.py.

A kernel is busy from a request to run a cell until its reply, or until it publishes that it is idle again: these come
over two connections, in either order, and a client may go by either. Requests that are open when another kernel takes
its place would wait for ever: each gets a reply that says `aborted`, and `idle` over iopub, or a notebook would show
`[*]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import trio

from ijfs.live.model.protocol import What
from ijfs.live.model.records import KernelState
from ijfs.live.relay.messages import Message, MessageReader, made
from ijfs.live.relay.zmtp import handshake_of, introduce

CHANNELS = ("shell", "control", "stdin")
"""Ports of a kernel on which somebody asks and is answered."""

RUN = "execute_request"
STATUS_TOPIC = b"kernel.ijfs.status"


POLL_S = 0.01
MOST_HELD = 1 << 20
MOST_SAID = 1 << 10
"""A handshake is some hundred bytes."""


class _Numbered(msgspec.Struct):
    """As much of an execute_reply, and of an execute_input, as is needed here."""

    execution_count: int | None = None


class _InputRequest(msgspec.Struct):
    prompt: str = ""


class Line:
    """A client's connection to one of a kernel's channels."""

    def __init__(self, channel: str, traffic: KernelTraffic) -> None:
        self.channel = channel
        self._traffic = traffic
        self._asking, self._answering = MessageReader(), MessageReader()
        self._delivering = False
        self._held = bytearray()
        self._said = bytearray()

    @property
    def said(self) -> bytes:
        """The client's handshake, where another kernel can go on with it."""
        return handshake_of(bytes(self._said)) or b""

    @property
    def resumable(self) -> bool:
        """Whether another kernel can go on where the last one stopped: nothing is half through, either way. The client
        would connect again by itself, but what it says until it notices would be lost."""
        return bool(self.said) and self._asking.at_rest and not self._held and self.can_be_told

    async def introduce(self, kernel: trio.SocketStream) -> None:
        """Say to another kernel what the client said first. ConnectionError."""
        await introduce(kernel, self.said)

    @property
    def can_be_told(self) -> bool:
        """Whether the client can be sent a message: none is half through."""
        return self._answering.at_rest and not self._delivering

    def asks(self, data: bytes) -> bytes:
        """The client says this; what of it the kernel is to hear, now."""
        if len(self._said) < MOST_SAID:
            self._said += data
        messages = self._asking.feed(data)
        if self.channel == "control":
            return self._withheld(data, messages)
        for message in messages:
            self._traffic.asked(self, message)
        return data

    def _withheld(self, data: bytes, messages: list[Message]) -> bytes:
        """What comes over control is passed on a message at a time, without one that would end a kernel which the
        client only joined."""
        self._held += data
        if self._asking.greeted and not self._asking.at_rest and len(self._held) < MOST_HELD:
            return b""
        held = bytes(self._held)
        self._held.clear()
        return b"" if any(map(self._traffic.is_refused, messages)) else held

    def begins_to_answer(self) -> None:
        """What the kernel says is on its way to the client."""
        self._delivering = True

    def answered(self, data: bytes) -> None:
        """The kernel has said this, and the client has it."""
        self._delivering = False
        for message in self._answering.feed(data):
            self._traffic.answered(self, message)


class Ear:
    """Listens to what a kernel publishes to one subscriber while a cell runs."""

    def __init__(self, traffic: KernelTraffic) -> None:
        self._traffic = traffic
        self._reader: MessageReader | None = None

    def hears(self, data: bytes, *, between: bool) -> None:
        """The kernel publishes this; `between`: the message before is whole."""
        if self._reader is None and between and self._traffic.busy:
            self._reader = MessageReader(greeted=True)
        if self._reader is None:
            return
        for message in self._reader.feed(data):
            self._traffic.published(message)
        if self._reader.at_rest and not self._traffic.busy:
            self._reader = None


class _Status(msgspec.Struct):
    execution_state: str = ""


@dataclass(frozen=True)
class _Open:
    """A request without a reply yet. `line`: None where its client has left, or it was open in a snapshot. `runs`: it
    is a cell whose end was not published yet, and `count` its number, once that was."""

    message: Message | None
    line: Line | None
    runs: bool
    count: int | None = None


@dataclass
class KernelTraffic:
    """What a kernel is doing. `tell` hears of what changes."""

    tell: Callable[[What, str], None] = lambda what, text: None
    count: int | None = None
    """The number of the last cell that ran, as its prompt shows it."""
    prompt: str | None = None
    """What somebody is asked to type, where a cell waits for that."""
    unsaved: bool = False
    """Whether a cell was run since the last save."""
    unsaved_before: bool = False
    """Whether one was, before the cell that was asked for last."""
    ends_by_message: bool = True
    """Whether it ends when a client asks it to: a front end that started it, and may, is told from one that joined."""
    owner: str = ""
    """The session of the one that may end it by a message; "" where it is not known: any."""
    _open: dict[str, _Open] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether a cell runs."""
        return any(request.runs for request in self._open.values())

    async def no_cell(self) -> None:
        """Wait until no cell runs."""
        while self.busy:
            await trio.sleep(POLL_S)

    @property
    def state(self) -> KernelState:
        """What a snapshot keeps of it."""
        return KernelState(self.count, self.busy, self.prompt)

    def goes_on_as(self, state: KernelState | None) -> None:
        """A kernel was restored that was doing this."""
        state = state or KernelState()
        self.count, self.prompt = state.count, state.prompt
        self.unsaved = self.unsaved_before = False
        self._open = {"": _Open(None, None, runs=True)} if state.busy else {}

    def is_refused(self, message: Message) -> bool:
        """Whether the kernel is not to hear this: it would end, before a restart, too."""
        may_end = self.ends_by_message and self.owner in ("", message.header.session)
        return message.header.msg_type == "shutdown_request" and not may_end

    def asked(self, line: Line, message: Message) -> None:
        """A client asks for something."""
        if line.channel == "stdin" and message.header.msg_type == "input_reply":
            self.prompt = None
        if line.channel != "shell" or not message.header.msg_type.endswith("_request"):
            return
        busy = self.busy
        runs = message.header.msg_type == RUN
        self._open[message.header.msg_id] = _Open(message, line, runs)
        if runs:
            self.unsaved_before, self.unsaved = self.unsaved, True
        if self.busy and not busy:
            self.tell("busy", "")

    def answered(self, line: Line, message: Message) -> None:
        """The kernel answers. It does what comes over shell in its order: what was open before, and belongs to nobody
        any more, is done, too."""
        if line.channel == "stdin" and message.header.msg_type == "input_request":
            with contextlib.suppress(msgspec.DecodeError):
                self.prompt = msgspec.json.decode(message.content, type=_InputRequest).prompt
                self.tell("input", self.prompt)
        if line.channel != "shell" or message.parent.msg_id not in self._open:
            return
        busy = self.busy
        if message.header.msg_type == "execute_reply":
            self._ran(_count_in(message))
        for ident in list(self._open):
            if ident == message.parent.msg_id or self._open[ident].line is None:
                del self._open[ident]
            if ident == message.parent.msg_id:
                break
        if busy and not self.busy:
            self.tell("idle", "")

    def published(self, message: Message) -> None:
        """The kernel publishes something: perhaps which number a cell has, or that it has ended."""
        ident, kind = message.parent.msg_id, message.header.msg_type
        if kind == "execute_input" and ident in self._open:
            self._open[ident] = replace(self._open[ident], count=_count_in(message))
        if kind != "status" or message.parent.msg_type != RUN:
            return
        with contextlib.suppress(msgspec.DecodeError):
            if msgspec.json.decode(message.content, type=_Status).execution_state == "idle":
                self._ended(ident)

    def _ended(self, ident: str) -> None:
        """This cell has ended, and one that was running in a snapshot, too. Its client still gets a reply."""
        busy = self.busy
        self._open.pop("", None)
        request = self._open.get(ident)
        if request is not None and request.runs:  # every subscriber's connection tells of the same end
            self._ran(request.count)
            self._open[ident] = replace(request, runs=False)
            if request.line is None:
                del self._open[ident]
        if busy and not self.busy:
            self.tell("idle", "")

    def _ran(self, count: int | None) -> None:
        """A cell of that number is through."""
        self.prompt = None
        self.count = self.count if count is None else count

    def left(self, line: Line) -> None:
        """A client has left; what it had asked for goes on."""
        self._open = {
            ident: replace(request, line=None) if request.line is line else request
            for ident, request in self._open.items()
        }

    def last_words(self, key: bytes) -> tuple[dict[Line, bytes], bytes]:
        """What the clients of a kernel that is replaced are told of their open requests, each over its line, and all
        over iopub; nothing is open afterwards."""
        replies: dict[Line, bytes] = {}
        published = b""
        for request in self._open.values():
            if request.message is None:
                continue
            kind = request.message.header.msg_type.removesuffix("_request") + "_reply"
            if request.line is not None:
                reply = made(kind, {"status": "aborted"}, request.message, key)
                replies[request.line] = replies.get(request.line, b"") + reply
            published += made("status", {"execution_state": "idle"}, request.message, key, topic=STATUS_TOPIC)
        if self.busy:
            self.tell("idle", "")
        self._open.clear()
        return replies, published


def _count_in(message: Message) -> int | None:
    """The number of a cell that a message names."""
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(message.content, type=_Numbered).execution_count
    return None
