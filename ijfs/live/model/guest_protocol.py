"""What a program in a sandbox may ask of its keeper, and what it is told: the keeper's side of the guest protocol.

docs/architecture.md, "The guest protocol", has the wire; keeper/guest_port.py carries it. The program's side,
ijfs.guest, runs in any interpreter with the standard library only, and perhaps for years: a restored program brings
the code of its day along. So a missing field has its default here, and one that is not known is ignored.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

from ijfs.live.errors import ProtocolError, error_fields
from ijfs_engine.errors import IjfsError


class GuestSave(msgspec.Struct, frozen=True):
    """Save me. May come any number of times; `nonce` says which save is meant. `auto`: it may be thinned out."""

    nonce: str = ""
    message: str = ""
    wait: bool = True
    verify: bool = False
    auto: bool = False


class GuestBack(msgspec.Struct, frozen=True):
    """Take me back to a snapshot (any spelling), in place; "": to before the last cell. `save_first`: what I am is
    saved before; who goes forward to that hears `resumed` of this nonce. Nobody who was taken back hears anything."""

    nonce: str = ""
    snapshot: str = ""
    save_first: bool = True


class GuestFork(msgspec.Struct, frozen=True):
    """Save me, and make that many live copies of it. I hear their names, each copy `resumed`, with its number."""

    nonce: str = ""
    count: int = 1
    message: str = ""


class GuestVerb(msgspec.Struct, frozen=True):
    """Run a verb of the command line for me, outside (keeper/outside.py has which). `columns`: how wide it may be."""

    nonce: str = ""
    words: tuple[str, ...] = ()
    columns: int = 100


class GuestStatus(msgspec.Struct, frozen=True):
    """Which instance am I, on which snapshot?"""


class GuestLog(msgspec.Struct, frozen=True):
    """Which snapshots, branches and tags are there?"""


class GuestCell(msgspec.Struct, frozen=True):
    """A cell has ended: save me where that is worth it. `dry`: only say whether the numbers will do.

    Save when `every_s` seconds have passed since the last save of any kind, or when the share `changed` (0 to 1) of
    memory differs; never where the program would stand still for more than `limit_s` seconds.
    """

    message: str = ""
    every_s: float = 300.0
    changed: float = 0.05
    limit_s: float = 2.0
    dry: bool = False


class GuestSecret(msgspec.Struct, frozen=True):
    """Tell me a value that my caller gave for me, and that no snapshot has."""

    name: str = ""


class GuestExit(msgspec.Struct, frozen=True):
    """Somebody typed `exit` in me. What is that to come to?"""


class GuestHooks(msgspec.Struct, frozen=True):
    """Tell me of saves and restores, at this port of 127.0.0.1."""

    port: int


GuestRequest = (
    GuestSecret
    | GuestSave
    | GuestStatus
    | GuestLog
    | GuestCell
    | GuestExit
    | GuestHooks
    | GuestBack
    | GuestFork
    | GuestVerb
)

GUEST_VERBS: dict[str, type[GuestRequest]] = {
    "save": GuestSave,
    "status": GuestStatus,
    "log": GuestLog,
    "cell": GuestCell,
    "exit": GuestExit,
    "hooks": GuestHooks,
    "back": GuestBack,
    "fork": GuestFork,
    "verb": GuestVerb,
    "secret": GuestSecret,
}


class SaveAnswer(msgspec.Struct, frozen=True):
    """How far a save is. `saved`: durable; `thawed`: the program goes on, and it was not to be waited for; `resumed`:
    who asks was restored from that snapshot. `instance`: whose answer this is. `verified`: whether it can be restored,
    where that was tried or is known; `warnings`: what will not be quite the same. `names`: of the copies that were
    made; `number`: which of them this is, from 1."""

    state: Literal["pending", "thawed", "saved", "resumed"]
    snapshot: str | msgspec.UnsetType = msgspec.UNSET
    instance: str | msgspec.UnsetType = msgspec.UNSET
    verified: bool | msgspec.UnsetType | None = msgspec.UNSET
    warnings: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    names: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    number: int | msgspec.UnsetType = msgspec.UNSET


class VerbAnswer(msgspec.Struct, frozen=True):
    """What a verb printed, once it is done, and its exit code."""

    state: Literal["done"]
    code: int
    out: str
    err: str


class StatusAnswer(msgspec.Struct, frozen=True):
    """The instance, the path of its repository, the snapshot that it stands on."""

    instance: str
    repository: str
    snapshot: str | None


class LoggedSnapshot(msgspec.Struct, frozen=True):
    """A snapshot as `%ijfs log` and `%ijfs tree` draw it; ids are in hexadecimal, sizes in bytes."""

    id: str
    parents: tuple[str, ...]
    created_ns: int
    message: str
    program: str = ""
    size: int | None = None
    added: int | None = None


class LoggedProgram(msgspec.Struct, frozen=True):
    """A live program, and the snapshot that it stands on."""

    name: str
    snapshot: str | None


class LogAnswer(msgspec.Struct, frozen=True):
    """All snapshots, branches and tags by their names, and the snapshot that the program stands on; the repository, the
    bytes that it takes, and what lives in it."""

    snapshots: tuple[LoggedSnapshot, ...]
    branches: dict[str, str]
    tags: dict[str, str]
    here: str | None
    repository: str = ""
    stored: int = 0
    live: tuple[LoggedProgram, ...] = ()


class CellAnswer(msgspec.Struct, frozen=True):
    """`note`: what the person at the notebook should know, once."""

    note: str | None = None


class ExitAnswer(msgspec.Struct, frozen=True):
    """`stays`: nobody started this kernel for himself alone, so who types `exit` leaves it. `unsaved`: it ran cells,
    before that one, that are in no snapshot. `instance`: what it is called."""

    stays: bool
    unsaved: bool
    instance: str


class HooksAnswer(msgspec.Struct, frozen=True):
    """The port is known from now on."""


class SecretAnswer(msgspec.Struct, frozen=True):
    """The value, which follows its line as it is: the program makes no text of it that it would leave behind."""

    value: bytes


GuestAnswer = SecretAnswer | SaveAnswer | VerbAnswer | StatusAnswer | LogAnswer | CellAnswer | ExitAnswer | HooksAnswer


class HookEvent(msgspec.Struct, frozen=True):
    """What a hook is told. `snapshot`: where the program came from, after a restore. `beside`: it is a copy that shall
    draw random numbers of its own; left out where it goes on in the place of what was saved. `env`: variables that it
    was given at its restore."""

    event: Literal["before_save", "after_save", "after_restore"]
    snapshot: str | msgspec.UnsetType | None = msgspec.UNSET
    beside: bool | msgspec.UnsetType = msgspec.UNSET
    env: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class HookAnswer(msgspec.Struct, frozen=True):
    """What a hook says to an event: nothing, or an error; `refuse` says that it would rather not be saved now. `ok` has
    `env` where it took the variables that it was told."""

    ok: Any = None
    error: Any = None
    refuse: bool = False


class _Head(msgspec.Struct):
    verb: str = ""


def decode_request(line: bytes) -> GuestRequest:
    """IjfsError for an unknown verb, ProtocolError for what is no request or not what its verb takes."""
    try:
        verb = msgspec.json.decode(line, type=_Head).verb
        found = GUEST_VERBS.get(verb)
        if found is None:
            raise IjfsError(f"the guest port knows no verb `{verb}`")
        return msgspec.json.decode(line, type=found)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a guest's request is not what the protocol says: {error}") from error


def encode_answer(answer: GuestAnswer | IjfsError) -> bytes:
    """The line of an answer, or of a refusal. By json: msgspec takes no path outside UTF-8."""
    if isinstance(answer, SecretAnswer):
        return json.dumps({"ok": {"length": len(answer.value)}}).encode() + b"\n" + answer.value
    if isinstance(answer, IjfsError):
        return json.dumps({"error": error_fields(answer)}).encode() + b"\n"
    return json.dumps({"ok": msgspec.to_builtins(answer)}).encode() + b"\n"


def decode_hook_answer(line: bytes) -> HookAnswer:
    """ProtocolError for what is none."""
    try:
        return msgspec.json.decode(line, type=HookAnswer)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a hook's answer is not what the protocol says: {error}") from error
