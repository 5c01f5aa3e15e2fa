"""Values that a program has from whoever started or restored it, and that no snapshot holds: `ijfs.secret("NAME")`.

The keeper has them in its memory alone. Before a save the hooks' thread writes zeros over each, in place; after it, and
in a copy, it asks the keeper again, which has what *its* caller gave. So a value that the program still holds is right
again. What the program made of one (a header, a line of a log) is its own affair: `ijfs scan` finds such traces.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from ijfs.guest import hooks, port

FILL_S = 60.0
"""How long a keeper is asked again: after a restore it listens as soon as the hooks have answered."""

FILL_AGAIN_S = 0.02

MOST_BYTES = 1 << 16

_known: dict[str, Secret] = {}
_changing = threading.RLock()
_shown = threading.Event()
"""Not set while a save is on its way: who asked the keeper then would have the value in memory again."""
_shown.set()


class Secret:
    """One value. `value` is the text, always the same object, so that nothing is left behind of those that were."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._text: str | None = None
        self._there = False

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"

    @property
    def value(self) -> str:
        """The text; `GuestError` where nobody gave one to this program, or this copy of it. During a save, who asks
        waits for its end."""
        _shown.wait(hooks.SAVE_WAIT_S)
        with _changing:
            if not self._there:
                self._fill()
            assert self._text is not None
            return self._text

    def _fill(self) -> None:
        """Ask the keeper. A text of as many bytes as the one before takes its place in memory."""
        received = bytearray(MOST_BYTES)
        begins, ends = _received(self.name, received)
        view = memoryview(received)
        try:
            old = _bytes_of(self._text) if self._text is not None else None
            if old is not None and len(old) == ends - begins:
                old[:] = view[begins:ends].cast("B")
            else:
                self._text = str(view[begins:ends], "ascii")
            self._there = True
        finally:
            view.release()
            received[:] = bytes(len(received))

    def zero(self) -> None:
        """Write zeros over it."""
        if self._text is not None:
            _bytes_of(self._text)[:] = bytes(len(self._text))
        self._there = False

    def fill_again(self) -> None:
        """After a save, or in a copy: have what this program's keeper has, as soon as that answers."""
        until = time.monotonic() + FILL_S
        while time.monotonic() < until:
            try:
                with _changing:
                    if not self._there:
                        self._fill()
                return
            except port.NoAnswer:
                time.sleep(FILL_AGAIN_S)
            except port.GuestError:  # nobody gave one: who asks for it is told
                return


def secret(name: str) -> Secret:
    """The value of that name which the caller of this program gave (`ijfs run --secret NAME`), and of a copy its own.

    It is ASCII. `GuestError` outside of a sandbox, and where nobody gave one.
    """
    with _changing:
        found = _known.get(name)
        if found is None:
            hooks.keep_out_of_saves(zero_all, fill_all)
            found = Secret(name)
            _ = found.value
            _known[name] = found
        return found


def _in_child() -> None:
    """After os.fork(): the child has the values, and nobody who hides them."""
    global _changing, _shown
    _changing, _shown = threading.RLock(), threading.Event()
    _shown.set()
    if _known:
        threading.Thread(target=hooks.keep_out_of_saves, args=[zero_all, fill_all], daemon=True).start()


os.register_at_fork(after_in_child=_in_child)


def zero_all() -> None:
    """Before a save, the last thing."""
    _shown.clear()
    with _changing:
        for each in _known.values():
            each.zero()


def fill_all() -> None:
    """After a save or a restore. Not by the thread that the keeper waits for: it listens once that has answered."""
    _shown.set()
    for each in list(_known.values()):
        threading.Thread(target=each.fill_again, name="ijfs-secret", daemon=True).start()


def _received(name: str, into: bytearray) -> tuple[int, int]:
    """Where the value stands in the buffer, which holds the whole answer: a line of JSON with its length, and it."""
    view = memoryview(into)
    try:
        with socket.create_connection(port.address(), timeout=port.TIMEOUT_S) as connection:
            connection.sendall(json.dumps({"verb": "secret", "name": name}).encode() + b"\n")
            filled = 0
            while (got := connection.recv_into(view[filled:])) > 0:
                filled += got
    except OSError as error:
        raise port.NoAnswer(f"the keeper did not answer: {error}") from error
    finally:
        view.release()
    line = into.find(b"\n", 0, filled)
    if line < 0:
        raise port.NoAnswer("the keeper's answer was cut")
    length: Any = port.granted(bytes(into[:line])).get("length")
    if not isinstance(length, int) or line + 1 + length != filled:
        raise port.NoAnswer("the keeper's answer was cut")
    return line + 1, filled


def _bytes_of(text: str) -> memoryview:
    """The memory of an ASCII text, to be written to: CPython has it at the end of the object, before a zero byte."""
    size = sys.getsizeof(text)
    return memoryview((ctypes.c_ubyte * len(text)).from_address(id(text) + size - len(text) - 1)).cast("B")
