"""How a call of the SDK ends before its time: by its `timeout`, or because an async caller was cancelled.

What a keeper was asked to do goes on, whoever waits for it: leaving is all there is to do (`within`). A cell or a
command is the caller's own work: it is ended, and it learns of that from the `Cancellation` of its call.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ijfs_engine.errors import IjfsError

T = TypeVar("T")


class CallTimeoutError(IjfsError):
    """A call took longer than its `timeout`. What it began goes on; no instance is lost."""

    default_hint = "`ijfs ps` shows how far it is"


class Cancellation:
    """Whether the caller of the current call still wants it. Thread-safe."""

    def __init__(self) -> None:
        self._flag = threading.Event()

    def cancel(self) -> None:
        """Say that nobody wants the call any more."""
        self._flag.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody said so."""
        return self._flag.is_set()


_current: contextvars.ContextVar[Cancellation | None] = contextvars.ContextVar("ijfs_cancellation", default=None)


def current() -> Cancellation:
    """The cancellation of the call that this thread is in; one that nobody cancels where there is none."""
    return _current.get() or Cancellation()


def under(cancellation: Cancellation) -> contextvars.Token[Cancellation | None]:
    """From here on in this context, calls are cancelled by this one."""
    return _current.set(cancellation)


def within(timeout: float | None, what: str, call: Callable[[], T]) -> T:
    """What `call` returns or raises; CallTimeoutError after `timeout` seconds, and then it goes on without a
    listener."""
    if timeout is None:
        return call()
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=[run], name=f"ijfs-{what}", daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise CallTimeoutError(f"{what} is not done after {timeout:g} s; it goes on")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]
