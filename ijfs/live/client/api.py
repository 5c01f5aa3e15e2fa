"""What the command line and Jupyter call: blocking verbs on live instances. One keeper process serves each instance.

Everything raises IjfsError. `on_event` is called with each event (a PhaseBegan, BytesDone or Notice), in the calling
thread.
Imports stay light: this module is on the way of every restore, and of every `ijfs ps`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from ijfs.live.checks import privilege
from ijfs.live.client.claim import Claim, claim
from ijfs.live.client.connection import KeeperClient, OnEvent
from ijfs.live.client.ended import save_ended
from ijfs.live.client.instances import (
    RepoPath,
    base_before,
    connect,
    damaged_instances,
    describe,
    is_running,
    list_instances,
    not_running,
    remove,
    spawned,
)
from ijfs.live.client.record import record_of
from ijfs.live.errors import CommandError, InstanceExistsError, InstanceExitedError, KernelBusyError, NoInstanceError
from ijfs.live.model.environment import INSTANCE_VARIABLE, is_text
from ijfs.live.model.hooks import check_hooks
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import (
    Busy,
    BytesDone,
    Event,
    FilesChoice,
    Notice,
    PhaseBegan,
    RestoreArguments,
    StartArguments,
)
from ijfs.live.model.records import (
    NO_LIMITS,
    HostPort,
    Idle,
    InstanceInfo,
    InstanceRecord,
    InstanceSpec,
    Limits,
    SaveResult,
)
from ijfs.live.process import procfs
from ijfs.live.process.entering import enter_line

NO_SECRETS: Mapping[str, str] = MappingProxyType({})

MOST_SECRET = 32_768
"""Bytes of a secret: a private key has some thousands."""

COMING_UP_S = 60.0
"""How long who wants to replace an instance waits for it to come up; a large eager restore takes longer."""


def start(
    repo: RepoPath,
    spec: InstanceSpec,
    *,
    again: bool = False,
    forget: bool = False,
    secrets: Mapping[str, str] = NO_SECRETS,
    on_event: OnEvent | None = None,
) -> InstanceInfo:
    """Start a program in a sandbox of its own; returns when it runs (a kernel may still be importing).

    An ended instance of that name makes room where none of its files would be missed, or with `forget`; else it is
    refused (UnsavedFilesError). `again`: it begins anew instead. The files it wrote and the relay's ports stay, and its
    next snapshot is the child of its last; clients that are connected see a restart. `secrets`: values that it can
    ask for (`ijfs.secret`), and that nothing keeps.
    """
    if not is_text((*spec.argv, spec.cwd, *spec.env, *spec.env.values())):
        raise CommandError(
            "an argument, the working directory or a variable given for the program is not UTF-8, as its record is",
            hint="variables that it inherits may be anything; for the others, start it by a script",
        )
    check_hooks(spec.hooks)
    if spec.egress:
        spec = _let_out(spec)
    require_secrets(secrets)
    spec = msgspec.structs.replace(spec, secrets=tuple(secrets))
    privilege.require()
    if spec.share or spec.bind:
        from ijfs.live.sandbox import host_folders

        spec = host_folders.settled(spec, Path(repo).resolve())
    before = base_before(repo, spec.name) if again else None
    from ijfs.live.bases.settle import settled  # only a start needs these: `ijfs ps` loads this module, too
    from ijfs.live.client.forgetting import goes_with_replace

    with settled(Path(repo), spec.base, spec.cwd, on_event, before=before) as base:
        going = goes_with_replace(Path(repo), spec.name) if forget and not again else None
        claimed = claim(repo, spec.name, again=again, forget=forget)
        if going is not None and on_event is not None:
            on_event(Notice(going))
        wanted = StartArguments(spec=spec, again=again, base=base.base, delta=base.delta, secrets=dict(secrets))
        return spawned(claimed, wanted, on_event)


def restore(
    repo: RepoPath,
    snapshot: str,
    name: str,
    *,
    eager: bool = False,
    on_demand: bool = False,
    replace: bool = False,
    save_first: bool = False,
    notebook: bytes | None = None,
    busy: Busy = "interrupt",
    gpus: Sequence[str] = (),
    same_random: bool = False,
    env: Mapping[str, str] | None = None,
    ports: Sequence[HostPort] = (),
    files: FilesChoice | Literal[""] = "",
    of_notebook: str = "",
    front_end: str | None = None,
    limits: Limits = NO_LIMITS,
    secrets: Mapping[str, str] = NO_SECRETS,
    idle: Idle | None = None,
    may_begin: Callable[[], None] | None = None,
    on_event: OnEvent | None = None,
) -> InstanceInfo:
    """Bring a snapshot (any spelling Repository.resolve takes) back as the instance `name`; returns when it runs.

    `replace` goes back in place: a live instance of that name ends when the restored one runs, and its clients go
    on with the same ports and key; when the restore fails it runs on as before. An ended instance of that name leaves
    its ports to the restored one, and its files go; without one, `replace` is an ordinary restore. Where that instance
    is just coming up, it is waited for. `save_first` saves what is there before it is replaced, and leaves everything
    as it is where that cannot be saved; `left` of the answer is that snapshot, to go forward to again; `notebook` is
    the document that it gets. `busy`: a cell that a live kernel runs is interrupted, or stands in the way
    (KernelBusyError), or is left behind, its answer `aborted` (`force`). `on_demand`: memory that it does not
    touch stays in the repository, and takes none here, until it is saved; a program with GPU memory needs all of it.
    `gpus` (index or UUID) chooses the GPUs of a program that held some, in the order in which it held them; by default
    the same ones.
    A program that can be told of it (ijfs.guest) draws random numbers of its own, unless it goes back in place or
    `same_random` is set. `env`: variables for commands that are run in it, and for a program that can be told; others
    keep the environment that they were saved with, and a notice says so. `ports`: where ports inside are to be reached;
    going back in place, they stay where they are. `files`: what becomes of folders that it shared with the machine
    (protocol.FilesChoice); by default the program of the name that was saved shares them as they are now, and any other
    gets them as they were, as files of its own. `of_notebook`: the notebook that a kernel is restored for; `front_end`:
    the session of a front end, which may end it. `limits`: over those that it was saved with or, going back in place,
    that the live one has. `secrets`: values that it can ask for (`ijfs.secret`); no snapshot knows those it had.
    `idle`: what becomes of it where nobody uses it, instead of what was said of the program that was saved (None).
    `may_begin` is called when nobody else can have the name any more, before anything is made; what it raises ends it.
    """
    given = dict(env or {})
    _require_text(given)
    require_secrets(secrets)
    if replace and busy == "refuse":
        _refuse_busy(repo, name)  # before anything is saved
    if replace and save_first:
        snapshot, left = _saved_first(repo, snapshot, name, notebook, on_event)
    else:
        left = None
    claimed = _claimed_unless_live(repo, name) if replace else claim(repo, name)
    if claimed is None:
        with connect(repo, name, on_event=on_event) as keeper:
            info = keeper.restore(
                snapshot,
                eager=eager,
                on_demand=on_demand,
                gpus=gpus,
                env=given,
                files=files,
                busy=busy,
                limits=limits,
                secrets=secrets,
                idle=idle,
            )
        return msgspec.structs.replace(info, left=left)
    wanted = RestoreArguments(
        snapshot=snapshot,
        eager=eager,
        on_demand=on_demand,
        gpus=tuple(gpus),
        again=replace,
        same_random=same_random,
        env=given,
        ports=tuple(ports),
        files=files,
        notebook=of_notebook or None,
        front_end=front_end is not None,
        front_end_session=front_end or "",
        limits=limits,
        secrets=dict(secrets),
        idle=idle,
    )
    if may_begin is not None:
        with contextlib.ExitStack() as unless_begun:
            unless_begun.callback(claimed.give_up)
            may_begin()
            unless_begun.pop_all()
    return msgspec.structs.replace(spawned(claimed, wanted, on_event), left=left)


def _refuse_busy(repo: RepoPath, name: str) -> None:
    if is_running(repo, name) and (kernel := describe(repo, name).kernel) is not None and kernel.busy:
        raise KernelBusyError(f"`{name}` is running a cell")


def _saved_first(
    repo: RepoPath, snapshot: str, name: str, notebook: bytes | None, on_event: OnEvent | None
) -> tuple[str, str | None]:
    """The id of the snapshot that is meant (`name~1` is another after a save), and that of what is there now; None
    where nothing is that was not saved."""
    from ijfs_engine import Repository  # not on the way of other restores

    with Repository.open(Path(repo)) as repository:
        meant = repository.resolve(snapshot).hex()
    message = f"before going back to {meant[:12]}"
    if is_running(repo, name):
        with connect(repo, name, on_event=on_event) as keeper:
            return meant, keeper.save(message, notebook=notebook).snapshot
    with contextlib.suppress(NoInstanceError, InstanceExitedError):
        return meant, save_ended(repo, name, message=message).snapshot
    return meant, None


def _claimed_unless_live(repo: RepoPath, name: str) -> Claim | None:
    """The name, to be gone back to; None where an instance of that name is live, perhaps since a moment."""
    if is_running(repo, name):
        return None
    try:
        return claim(repo, name, again=True, wait_s=COMING_UP_S)
    except InstanceExistsError:
        if is_running(repo, name):
            return None
        raise


def fork(
    repo: RepoPath,
    source: str,
    names: Sequence[str] = (),
    *,
    count: int = 1,
    eager: bool = False,
    on_demand: bool = False,
    message: str = "",
    gpus: Sequence[str] = (),
    same_random: bool = False,
    env: Sequence[Mapping[str, str]] = (),
    wish: str = "",
    limits: Limits = NO_LIMITS,
    ephemeral: bool = False,
    secrets: Mapping[str, str] = NO_SECRETS,
    idle: Idle | None = None,
    on_event: OnEvent | None = None,
) -> list[InstanceInfo]:
    """Live siblings of a live instance (saved first) or of a snapshot, started at once.

    `names` may be left out: then they are `<wish>-1`, … as far as they are free, the wish being `source` where it is
    empty. `env`: variables of each sibling, in their order (`restore` says who gets them). `limits`: over those that it
    has; `idle`: instead of what it has. When one sibling fails, the others stay and the error says which
    (PartialError), or, where none came up, it is the first one's error.
    """
    from ijfs.live.client.fork import fork as fork_siblings

    require_secrets(secrets)
    return fork_siblings(
        repo,
        source,
        names,
        count=count,
        eager=eager,
        on_demand=on_demand,
        message=message,
        gpus=gpus,
        same_random=same_random,
        env=env,
        wish=wish or source,
        limits=limits,
        ephemeral=ephemeral,
        secrets=secrets,
        idle=idle,
        on_event=on_event,
    )


def wake(
    repo: RepoPath, name: str, *, secrets: Mapping[str, str] = NO_SECRETS, on_event: OnEvent | None = None
) -> InstanceInfo:
    """Let a parked program go on: one that stands still in memory, or one that was saved and ended for it
    (`KeeperClient.park`). `secrets`: values of the latter that it can ask for. InstanceExitedError for a program that
    ended otherwise."""
    if is_running(repo, name):
        with connect(repo, name, on_event=on_event) as keeper:
            return keeper.wake()
    info = describe(repo, name)
    if not info.parked_on_disk or info.snapshot is None:
        raise InstanceExitedError(
            f"the program of `{name}` has ended, and was not parked",
            hint=f"`ijfs restore {name} --replace` goes on from its last snapshot, if it has one",
        )
    return restore(repo, info.snapshot, name, replace=True, secrets=secrets, on_event=on_event)


def exec_command(
    repo: RepoPath,
    name: str,
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a command inside an instance's namespaces with this process's stdin, stdout and stderr; its exit status.

    The status is as a shell has it: 128 + the signal's number for a command that a signal ended.
    """
    import subprocess

    done = subprocess.run(exec_line(repo, name, argv, cwd=cwd, env=env), check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def exec_line(
    repo: RepoPath,
    name: str,
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    session: bool = False,
    user: str | None = None,
    tell: int | None = None,
) -> list[str]:
    """The command line, for this machine, of a process that runs `argv` inside an instance's namespaces and has its
    exit status (sandbox/enter.py); `session`: in a session of its own, which ends with that process, and at the
    terminal that is its standard input; `user`: as one of the sandbox's users, by name or number (default: the
    program's own); `tell`: a descriptor that the process inherits and tells the command's pid, as the sandbox numbers
    it. InstanceExitedError."""
    record = record_of(InstancePaths.of(repo, name))
    if record.program is None or not procfs.is_alive(record.program):
        raise not_running(name, parked=record.parked_on_disk)
    given = {
        **record.spec.late_env,
        INSTANCE_VARIABLE: record.spec.name,
        **_prompt(record.spec.name, argv[0]),
        **(env or {}),
    }
    user = user or record.spec.user or None
    return enter_line(record.program, argv, cwd=cwd, env=given, session=session, user=user, tell=tell)


def _prompt(name: str, shell: str) -> dict[str, str]:
    """What makes a shell's prompt say where it is: Debian's bash shows `debian_chroot`, others take PS1 as it comes;
    only at a terminal, because scripts take a PS1 for the sign of one."""
    if not os.isatty(0):
        return {}
    plain = os.path.basename(shell) in ("sh", "dash", "ash")
    return {"debian_chroot": name, "PS1": f"({name}) $ " if plain else rf"({name})\u@\h:\w\$ "}


def _let_out(spec: InstanceSpec) -> InstanceSpec:
    """The spec of a program that may connect to some places alone. CommandError where that says nothing sound, or the
    program could change it."""
    from ijfs.live.sandbox import egress

    if spec.privileged:
        raise CommandError("a privileged program changes the rules of its network: it cannot be kept from connecting")
    egress.parse(spec.egress)
    return msgspec.structs.replace(spec, network="slirp4netns")


def require_secrets(secrets: Mapping[str, str]) -> None:
    """CommandError for values that a program could not be told."""
    for name, value in secrets.items():
        if not 2 <= len(value) <= MOST_SECRET or not value.isascii():
            raise CommandError(f"the secret {name} is not 2 to {MOST_SECRET:,} characters of ASCII")


def _require_text(env: Mapping[str, str]) -> None:
    if not is_text((*env, *env.values())):
        raise CommandError("a variable that is given is not UTF-8, as the record of a program is")


__all__ = [
    "BytesDone",
    "Event",
    "FilesChoice",
    "HostPort",
    "Idle",
    "InstanceInfo",
    "InstanceRecord",
    "InstanceSpec",
    "KeeperClient",
    "Limits",
    "Notice",
    "OnEvent",
    "PhaseBegan",
    "RepoPath",
    "SaveResult",
    "connect",
    "damaged_instances",
    "describe",
    "exec_command",
    "exec_line",
    "fork",
    "is_running",
    "list_instances",
    "remove",
    "restore",
    "save_ended",
    "start",
    "wake",
]
