"""An agent's sessions: live kernels by name, each saved by itself before it runs something. Called by tools.py.

A session is an instance of that name and nothing else. So it is there after the agent, its client or this server died;
one that has ended comes back from its last snapshot.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

import anyio

from ijfs.live.client import api as client
from ijfs.live.errors import NoInstanceError
from ijfs.live.model.records import NO_LIMITS, Limits, Network
from ijfs.sdk import aio
from ijfs.sdk.box import Box, NotAKernelError
from ijfs.sdk.repository import Repository
from ijfs_engine import Snapshot
from ijfs_engine.errors import IjfsError, UnknownNameError

FIRST_LINE = 60
"""Characters of a cell that are its checkpoint's message."""

BEFORE = "before: "
"""How the message of a checkpoint begins that was made by itself."""

MOST_UNDO = 100
"""Checkpoints before runs that a session keeps: an agent that goes back further names a checkpoint of its own."""

THIN_EVERY = 20
"""Checkpoints between two looks at whether there are more."""


@dataclass
class Session:
    """One live kernel. `dirty`: something may have run since `Box.snapshot`; so nobody knows after a start of this
    server. `missed`: runs since that snapshot before which a save was refused. One call at a time: an agent's calls
    may come together."""

    box: aio.Box
    dirty: bool = True
    missed: int = 0
    turn: anyio.Lock = field(default_factory=anyio.Lock)

    def stands_on_snapshot(self) -> None:
        """It is as its newest snapshot has it."""
        self.dirty, self.missed = False, 0


@dataclass(frozen=True)
class Checkpoint:
    """A save before something was run: its number, or why there is none."""

    number: int | None = None
    reason: str = ""


class Sessions:
    """All sessions of one repository. `kernel`: the kernel spec of new ones; `network`: their way out; `limits`: what
    each of them may take of the machine."""

    def __init__(
        self, repo: Repository, *, kernel: str = "python3", network: Network = "none", limits: Limits = NO_LIMITS
    ) -> None:
        self.repo, self._kernel, self._network, self._limits = repo, kernel, network, limits
        self._known: dict[str, Session] = {}
        self._starting: dict[str, anyio.Lock] = {}

    async def start(self, name: str) -> tuple[Session, str]:
        """The session of this name, and where it comes from: running, back from a snapshot, or new. Calls for one name
        that come together find the one that the first of them has started."""
        async with self._starting.setdefault(name, anyio.Lock()):
            return await self._start(name)

    async def _start(self, name: str) -> tuple[Session, str]:
        try:
            info = await aio.in_thread(client.describe, self.repo.path, name)
        except NoInstanceError:
            return await self._new(name)
        if info.status == "running":
            if info.connection_file is None:
                raise NotAKernelError(f"'{name}' is not a kernel", hint="choose another session name")
            return self._session(name), "it is running"
        if info.snapshot is None:
            return await self._new(name)
        session = self._session(name)
        await session.box.restore(info.snapshot)
        session.stands_on_snapshot()
        snapshot = await aio.in_thread(self.repo.snapshot, info.snapshot)
        return session, f"it had ended; it is back as it was {_ago(snapshot.record.created_ns)}: {snapshot.id[:12]}"

    async def _new(self, name: str) -> tuple[Session, str]:
        repo = aio.Repository(self.repo)
        box = await repo.kernel(self._kernel, name=name, network=self._network, limits=self._limits)
        self._known[name] = Session(box)
        return self._known[name], "it is new"

    def _session(self, name: str) -> Session:
        if name not in self._known:
            self._known[name] = Session(aio.Box(Box(self.repo.path, name)))
        return self._known[name]

    async def ready(self, name: str) -> Session:
        """The session of this name, started or brought back where it does not run."""
        async with self._starting.setdefault(name, anyio.Lock()):
            if name in self._known and await self._known[name].box.running():
                return self._known[name]
            return (await self._start(name))[0]

    async def before_run(self, session: Session, what: str) -> Checkpoint:
        """Save the moment before something runs, where something ran since the last save; the kernel goes on at the
        thaw. A save that is refused keeps nothing from running: the result says why there is none."""
        clean, session.dirty = not session.dirty, True
        if clean:
            return Checkpoint(reason="nothing has run since the last one")
        first = next((line.strip() for line in what.splitlines() if line.strip()), "")
        message = f"{BEFORE}{first[:FIRST_LINE]}"
        try:
            return Checkpoint(await aio.in_thread(_save_beside, self.repo, session.box.name, message))
        except IjfsError as error:
            session.missed += 1
            return Checkpoint(reason=str(error))

    async def settled(self, session: Session, checkpoint: Checkpoint) -> str:
        """The id of a checkpoint once it is durable, or why there is none."""
        if checkpoint.number is None:
            return f"none ({checkpoint.reason})"
        try:
            saved = await aio.in_thread(_wait_save, self.repo, session.box.name, checkpoint.number)
        except IjfsError as error:
            session.missed += 1
            return f"none ({error})"
        session.missed = 0
        return saved

    async def undo(self, session: Session, steps: int) -> str:
        """Go back to the moment before the last run, or so many runs further; the snapshot's id. UnknownNameError, also
        where no save could be made before that run: an earlier moment is not what was asked for."""
        if steps <= session.missed:
            raise UnknownNameError(
                f"session '{session.box.name}' has no checkpoint {steps} runs back: that save was refused",
                hint=f"the newest one is {session.missed + 1} runs back",
            )
        at = await session.box.snapshot()
        back = steps - session.missed if session.dirty else steps + 1
        for _ in range(back - 1):
            parents = await at.parents() if at is not None else []
            at = parents[0] if parents else None
        if at is None:
            raise UnknownNameError(
                f"session '{session.box.name}' has no checkpoint {steps} runs back",
                hint="the tool `checkpoints` lists those that there are",
            )
        await session.box.restore(at)
        session.stands_on_snapshot()
        return at.id

    async def restore(self, session: Session, spec: str) -> str:
        """Go to any snapshot; its id."""
        snapshot = await aio.Repository(self.repo).snapshot(spec)
        await session.box.restore(snapshot)
        session.stands_on_snapshot()
        return snapshot.id

    async def checkpoint(self, session: Session, message: str) -> str:
        """Save this moment; its id."""
        # One that begins as those before runs do would be thinned out with them.
        snapshot = await session.box.save(f"asked: {message}" if message.startswith(BEFORE) else message)
        session.stands_on_snapshot()
        return snapshot.id

    async def fork(self, session: Session, names: list[str], count: int) -> list[str]:
        """Live copies as sessions of their own; their names."""
        boxes = await session.box.fork(count, names=names)
        for box in boxes:
            self._known[box.name] = Session(box, dirty=False)
        return [box.name for box in boxes]

    async def kill(self, name: str) -> None:
        """End a session and forget its unsaved files; its checkpoints stay."""
        box = await aio.Repository(self.repo).box(name)
        self._known.pop(name, None)
        await box.discard()


def _save_beside(repo: Repository, name: str, message: str) -> int:
    """A save that is returned from at the thaw; its number."""
    with client.connect(repo.path, name) as keeper:
        return keeper.save(message, wait=False).number


def _wait_save(repo: Repository, name: str, number: int) -> str:
    with client.connect(repo.path, name) as keeper:
        saved = keeper.wait_save(number).snapshot
    if number % THIN_EVERY == 0:
        thin(repo, saved)
    return saved


def thin(repo: Repository, head: str) -> None:
    """Of a session's line remove the checkpoints before runs that are further back than the newest MOST_UNDO; those
    that were asked for, tagged or are in use stay, and those of the session that it is a copy of."""
    with repo.engine() as engine:
        at: bytes | None = bytes.fromhex(head)
        whose = _program_of(engine.snapshot(bytes.fromhex(head)))
        seen = 0
        while at is not None and _program_of(engine.snapshot(at)) == whose:
            older = next(iter(engine.parents(at)), None)
            if engine.snapshot(at).message.startswith(BEFORE):
                seen += 1
                if seen > MOST_UNDO:
                    with contextlib.suppress(IjfsError):  # tagged, or a copy stands on it
                        engine.remove(at)
            at = older


def _program_of(snapshot: Snapshot) -> object:
    """The name that the program had which a snapshot was made of."""
    spec = snapshot.meta.get("spec")
    return spec.get("name") if isinstance(spec, dict) else None


def _ago(created_ns: int) -> str:
    seconds = max(0, time.time_ns() - created_ns) // 10**9
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
