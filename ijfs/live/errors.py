"""The live layer's errors, and how an error crosses a keeper's socket; used by every module of ijfs.live.

The keeper sends `error_fields(error)`, the client raises `rebuild(...)`: a caller of ijfs.live.client.api sees the same
class, sentence, hint and exit code as if the work had been done in its own process.
"""

from __future__ import annotations

from typing import Any

from ijfs_engine import errors as engine_errors
from ijfs_engine.errors import IjfsError, LockedError, TargetDiedError, UnknownNameError


class CriuError(IjfsError):
    """CRIU refused or failed; the message holds CRIU's own error line."""


class CriuKilledError(CriuError):
    """A CRIU was ended by a signal in the middle of its work."""

    taken = False
    """Of a dump: it was alive when all of the program had been taken."""


class ProgramRefusedError(CriuError):
    """The program has something that cannot be saved, or its snapshot something that cannot be restored."""

    exit_code = 12


class PassingError(ProgramRefusedError):
    """The same, of something that may be over in a moment."""


class CriuMissingError(IjfsError):
    """No usable CRIU was found."""

    exit_code = 12
    default_hint = (
        "install CRIU 4.1.1 or newer (the distribution's package, where it is that new; else `tools/setup` in a"
        " checkout of ijfs brings one), or name one with IJFS_CRIU"
    )


class SandboxError(IjfsError):
    """The namespaces, mounts or processes of a sandbox could not be made."""


class LimitError(IjfsError):
    """What a program may take of the machine cannot be limited as it was asked."""

    exit_code = 2


class CommandError(IjfsError):
    """There is nothing to start: no such program or working directory."""

    exit_code = 2


class InstanceExistsError(IjfsError):
    """An instance of that name is there already."""

    exit_code = 2
    default_hint = "choose another name"


class UnsavedFilesError(InstanceExistsError):
    """An ended instance of that name has files that are in no snapshot."""


class NotLiveError(IjfsError):
    """A snapshot that no program can be restored from."""

    exit_code = 2
    default_hint = "`ijfs log` shows the snapshots; those made by `ijfs save` and `%ijfs save` can be restored"


class NoInstanceError(UnknownNameError):
    """No instance of that name."""

    default_hint = "`ijfs ps` lists live programs"


class InstanceExitedError(TargetDiedError):
    """The instance's program has ended."""

    default_hint = "`ijfs logs` shows its last words; `ijfs restore` brings a snapshot of it back"


class HookError(IjfsError):
    """A hook that somebody gave for a program failed, or took too long."""


class NotReadyError(TargetDiedError):
    """A program was not ready in time, or ended before it was."""

    default_hint = "`ijfs logs` shows its last words"


class KernelBusyError(LockedError):
    """A kernel runs a cell, and shall not be taken back meanwhile."""

    default_hint = "interrupt it first, or `--force` leaves the cell behind"


class KeeperError(IjfsError):
    """The keeper of an instance could not be started or reached, or broke off in the middle."""


class ProtocolError(IjfsError):
    """A line on a keeper's socket is not what the protocol says."""


def _classes() -> dict[str, type[IjfsError]]:
    known: dict[str, type[IjfsError]] = {}
    for namespace in (vars(engine_errors), globals()):
        for value in namespace.values():
            if isinstance(value, type) and issubclass(value, IjfsError):
                known[value.__name__] = value
    return known


def error_fields(error: IjfsError) -> dict[str, Any]:
    """The error as the protocol's JSON object."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def rebuild(description: dict[str, Any]) -> IjfsError:
    """The error a description stands for; an unknown class becomes an IjfsError with the exit code it came with."""
    message, hint = str(description.get("message", "")), description.get("hint")
    found = _classes().get(str(description.get("type")))
    if found is not None:
        return found(message, hint=hint)
    exit_code = int(description.get("exit_code", 1))
    remote: type[IjfsError] = type("RemoteError", (IjfsError,), {"exit_code": exit_code})
    return remote(message, hint=hint)
