"""The moment of `ijfs migrate` in which a program runs nowhere: asked for on the other machine, and where it goes on.

The program is stopped in a snapshot that the remote has. The other machine says in the remote that it goes on there
before it starts it, while it holds its name (`restore --moves-to`); this one says that it stays before it starts it
again. The first of the two is right for good, so that it runs on one of them, whatever becomes of the connection. It is
asked for once: what was asked, and had no answer, is never asked again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Literal

from ijfs.cli.far_host import AnsweredError, FarHost, UnreachableError
from ijfs_engine import RemoteError, Repository
from ijfs_engine.errors import IjfsError

STAYS = "stays"
PATIENCE_S = 120.0
"""How long it is tried to learn where the program goes on."""
_PAUSE_S = 2.0
_NONE_SUCH = "ConflictError"
"""What is said there of a program that goes on elsewhere than was asked."""


class UndecidedError(IjfsError):
    """The program is stopped and saved, and it cannot be learnt whether the other machine has begun to run it."""


class Handover:
    """One program in one snapshot (hex), on its way to another machine by a remote. `asked`: it may have been asked for
    there before."""

    def __init__(
        self, repository: Repository, remote: str, there: FarHost, name: str, snapshot: str, *, asked: bool = False
    ) -> None:
        self._repository = repository
        self._remote = remote
        self._there = there
        self._name = name
        self._snapshot = snapshot
        self._asked = asked
        self._refusal: AnsweredError | None = None

    @property
    def place(self) -> str:
        """What the other machine says where it goes on."""
        return f"at {self._there.host}"

    def ask(self) -> dict[str, Any]:
        """Have it run there; what `ijfs restore` says there. AnsweredError, UnreachableError."""
        self._there.run("fetch", self._remote)
        self._asked = True
        try:
            return self._restore(self.place)
        except AnsweredError as error:
            self._refusal = error
            raise

    def where(
        self, patience_s: float = PATIENCE_S, pause: Callable[[float], None] = time.sleep
    ) -> Literal["here", "there"]:
        """Where it goes on; "here": it may be started again here, and will not be there. UndecidedError."""
        deadline = time.monotonic() + patience_s
        while self._asked:
            runs = self._runs_there()
            if runs:
                return "there"
            if self._refusal is not None or self._stays() or (runs is False and self._is_over_there()):
                return "here"
            if time.monotonic() > deadline:
                raise UndecidedError(
                    f"`{self._name}` was given to {self._there.host}, which does not say whether it runs there",
                    hint=f"it is saved: `ijfs migrate {self._name} {self._there.host}` asks again; if that machine is "
                    f"lost, `ijfs restore {self._name} --name {self._name} --replace` has it run here",
                )
            pause(_PAUSE_S)
        return "here"

    def _restore(self, place: str) -> dict[str, Any]:
        spec = f"{self._remote}/{self._snapshot}"
        return self._there.run("restore", spec, "--name", self._name, "--moves-to", place)

    def _runs_there(self) -> bool | None:
        """Whether it does, or did, and has ended meanwhile; None where nobody answers."""
        try:
            found = self._there.run("ps")["instances"]
        except (AnsweredError, UnreachableError):
            return None
        return any(one["name"] == self._name and one["snapshot"] == self._snapshot for one in found)

    def _stays(self) -> bool:
        """Whether this machine was first to say where it goes on."""
        with contextlib.suppress(RemoteError):
            return self._repository.remotes.claim(self._remote, bytes.fromhex(self._snapshot), STAYS) == STAYS
        return False

    def _is_over_there(self) -> bool:
        """Whether the other machine, which said that it goes on there, has come to nothing: its name can be had, which
        is locked from before it said so until it runs or has failed. Whoever asks so gets the name and is refused."""
        try:
            self._restore("nowhere")
        except AnsweredError as error:
            return error.kind == _NONE_SUCH and not self._runs_there()
        except UnreachableError:
            pass
        return False
