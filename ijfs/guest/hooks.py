"""What a program wants done around a save: `before_save`, `after_restore`, `barrier`.

One daemon thread per process listens on a loopback port that it tells the keeper; the keeper connects to it
with one event a connection. Listening costs nothing, and a thread blocked in accept() is what CRIU restores
most simply. The thread is started only when there is something for it to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ijfs.guest import port, randomness

Hook = TypeVar("Hook", bound=Callable[[], object])

BARRIER_WAIT_S = 9.0
"""How long a save waits for barriers to be left: less than the 10 s that the keeper waits for an answer."""

ANNOUNCE_S = 60.0
"""How long a keeper that does not answer is told again of the listener."""

ANNOUNCE_AGAIN_S = 0.1

SAVE_WAIT_S = 30.0
"""How long a barrier waits for a save to end. Longer means that the keeper died before it said so."""

_before: list[Callable[[], object]] = []
_after_restore: list[Callable[[], object]] = []


class Gate:
    """Keeps barriers and saves apart: any number of barriers at once, or one save."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._barriers = 0
        self._saving = False
        self._depth = threading.local()

    @property
    def inside(self) -> bool:
        """Whether the calling thread is inside a barrier."""
        return getattr(self._depth, "value", 0) > 0

    def enter(self) -> None:
        """Begin a barrier, after a save that is going on; nested ones never wait."""
        with self._changed:
            if not self.inside:
                self._changed.wait_for(lambda: not self._saving, SAVE_WAIT_S)
            self._barriers += 1
        self._depth.value = getattr(self._depth, "value", 0) + 1

    def leave(self) -> None:
        """End the innermost barrier of this thread."""
        self._depth.value -= 1
        with self._changed:
            self._barriers -= 1
            self._changed.notify_all()

    def close(self) -> bool:
        """Begin a save once no barrier is open; False when that took too long, and then nothing is held."""
        with self._changed:
            self._saving = self._changed.wait_for(lambda: self._barriers == 0, BARRIER_WAIT_S)
            return self._saving

    def open(self) -> None:
        """End a save."""
        with self._changed:
            self._saving = False
            self._changed.notify_all()


_before_last: list[Callable[[], object]] = []
_after_first: list[Callable[[], object]] = []
_gate = Gate()
_listener: _Listener | None = None
_starting = threading.Lock()


def before_save(hook: Hook) -> Hook:
    """Run `hook()` before each save of this program, in the hooks' own thread; usable as a decorator.

    The program's other threads go on meanwhile. The keeper waits at most 10 s for all hooks; an exception in
    one goes to the keeper's log and does not stop the save. Outside a sandbox the hook is kept and never called.
    """
    _before.append(hook)
    _listen()
    return hook


def after_restore(hook: Hook) -> Hook:
    """Run `hook()` in every child that is restored from a snapshot of this program; usable as a decorator.

    It runs before `ijfs.save()` returns in the child, at the same time as the child's other threads.
    """
    _after_restore.append(hook)
    _listen()
    return hook


def keep_out_of_saves(hide: Callable[[], object], show: Callable[[], object]) -> None:
    """Have `hide` called before each save, when all hooks have run, and `show` after it and in each copy, before them.
    Once or again, as after os.fork()."""
    if hide not in _before_last:
        _before_last.append(hide)
        _after_first.append(show)
    _listen()


@contextlib.contextmanager
def barrier() -> Iterator[None]:
    """A stretch of code that no save may cut: a save waits until it is left, and is refused after 9 s.

    For work whose state is not the process's alone, such as capturing a CUDA graph. `ijfs.save()` inside it is refused.
    """
    _listen()
    _gate.enter()
    try:
        yield
    finally:
        _gate.leave()


def refuse_inside_barrier() -> None:
    """Raise `GuestError` when this thread is inside a barrier: its save would wait for itself."""
    if _gate.inside:
        raise port.GuestError("ijfs.save() was called inside ijfs.barrier()", hint="call it after the block")


def prepare() -> None:
    """Called before a save this program asks for: have the built-in hook listened for, where it applies."""
    if "torch" in sys.modules:
        _listen()


def _listen() -> None:
    """Start the listener once per process and tell the keeper its port; nothing outside a sandbox."""
    global _listener
    if not port.in_sandbox():
        return
    with _starting:
        if _listener is None:
            _listener = _Listener()
            _listener.start()
    if not _listener.announce():
        threading.Thread(target=_announce_later, args=[_listener], name="ijfs-announce", daemon=True).start()


def _announce_later(listener: _Listener) -> None:
    """The keeper listens a moment after the program's start, and not during a freeze: a hook must not be lost by
    that."""
    until = time.monotonic() + ANNOUNCE_S
    while time.monotonic() < until and listener is _listener and not listener.announce():
        time.sleep(ANNOUNCE_AGAIN_S)


class _Listener(threading.Thread):
    """Takes the keeper's events, one a connection, and answers each when its hooks have run."""

    def __init__(self) -> None:
        super().__init__(name="ijfs-hooks", daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]

    def announce(self) -> bool:
        """Tell the keeper the port; whether it has heard. A refusal is an answer: asking again would not change it."""
        try:
            port.ask({"verb": "hooks", "port": self.port})
        except port.NoAnswer:
            return False
        except port.GuestError:
            return True
        return True

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, ValueError):
                connection.settimeout(port.TIMEOUT_S)
                told = port.decode(port.read_line(connection))
                variables = told.get("env")
                answer = handle(
                    told.get("event"),
                    beside=told.get("beside") is True,
                    env=variables if isinstance(variables, dict) else {},
                )
                connection.sendall(json.dumps(answer).encode() + b"\n")


def handle(event: object, *, beside: bool = False, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run what an event of the keeper asks for; returns the answer to send. Unknown events are taken for done.

    `beside`: this is a copy, and others of the same snapshot may run. `env`: variables that it has from now on; its
    hooks find them in os.environ.
    """
    if event == "before_save":
        if not _gate.close():
            message = f"the program is inside ijfs.barrier() for more than {BARRIER_WAIT_S:g} s"
            return {**_error("BarrierError", message), "refuse": True}
        return _outcome([free_torch_cache, end_compile_workers, *_before, *_before_last])
    _gate.open()
    for show in _after_first:
        show()
    if event != "after_restore":
        return _outcome([])
    if env:
        os.environ.update(env)
    answer = _outcome([randomness.reseed, *_after_restore] if beside else _after_restore)
    return {**answer, "ok": {"env": True}} if env else answer


def _outcome(hooks: list[Callable[[], object]]) -> dict[str, Any]:
    """Call each hook. A broken one must not keep a program from being saved, so failures are only reported."""
    failures = []
    for hook in hooks:
        try:
            hook()
        except Exception as error:
            failures.append(f"{getattr(hook, '__qualname__', hook)}: {type(error).__name__}: {error}")
    return _error("HookError", "; ".join(failures)) if failures else {"ok": {}}


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "hint": None, "exit_code": 1}}


def free_torch_cache() -> None:
    """Give PyTorch's cached, unused GPU blocks back before a save, or they are copied to the host and stored.

    A 2 GiB tensor beside a freed 4 GiB temporary made a 7.4 GiB image without it. Only when CUDA is in use
    already: a call that initialised it would create a context.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()


def end_compile_workers() -> None:
    """End the processes that torch.compile keeps to compile in: a dozen and more, which would be in every snapshot.

    The next compilation starts new ones. Not while one is under way: it would fail.
    """
    module = sys.modules.get("torch._inductor.async_compile")
    pools = list(getattr(module, "_pool_set", ()))
    if module is not None and pools and not any(_is_compiling(pool) for pool in pools):
        module.shutdown_compile_workers()


def _is_compiling(pool: object) -> bool:
    """Whether a pool has work; one that does not say so under a name of any release known is taken to have."""
    names = ("pending_futures", "pending_jobs", "_pending_work_items")
    jobs = [getattr(pool, name) for name in names if hasattr(pool, name)]
    return not jobs or any(jobs)


def _forget_in_child() -> None:
    """After os.fork(): the child has the listening socket but not its thread; the keeper would wait for it."""
    global _listener, _gate, _starting
    if _listener is not None:
        _listener.socket.close()
    _listener, _gate, _starting = None, Gate(), threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
