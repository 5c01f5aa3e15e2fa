"""The keeper's protocol: one JSON object a line. Its ends are client/connection.py and keeper/control_socket.py.

A request is `{"id": 1, "verb": "save", "args": {…}}`. Its answers carry the same id: any number of
`{"id": 1, "event": {"kind": …, …}}`, then one `{"id": 1, "ok": {…}}` or `{"id": 1, "error": {…}}` (error_fields).
Bytes (a notebook document) travel as base64 in JSON, as msgspec does it.

Each verb's arguments are a class here, each event too; `VERBS` says which verb has which, and what its answer holds.
The classes are the wire: a field that is missing has its default, one that is not known is ignored, so that a client
and a keeper of neighbouring versions understand each other. Anything else is a ProtocolError.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec

from ijfs.live.errors import ProtocolError
from ijfs.live.model.records import NO_LIMITS, Base, HostPort, Idle, InstanceInfo, InstanceSpec, Limits, SaveResult

MAX_LINE = 64 << 20
"""A notebook document is the largest thing that crosses; 64 MiB of base64 is more than Jupyter itself bears."""

Reply = TypeVar("Reply")

FilesChoice = Literal["keep", "restore", "private"]
"""Folders that a program shared with the host, when it comes back: `keep` shares them as they are now, `restore` first
puts them as they were, `private` gives it a copy as they were."""


class Arguments(msgspec.Struct, Generic[Reply], frozen=True, kw_only=True):
    """The arguments of a verb. `Reply` is what its answer holds (None: nothing)."""


class StartArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Start a program. `again`: an ended instance of the name begins anew, with its files and ports. `base`: what its
    files come from (None: this machine's root), and `delta` what of this machine's root is not as that has it (packed
    as bases/delta.py does it). `secrets`: values that the keeper tells the program, and writes nowhere."""

    spec: InstanceSpec
    again: bool = False
    base: Base | None = None
    delta: dict[str, list[str]] | None = None
    secrets: dict[str, str] = {}


Busy = Literal["interrupt", "refuse", "force"]
"""What becomes of a cell that a kernel runs when it shall go back: it is interrupted and waited for; it goes on, and
the kernel does not go back (KernelBusyError); it is left behind."""


class RestoreArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Bring a snapshot (any spelling) back: as the first request into a new instance, later in place.

    `on_demand`: memory that it does not touch comes when it is saved. `gpus`: index or UUID of those to use, in the
    order in which the program held some. `again`: an ended instance
    leaves its ports to this one. `siblings`: how many instances of the snapshot are started together.
    `same_random`: it draws the same random numbers as every other copy. `env`: variables that it gets, over those that
    the snapshot's program had (records.InstanceSpec.late_env). `ports`: where its ports are to be reached, instead of
    where the snapshot says. `files`: what becomes of folders that it shared with the host (FilesChoice); "": they stay
    as they are for a program of the name that it was saved under, and any other gets its own. `busy`: of a cell
    that a kernel runs, going back in place. `notebook`: the one that a kernel belongs to from now on; None: in place
    it stays as it is, and a new instance belongs to none. `front_end`, `front_end_session`: as InstanceSpec has
    them. `limits`: over those that the snapshot's program had. `idle`: instead of what that had (None).
    `ephemeral`: at its end it leaves nothing behind.
    `secrets`: as for a start; going back in place, over those that there are.
    """

    snapshot: str
    eager: bool = False
    on_demand: bool = False
    gpus: tuple[str, ...] = ()
    again: bool = False
    siblings: int = 1
    same_random: bool = False
    env: dict[str, str] = {}
    ports: tuple[HostPort, ...] = ()
    files: FilesChoice | Literal[""] = ""
    busy: Busy = "interrupt"
    notebook: str | None = None
    front_end: bool = False
    front_end_session: str = ""
    limits: Limits = NO_LIMITS
    idle: Idle | None = None
    ephemeral: bool = False
    secrets: dict[str, str] = {}


class AdoptArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Take over the program of a keeper that was killed."""


class StatusArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Ask how the instance stands."""


class SaveArguments(Arguments[SaveResult], frozen=True, kw_only=True):
    """Save the program. Without `wait` the answer comes at the thaw, else when the snapshot is durable.

    `branch`: None is the instance's own. `stop`: end the program in the frozen state; with `park` to be woken
    again. `notebook`: the document as it
    is in an editor; None takes the file that the kernel belongs to. `verify`: try whether it can be restored. `force`,
    `gpu_timeout_s`: for a GPU program.
    `auto`: nobody asked for it; such saves are thinned out. What the keeper asks of itself: `nonce` is the program's
    own request.
    """

    message: str = ""
    branch: str | None = None
    stop: bool = False
    park: bool = False
    notebook: bytes | None = None
    force: bool = False
    gpu_timeout_s: float | None = None
    wait: bool = True
    verify: bool = False
    nonce: str | None = None
    auto: bool = False


class WaitSaveArguments(Arguments[SaveResult], frozen=True, kw_only=True):
    """Wait until a save is durable that was not waited for; `number` is that of its result."""

    number: int


class WaitMemoryArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Wait until all memory of a lazy restore is in."""


class WatchArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Hear what happens to the instance, as `Happened` events, until its program ends or the client leaves.

    `documents`: the client can give the notebook as its editor has it, when a `document` event asks.
    """

    documents: bool = False


class GiveArguments(Arguments[None], frozen=True, kw_only=True):
    """The notebook as its editor has it, which a `document` event asked for; `ticket` is the text of that."""

    ticket: str
    document: bytes


class NotebookArguments(Arguments[None], frozen=True, kw_only=True):
    """The notebook that a kernel belongs to has this path from now on."""

    path: str = ""


class SignalArguments(Arguments[None], frozen=True, kw_only=True):
    """Send a signal to the program's process group."""

    number: int


class StopArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """End the program when all saves are durable: SIGTERM, after `timeout_s` SIGKILL. `force`: even if one failed."""

    timeout_s: float = 5.0
    force: bool = False


class ParkArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Let the program stand still in host memory, its GPU memory too. Clients keep their connections, and wait.
    `disk`: save it and end it instead; its snapshot is what a wake brings back."""

    disk: bool = False


class WakeArguments(Arguments[InstanceInfo], frozen=True, kw_only=True):
    """Let a parked program go on."""


class Verb(msgspec.Struct, frozen=True):
    """What a verb takes, and what its answer holds."""

    arguments: type[Arguments[Any]]
    reply: type[InstanceInfo | SaveResult] | None


# `start`, `restore` (into a new instance) and `adopt` are what a keeper is spawned with: they come over the socket that
# the client handed it, the others over the control socket.
VERBS = {
    "start": Verb(StartArguments, InstanceInfo),
    "restore": Verb(RestoreArguments, InstanceInfo),
    "adopt": Verb(AdoptArguments, InstanceInfo),
    "status": Verb(StatusArguments, InstanceInfo),
    "save": Verb(SaveArguments, SaveResult),
    "wait_save": Verb(WaitSaveArguments, SaveResult),
    "wait_memory": Verb(WaitMemoryArguments, InstanceInfo),
    "watch": Verb(WatchArguments, InstanceInfo),
    "give": Verb(GiveArguments, None),
    "notebook": Verb(NotebookArguments, None),
    "signal": Verb(SignalArguments, None),
    "stop": Verb(StopArguments, InstanceInfo),
    "park": Verb(ParkArguments, InstanceInfo),
    "wake": Verb(WakeArguments, InstanceInfo),
}
_NAMES = {verb.arguments: name for name, verb in VERBS.items()}


class PhaseBegan(msgspec.Struct, frozen=True, tag_field="kind", tag="phase"):
    """A part of the work begins."""

    name: str


class BytesDone(msgspec.Struct, frozen=True, tag_field="kind", tag="progress"):
    """How far a part of the work is, in bytes; `total` 0 where that is not known."""

    name: str
    done: int
    total: int


class Notice(msgspec.Struct, frozen=True, tag_field="kind", tag="notice"):
    """What a person should know."""

    text: str


What = Literal["saving", "saved", "failed", "restored", "memory", "busy", "idle", "input", "document", "exited"]
"""saving: the program runs on after a freeze, and what was taken is being stored; saved: it is durable; failed: it will
not be. restored: the program went back in place. memory: all memory of a lazy restore is in. busy, idle: a kernel runs
a cell, or waits for one; input: a cell waits for what somebody types.
document: the notebook is asked for (GiveArguments), of clients that can give it. exited: the program has ended."""


class Happened(msgspec.Struct, frozen=True, tag_field="kind", tag="happened"):
    """Something happened to the instance. `snapshot`: which one was saved, or gone back to; `text`: its message, or why
    something failed or ended."""

    what: What
    snapshot: str = ""
    text: str = ""


Event = PhaseBegan | BytesDone | Notice | Happened
Emit = Callable[[Event], None]
"""Where a verb's events go."""


_NO_ARGUMENTS = msgspec.Raw(b"{}")
_ABSENT = msgspec.Raw()


class Request(msgspec.Struct, frozen=True):
    """One line to a keeper, its arguments not yet looked at."""

    id: int | None = None
    verb: str = ""
    args: msgspec.Raw = _NO_ARGUMENTS

    def arguments(self) -> Arguments[Any]:
        """The verb's arguments; ProtocolError where there is no such verb, or they are not what it takes."""
        verb = VERBS.get(self.verb)
        if verb is None:
            raise ProtocolError(f"a keeper knows no verb `{self.verb}`")
        try:
            args = _NO_ARGUMENTS if bytes(self.args) == b"null" else self.args
            found: Arguments[Any] = msgspec.json.decode(args, type=verb.arguments)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"`{self.verb}` does not take these arguments: {error}") from error
        return found


class KeeperLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line from a keeper: an event, the reply, or an error as errors.error_fields has it."""

    id: int | None
    event: msgspec.Raw = _ABSENT
    ok: msgspec.Raw = _ABSENT
    error: dict[str, Any] | None = None

    @property
    def is_reply(self) -> bool:
        """Whether this line says that the verb is done."""
        return self.ok is not _ABSENT

    def known_event(self) -> Event | None:
        """The event of this line; None where it has none, or one that only a newer keeper knows."""
        if self.event is _ABSENT:
            return None
        try:
            found: Event = msgspec.json.decode(self.event, type=Event)
        except msgspec.ValidationError:
            return None
        return found


def verb_of(arguments: Arguments[Any]) -> str:
    """The verb that takes such arguments."""
    return _NAMES[type(arguments)]


def encode_request(number: int, arguments: Arguments[Any]) -> bytes:
    """The line that asks for the verb which takes such arguments."""
    return _line({"id": number, "verb": verb_of(arguments), "args": arguments})


def encode_event(number: int | None, event: Event) -> bytes:
    """The line of an event of a request."""
    return _line(KeeperLine(id=number, event=msgspec.Raw(msgspec.json.encode(event))))


def encode_reply(number: int | None, reply: msgspec.Struct | None) -> bytes:
    """The line that answers a request."""
    return _line(KeeperLine(id=number, ok=msgspec.Raw(msgspec.json.encode({} if reply is None else reply))))


def encode_error(number: int | None, error: dict[str, Any]) -> bytes:
    """The line that refuses a request; `error` as errors.error_fields has it."""
    return _line(KeeperLine(id=number, error=error))


def decode_request(line: bytes) -> Request:
    """ProtocolError for what is no request."""
    try:
        return msgspec.json.decode(line, type=Request)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a line on the control socket is no request: {error}") from error


def decode_keeper_line(line: bytes) -> KeeperLine:
    """ProtocolError for what is no answer."""
    try:
        return msgspec.json.decode(line, type=KeeperLine)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a line on the control socket is no answer: {error}") from error


def decode_reply(arguments: Arguments[Reply], ok: msgspec.Raw) -> Reply:
    """What the answer to a request with these arguments holds; ProtocolError where it holds something else."""
    reply = VERBS[verb_of(arguments)].reply
    try:
        found = msgspec.json.decode(ok, type=reply) if reply is not None else None
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the keeper's answer is not what was asked for: {error}") from error
    return cast(Reply, found)


def _line(message: Any) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def first_line(sock: socket.socket) -> bytes | None:
    """The first line that comes; None where the other end leaves without one. Blocks; ProtocolError if too long."""
    sock.setblocking(True)  # whatever it was where it came from
    lines = LineBuffer()
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(1 << 16):
            if found := lines.feed(data):
                return found[0]
    return None


class LineBuffer:
    """Bytes as they come in, lines as they are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was received; return the complete lines (without newlines)."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        if len(rest) > MAX_LINE:
            raise ProtocolError(f"a line on the control socket is longer than {MAX_LINE} bytes")
        return [bytes(line) for line in lines]
