"""A name claimed: the instance's directory made, its lock taken, and what an ended one of that name left put away.

Called by api.py and fork.py. From here to the keeper that gets the lock nobody else can have the name: of several
clients that want it at once one gets it, and the others hear so within a second.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from types import TracebackType

from ijfs.live.checks import privilege
from ijfs.live.client.record import record_of
from ijfs.live.errors import InstanceExistsError, NoInstanceError
from ijfs.live.model.paths import InstancePaths, check_name
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import KEEPER_END_S, PROBE_S, KeeperLock, is_ending, is_saving
from ijfs.live.sandbox.cleanup import clear, end_processes, is_remains, keep_log, sweep, sweep_left

_PAUSE_S = 0.02


@dataclass(slots=True)
class Claim:
    """A claimed name: its directory and its lock. A context manager that gives the name up, unless the lock was handed
    to a keeper by then."""

    paths: InstancePaths
    lock: KeeperLock
    begins_anew: bool = False
    """What is there is to go on: an ended instance with its record, or one that runs."""

    def make_room(self) -> None:
        """Put away what is left of an ended instance. The last thing before a keeper is made: until here, what fails
        leaves it as it was."""
        if self.begins_anew:
            return
        if self.paths.record.exists():
            keep_log(self.paths, record_of(self.paths).generation)
        elif any(path != self.paths.lock for path in self.paths.root.iterdir()):
            end_processes(self.paths.root)
        clear(self.paths, but=self.paths.earlier_log)

    def give_up(self) -> None:
        """Let go of the name, where it is still held; a directory that holds no instance goes."""
        if self.lock.is_held and not self.paths.record.exists():
            sweep(self.paths)
        self.lock.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()


def claim(
    repo: str | os.PathLike[str], name: str, *, again: bool = False, forget: bool = False, wait_s: float = PROBE_S
) -> Claim:
    """Take a name. InstanceExistsError where it is taken: by a live instance, by one that somebody else is just making
    (unless that comes to nothing within `wait_s`), or by an ended one with files that are in no snapshot
    (UnsavedFilesError). Nothing is changed then.

    `again`: an ended instance of that name stays as it is, to begin anew. `forget`: its files may go, saved or not.
    """
    privilege.require()
    paths = InstancePaths.of(repo, check_name(name))
    paths.root.parent.mkdir(mode=0o700, exist_ok=True)
    sweep_left(paths.root.parent)
    claimed = Claim(paths, _locked(paths, wait_s))
    try:
        _refuse_if_live(paths)
        claimed.begins_anew = again and paths.record.exists()
        if paths.record.exists() and not again and not forget:
            _refuse_if_missed(paths)
    except BaseException:
        claimed.give_up()
        raise
    return claimed


def _locked(paths: InstancePaths, wait_s: float) -> KeeperLock:
    """The lock of that name, its directory made where there is none. Who ends is waited for, who begins `wait_s`."""
    name = paths.root.name
    began, ending = time.monotonic(), False
    while True:
        _require_own(paths)
        with contextlib.suppress(FileExistsError):
            paths.root.mkdir(mode=0o700)
        _refuse_if_live(paths)
        lock = KeeperLock.take(paths)
        if lock is not None:
            return lock
        if is_ending(paths) != ending:
            began, ending = time.monotonic(), not ending
        if time.monotonic() - began > (KEEPER_END_S if ending else wait_s) and not is_saving(paths):
            raise InstanceExistsError(
                f"the keeper of `{name}` has not ended" if ending else f"`{name}` is just being started or ended",
                hint=f"its log is {paths.keeper_log}" if ending else "choose another name, or wait for it (`ijfs ps`)",
            )
        time.sleep(_PAUSE_S)


def _require_own(paths: InstancePaths) -> None:
    """InstanceExistsError where something is in the way that ijfs did not make."""
    if not os.path.lexists(paths.root) or paths.record.exists() or is_remains(paths):
        return
    if os.path.lexists(paths.root):
        raise InstanceExistsError(
            f"{paths.root} is in the way, and ijfs did not make it", hint="move it away, or choose another name"
        )


def _refuse_if_missed(paths: InstancePaths) -> None:
    from ijfs.live.client.ended import refuse_if_missed  # the engine's reader is loaded for an ended instance only

    refuse_if_missed(paths)


def _refuse_if_live(paths: InstancePaths) -> None:
    with contextlib.suppress(NoInstanceError):
        if procfs.is_alive(record_of(paths).program):
            name = paths.root.name
            raise InstanceExistsError(
                f"`{name}` runs already", hint=f"choose another name, or `ijfs stop {name}` ends the one that is there"
            )
