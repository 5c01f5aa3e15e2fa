"""`ijfs.save()`: asks the keeper for a snapshot of this very program, and returns twice, as fork() does.

The same request is repeated until its nonce is settled. In the program that asked, the keeper answers
"saved"; in a child restored from that snapshot, whose memory is in the middle of this loop, the child's
keeper knows the nonce from the snapshot and answers "resumed".
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from ijfs.guest import hooks, port

FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.2
"""Pauses between repeats grow by half; a save of a small program takes some 100 ms."""

PATIENCE = 100
"""Repeats in a row without an answer, 20 s of refused connections, before the keeper counts as gone. Counted,
not timed: a child may be restored hours after the snapshot, and a deadline read from a clock would be over by
then."""


@dataclass(frozen=True)
class SaveResult:
    """What one call of `save()` came to, once in the program that called it and once in every restored child."""

    id: str
    """The snapshot's id, whole, in hex; "" here after `save(wait=False)`, where it is not known yet."""
    resumed: bool
    """False in the program that saved itself, True in a child that was restored from the snapshot."""
    instance: str
    """The name of the live instance this program is now."""
    verified: bool | None = None
    """Whether the snapshot can be restored, where that was to be tried or is known; always None in a child."""
    warnings: tuple[str, ...] = ()
    """What will not be quite the same in a child."""

    @property
    def name(self) -> str:
        """The id as people write it: its first 12 digits."""
        return self.id[:12]

    def __str__(self) -> str:
        if self.resumed:
            return f"resumed from {self.name} as {self.instance}"
        if not self.id:
            return f"saving {self.instance}"
        proven = {True: "; it can be restored", False: "; it cannot be restored", None: ""}[self.verified]
        return "\n".join((f"saved {self.instance} as {self.name}{proven}", *(f"warning: {w}" for w in self.warnings)))


def save(message: str = "", *, wait: bool = True, verify: bool = False, auto: bool = False) -> SaveResult:
    """Save this program as a snapshot, and return when the snapshot is durable.

    Without `wait` it returns as soon as the program runs again, with an empty `id`; the snapshot appears when it is
    durable (`ijfs ps` says when, or why not).

    With `verify` it also tries whether the snapshot can be restored, in a sandbox that never runs, and says so. An
    `auto` one may be thinned out later, as saves after cells are.

    Returns twice: here with `resumed=False`, and with `resumed=True` in every child restored from the
    snapshot. A failed save leaves the program running and raises `GuestError`; so does a call outside a
    sandbox, or inside this thread's own `ijfs.barrier()`.
    """
    hooks.refuse_inside_barrier()
    hooks.prepare()
    return _result(settled(new_request("save", message=message, wait=wait, verify=verify, auto=auto)))


def new_request(verb: str, **fields: Any) -> dict[str, Any]:
    """A request with a nonce of its own; sending it once begins it, sending it again asks how it goes."""
    return {"verb": verb, "nonce": secrets.token_hex(16), **fields}


def settled(request: dict[str, Any]) -> dict[str, Any]:
    """Send a request until it is settled; what came of it."""
    pause = FIRST_PAUSE_S
    failures = 0
    while True:
        try:
            answer = port.ask(request)
        except port.NoAnswer as error:
            failures += 1
            if failures >= PATIENCE:
                raise _gone(error) from error
        else:
            failures = 0
            if answer.get("state") != "pending":
                return answer
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


def _result(answer: dict[str, Any]) -> SaveResult:
    state = answer.get("state")
    if state not in ("saved", "resumed", "thawed"):
        raise port.GuestError(f"the keeper answered a save with {state!r}")
    return SaveResult(
        id=str(answer["snapshot"]),
        resumed=state == "resumed",
        instance=str(answer.get("instance", "")),
        verified=answer.get("verified"),
        warnings=tuple(answer.get("warnings") or ()),
    )


def _gone(error: port.NoAnswer) -> port.GuestError:
    return port.GuestError(
        f"{error}; whether the snapshot was made is unknown, the program runs on",
        hint="`ijfs log` shows the snapshots there are, `ijfs ps` whether this program still has a keeper",
    )
