"""What is written down about an instance, and what the client API returns; plain records, no behaviour.

Everything here is msgspec and JSON: `instance.json`, the control socket and a snapshot's meta hold these fields.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

Network = Literal["none", "slirp4netns"]
InstanceKind = Literal["command", "kernel"]
Status = Literal["running", "exited"]
OnIdle = Literal["park", "kill"]

LOOPBACK = "127.0.0.1"
"""Where a port is reached from this machine alone."""

# What is said of a save whose keeper was killed too early.
LOST_WITH_KEEPER = "the keeper was killed before it was durable"

# The record's layout; raised when an older reader would misread it.
STOPPED = "stopped"
"""How the note of what ijfs ended ends (also "saved as … and stopped"): its exit status is the signal's, no fault."""

WENT_DOWN = "told to end with its keeper, as by a machine that goes down"
"""The note of a program that ended for a SIGTERM which its keeper got, too: after a reboot it is one that was lost."""

RECORD_VERSION = 1


class Base(msgspec.Struct, frozen=True):
    """The files a sandbox stands on where they are not its machine's own: a snapshot (hex) of a base (ijfs.live.bases),
    what that was called, and which laid-out copy of it."""

    # Directories are named by it, and a stranger's snapshot may say it.
    snapshot: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    name: str
    copy: str = ""


class HostPort(msgspec.Struct, frozen=True):
    """Where on the host a port inside is to be reached; 0: at one that the system chooses. `or_any`: at another one
    where that is taken."""

    inside: int
    host: int = 0
    address: str = LOOPBACK
    or_any: bool = False


class FilesOrigin(msgspec.Struct, frozen=True):
    """Where and when a program's writable layers began to stand over a machine's files. A snapshot hands it on to what
    is restored from it, as it does the layers."""

    machine: str
    since_ns: int

    @classmethod
    def here(cls) -> FilesOrigin:
        """This machine, now. A machine is known by the hash of its id and host name: a container is one of its own."""
        return cls(_machine(), time.time_ns())


def _machine() -> str:
    import hashlib  # loads OpenSSL

    try:
        ident = Path("/etc/machine-id").read_bytes()
    except OSError:
        ident = b""
    return hashlib.blake2b(ident + os.fsencode(os.uname().nodename), digest_size=16).hexdigest()


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """What its keeper does for a program that knows nothing of ijfs, a line each (hooks.py has the forms): around
    a save and a park, after a restore, and until it counts as running.

    `before_save` that fails refuses the save; what runs then is `after_save`, as after every save and at a wake.
    `ready_s`: how long `ready` may take after a start or a restore; the relay lets nobody in before.
    """

    before_save: tuple[str, ...] = ()
    after_save: tuple[str, ...] = ()
    after_restore: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    ready_s: float = 600.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox may take of the machine: bytes of memory (swap is none), processors, threads and processes, bytes
    a second to and from the disk of its repository (each way). 0: no limit. None: nobody said; no limit then, but for
    `pids` the one that sandbox/limits.py has."""

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    io: int | None = None

    def over(self, before: Limits) -> Limits:
        """These, and where nobody said those before."""
        said = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(before, **said)


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a program that nobody used, and that did nothing, for `after_s` seconds (keeper/idle.py); 0: it
    is left alone. `park`: it is saved and ended, and `ijfs wake` brings it back; `kill`: it is ended."""

    after_s: float = 0.0
    then: OnIdle = "park"


def ran_out_of(limits: Limits) -> str:
    """What a program did that the kernel has killed for want of memory: the end of a sentence."""
    return (
        f"ran out of its {typed_size(limits.memory)} of memory" if limits.memory else "ran out of this machine's memory"
    )


NO_LIMITS = Limits()
"""Nobody said anything."""

_UNITS = {30: "GB", 20: "MB", 10: "kB", 0: "B"}


def typed_size(count: int) -> str:
    """As it is typed: `4 GB` are 4 GiB, as in `--memory 4G`."""
    unit = next(unit for unit in _UNITS if count % (1 << unit) == 0)
    return f"{count >> unit:,} {_UNITS[unit]}"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox takes: bytes of memory, seconds of processor time so far, threads and processes; and how many of
    its processes the kernel has killed for want of memory."""

    memory: int
    cpu_s: float
    pids: int
    oom_kills: int = 0


class Terminal(msgspec.Struct, frozen=True):
    """The terminal that a program runs at: how large its window is at the start, and what its clients say to be let in
    (sandbox/terminal_server.c)."""

    # A snapshot, perhaps a stranger's, says it, and it goes into an environment.
    key: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    rows: int = 24
    columns: int = 80


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a program in a sandbox.

    `argv` of a kernel is its kernel spec's: `{connection_file}` in it becomes the path inside the sandbox. `env` is
    added to the caller's environment when `inherit_env`, else it is all there is. `network`: `none` (the default: the
    sandbox has a loopback of its own and no way out) or `slirp4netns` (outgoing connections through the host),
    then, where `egress` names any, to these `HOST:PORT` alone (sandbox/egress.py).
    `ports`: TCP ports the program listens on at 127.0.0.1 that the relay makes reachable from the host, and `published`
    at which of the host's, for those that somebody chose.
    `gpu`: the GPUs' device nodes, and the environment of ijfs.live.gpu.environment; `nccl_safe` adds its NCCL profile.
    `kernel_key`: the HMAC key of a kernel's connection file (drawn where empty). `io_uring`: False makes
    io_uring_setup fail with ENOSYS inside, which programs fall back from, because CRIU cannot save an io_uring.
    `base`: the base its files come from; "" leaves it to the place (bases/settle.py), `none` is the machine's own.
    `share`: folders of the host that it works in as they are; each save keeps their state, and a copy of the program
    gets one of its own. `bind`: folders of the host that it works in, too, that no save keeps; `DIR:ro`: not to write.
    `idle`: what becomes of it where nobody uses it; a copy or restored one has the same.
    `disk`: bytes of a disk of its own for what it writes (sandbox/disk.py); 0: it writes to the repository's.
    `user`: the sandbox's user, by name or number, that its processes and commands run as; "": root.
    `late_env`: variables given at a restore, for commands that are run in it and for a program that can be told of them
    (the process itself was started with others).
    `ttl_s`: after so many seconds by the clock it is ended; a copy or restored one has as many from its own beginning.
    `notebook`: the host's path of the notebook document a kernel belongs to; each snapshot gets it as it is then.
    `hooks`: what the keeper does for it around saves, and until it is ready.
    `limits`: what it may take of the machine, and each copy of it again.
    `terminal`: the one that it runs at; None: it reads from nothing and writes to its log.
    `ephemeral`: at its end it leaves nothing behind, no branch either.
    `storage`: the remote that its saves go to as well; "": to none (uploads/).
    `secrets`: names of values that it can ask for (StartArguments.secrets), which are none of its variables.
    `privileged`: it has all rights that root has (sandbox/rights.py).
    `front_end`: a Jupyter front end started it for itself, and may end it by a message; others only leave it.
    `front_end_session`: what that one's messages have as their session; "" where it is not known, and any may.
    """

    name: str
    kind: InstanceKind = "command"
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    inherit_env: bool = True
    cwd: str = "/"
    network: Network = "none"
    egress: tuple[str, ...] = ()
    gpu: bool = False
    nccl_safe: bool = False
    ports: tuple[int, ...] = ()
    published: tuple[HostPort, ...] = ()
    io_uring: bool = False
    kernel_name: str = ""
    kernel_key: str = ""
    notebook: str = ""
    front_end: bool = False
    front_end_session: str = ""
    base: str = ""
    user: str = ""
    late_env: dict[str, str] = {}
    ttl_s: float | None = None
    idle: Idle = Idle()
    disk: int = 0
    share: tuple[str, ...] = ()
    bind: tuple[str, ...] = ()
    hooks: Hooks = Hooks()
    limits: Limits = Limits()
    terminal: Terminal | None = None
    privileged: bool = False
    ephemeral: bool = False
    storage: str = ""
    secrets: tuple[str, ...] = ()


VolumeKind = Literal["overlay", "readonly", "shared", "private", "bind"]


class Volume(msgspec.Struct, frozen=True):
    """One filesystem of a sandbox beside its root: a mount or folder of the host, shown at the same path.

    `overlay`: the host's files below, the program's writes in a layer of its own, saved with the rest. `readonly`: the
    host's own, not to write to: where no overlay can stand on it, or as asked for. `shared`: the host's own, written
    through, its state kept by each save. `private`: what a shared one was when it was saved, as a directory of the
    program's own. `bind`: the host's own, kept by no save. `key` names it to CRIU, from dump to restore.
    """

    # A snapshot, perhaps a stranger's, says both, and directories are made by these names.
    key: Annotated[str, msgspec.Meta(pattern=r"\A\w+\Z")]
    path: Annotated[str, msgspec.Meta(pattern=r"^/[^\0]*$")]
    kind: VolumeKind = "overlay"

    @property
    def is_layer(self) -> bool:
        """Whether what was written to it is in a directory of the sandbox."""
        return self.kind in ("overlay", "private")


class Process(msgspec.Struct, frozen=True):
    """A process, told apart from a later one with the same pid by its start time (clock ticks since boot)."""

    pid: int
    start_ticks: int


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """A program that stands still in host memory (keeper/parking.py). `stopped`: processes that the user had stopped
    before; `held`: GPU UUID → bytes that it needs to go on."""

    since_ns: int
    stopped: tuple[int, ...] = ()
    held: dict[str, int] = {}


class RelayPort(msgspec.Struct, frozen=True):
    """One port of the relay: `name` (shell, iopub, … or tcp), the port inside the sandbox, the port on the host."""

    name: str
    inside: int
    host: int
    address: str = LOOPBACK


class KernelState(msgspec.Struct, frozen=True):
    """What a kernel was doing. `count`: the number of the last cell that ran, None where none did; `busy`: a cell runs;
    `prompt`: what somebody is asked to type, where a cell waits for that."""

    count: int | None = None
    busy: bool = False
    prompt: str | None = None


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """instance.json: what a new keeper needs to adopt it; `generation` numbers its sandboxes (paths.SandboxPaths).
    `parked_on_disk`: it was saved as `snapshot` and ended, to be woken."""

    version: int = RECORD_VERSION
    spec: InstanceSpec
    status: Status = "running"
    boot_id: str = ""
    program: Process | None = None
    keeper: Process | None = None
    pager: Process | None = None
    snapshot: str | None = None
    branch: str | None = None
    relay: tuple[RelayPort, ...] = ()
    volumes: tuple[Volume, ...] = ()
    generation: int = 1
    created_ns: int = 0
    exit_status: int | None = None
    note: str = ""
    hook_ports: tuple[int, ...] = ()
    saving: int = 0
    save_error: str = ""
    base: Base | None = None
    damage: str = ""
    origin: FilesOrigin | None = None
    parked: Parked | None = None
    parked_on_disk: bool = False
    oom_kills: int = 0


class InstanceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as `list_instances`, `start`, `restore` and `status` show it.

    `status`: running; exited (its program ended: `exit_status` as a shell has it, None where nobody saw it).
    `snapshot`: the snapshot it stands on (hex), None before the first save. `pid`: the program's first process, as the
    host numbers it. `connection`: a kernel's connection file (relay ports). `memory`: share of the memory that is in
    after a lazy restore, 1.0 when all of it is. `read_ahead`: bytes of memory that a lazy restore had to read before
    the program ran, by why: `shared` (shared memory, memfds), `private` (locked or huge pages, changed pages of mapped
    files, stacks, all that CRIU never pages lazily). `phases`: seconds of the verb that returned this.
    `keeper_running`: False where the next verb starts a new keeper. `saving`: saves whose freeze is over and which are
    not durable yet. `save_error`: why the last save that nobody waited for came to nothing; "" again after the next one
    that is durable. `base`: the name of the base that its files come from; None where they are the machine's own.
    `damage`: why its memory is not what was saved, "" where it is: it cannot be saved then. `ends_ns`: when its time to
    live is over; None where it has no such limit. `kernel`: what a kernel is doing, None of other programs and where no
    keeper answers; `unsaved`: whether it ran a cell since its last save. `notebook`: the one it belongs to. `left`: the
    snapshot (hex) of what the program was before it went back, where that was to be saved first. `parked`: it stands
    still in host memory until it is woken; `parked_on_disk`: it was saved and has ended, and can be woken, too. `idle`:
    what becomes of it where nobody uses it. `egress`: where alone it may connect to. `limits`: what it may take of the
    machine, and `usage` what it takes (None where it has ended, and where the machine has no control groups).
    `oom_kills`: how many of its processes the kernel killed for want of memory, also once it has ended. `storage`: the
    remote that its saves go to as well."""

    name: str
    kind: InstanceKind
    status: Status
    argv: tuple[str, ...]
    cwd: str
    pid: int | None = None
    snapshot: str | None = None
    branch: str | None = None
    relay: tuple[RelayPort, ...] = ()
    connection_file: str | None = None
    connection: dict[str, Any] | None = None
    network: Network = "none"
    egress: tuple[str, ...] = ()
    log: str = ""
    created_ns: int = 0
    exit_status: int | None = None
    keeper_running: bool = True
    memory: float = 1.0
    read_ahead: dict[str, int] = {}
    note: str = ""
    phases: dict[str, float] = {}
    saving: int = 0
    save_error: str = ""
    base: str | None = None
    damage: str = ""
    ends_ns: int | None = None
    parked: bool = False
    parked_on_disk: bool = False
    idle: Idle = Idle()
    left: str | None = None
    kernel: KernelState | None = None
    unsaved: bool = False
    notebook: str = ""
    limits: Limits = Limits()
    usage: Usage | None = None
    oom_kills: int = 0
    storage: str = ""


class SaveResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a save did: the snapshot's id (hex), its branch, sizes in bytes, seconds by phase, what to know.

    `spilled_bytes`: what of the image went to disk while the program stood still, for want of memory. `frozen_s`: how
    long it stood still. `durable_s`: from the request until the snapshot was safe on disk.
    `verified`: whether the snapshot could be restored here, where that was to be tried or is known (the warnings say
    why not).
    `phases`: docs/json.md, "save". A save that was not waited for has no `snapshot` ("") and no `durable_s` yet: its
    `number` is what `KeeperClient.wait_save` takes.
    """

    snapshot: str
    branch: str
    parent: str | None
    message: str
    image_bytes: int
    workspace_bytes: int
    stored_bytes: int | None = None
    spilled_bytes: int = 0
    frozen_s: float
    durable_s: float | None = None
    number: int = 0
    phases: dict[str, float]
    warnings: tuple[str, ...] = ()
    stopped: bool = False
    verified: bool | None = None
