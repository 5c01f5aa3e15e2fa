"""The seam to CRIU: find it, ask it, dump and restore with it, and say in a sentence why it would not.

Everything that ijfs knows of CRIU's command line is here. Called by checkpoint/freeze.py, checkpoint/restore.py and
doctor.py. The options are those that were measured to work for kernels in a sandbox: CRIU runs in its network
namespace, the mounts of rootfs.EXTERNAL are external, connections of the relay stay established, file locks and
unlinked files come along.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import ijfs
from ijfs.live.criu import relocking
from ijfs.live.criu.action_script import ActionHook
from ijfs.live.criu.log import explain
from ijfs.live.errors import CriuKilledError, CriuMissingError
from ijfs.live.process import cgroups, procfs
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox import proc_sys

MINIMUM = (4, 1, 1)  # Debian 12's 3.17.1 does not run on Linux 6.18; 4.1.1, 4.2.1 and 4.3 pass `criu check` there

# A dump of 13 GB took 8 s; a CRIU that hangs has to end some day, and nothing it waits for takes minutes.
# IJFS_CRIU_LIMIT_S sets another limit, in seconds, for machines where it does.
LIMIT_S = 120.0

OOM_NEVER = "-1000"
"""proc(5), /proc/PID/oom_score_adj."""

LEFT_S = 5.0
"""How long the processes of a restore that failed get to be gone, once killed."""

RESTART_CALLS = Path(__file__).with_name(f"restart_calls{importlib.machinery.EXTENSION_SUFFIXES[0]}")
"""What CRIU loads at a dump, so that the program's system calls do not end with EINTR (restart_calls.c)."""

RECORD_LOCKS = Path(__file__).with_name(f"record_locks{importlib.machinery.EXTENSION_SUFFIXES[0]}")
"""What CRIU loads at a restore of a program that has record locks (record_locks.c)."""

COMMON = (
    "--manage-cgroups=ignore",
    "--tcp-established",
    "--network-lock=skip",
    "--ext-unix-sk",
    "--file-locks",
    "--link-remap",
    "--ghost-limit=512M",
    "-v2",
)


@dataclass(frozen=True, slots=True)
class Dump:
    """One dump: the root of the tree, where images go, where the log goes, its network namespace, what is external."""

    pid: int
    images: Path
    work: Path
    network_fd: int
    external_mounts: Mapping[str, str]  # key → path inside
    leave: str = "running"  # or "stopped"
    options: Sequence[str] = ()


class Loaded(NamedTuple):
    """What a CRIU is started with, so that it loads something: its environment, descriptors that it inherits."""

    environment: dict[str, str]
    fds: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Restore:
    """One restore: the images, a work directory of its own, the mounted root, what is external."""

    images: Path
    work: Path
    root: Path
    network_fd: int
    external_mounts: Mapping[str, Path]  # key → path outside
    lazy: bool = False
    options: Sequence[str] = ()
    groups: Sequence[Path] = ()  # the control groups that the program is to be in
    notes: list[str] = field(default_factory=list)  # what a person should know comes in here


def find() -> Path:
    """The CRIU to use: $IJFS_CRIU, the checkout's own, the user's own, the one on PATH; CriuMissingError."""
    chosen = os.environ.get("IJFS_CRIU")
    if chosen:
        if os.access(chosen, os.X_OK):
            return Path(chosen)
        raise CriuMissingError(f"IJFS_CRIU names {chosen}, which is no program")
    for path in _places():
        if os.access(path, os.X_OK):
            return path
    raise CriuMissingError("no CRIU was found")


def _places() -> Iterable[Path]:
    yield Path(ijfs.__file__).resolve().parents[1] / ".prefix/bin/criu"
    yield Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ijfs/criu/bin/criu"
    on_path = shutil.which("criu")
    if on_path:
        yield Path(on_path)


@functools.cache
def version(criu: Path) -> tuple[int, ...]:
    """Its version, such as (4, 2, 1)."""
    text = subprocess.run([criu, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    found = re.search(r"Version: (\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def check(criu: Path) -> str | None:
    """None when `criu check` is content with the running kernel, else its complaint."""
    command = [str(criu), "check"]
    if proc_sys.is_read_only():  # as in containers: a keeper makes it writable for its CRIUs
        script = f'mount -o remount,bind,rw {proc_sys.PLACE}; exec "$0" "$@"'
        command = ["unshare", "-m", "sh", "-c", script, *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
    return (lines or ["it gave no reason"])[-1].strip()


def dump(request: Dump, while_frozen: Callable[[], None] | None = None) -> float:
    """Dump a tree; seconds the program stood still. CriuError with CRIU's own line when it refused.

    `while_frozen` is called when all images are written and the program still stands; what it raises gives the dump
    up and is raised here. A dump that is refused or given up leaves the program running.
    """
    command = [str(find()), "dump", "-t", str(request.pid), "-D", str(request.images), "-W", str(request.work)]
    command += ["-o", "dump.log", *COMMON, f"--leave-{request.leave}"]
    for key, inside in request.external_mounts.items():
        command += ["--external", f"mnt[{inside}]:{key}"]
    command += request.options
    with ActionHook(request.work, "post-dump", while_frozen) as hook:
        command += ["--action-script", str(hook.script)]
        with _loaded_into(RESTART_CALLS) as loaded:
            _run("dump", command, request.work / "dump.log", request.network_fd, hook, loaded)
    from ijfs.live.criu.dump_stats import frozen_seconds  # who only asks CRIU (doctor) reads no images

    return frozen_seconds(request.work)


def restore(
    request: Restore, while_running: Callable[[], None] = lambda: None, when_there: Callable[[], None] | None = None
) -> int:
    """Restore a tree under the calling process (a subreaper); the host pid of its first process. CriuError.

    `while_running` is called when CRIU is at work; `when_there`, when everything of the program is there and it does
    not run yet: what that raises ends the restore and is raised here.
    """
    pid_file = request.work / "pid"
    pid_file.unlink(missing_ok=True)
    command = [
        *_joining(request.groups),
        *_with_its_keeper(),
        str(find()),
        "restore",
        "-d",
        "-D",
        str(request.images),
        "-W",
        str(request.work),
    ]
    command += ["-o", "restore.log", "--pidfile", str(pid_file), *COMMON, "--root", str(request.root)]
    for key, outside in request.external_mounts.items():
        command += ["--external", f"mnt[{key}]:{outside}"]
    if request.lazy:
        command += ["--lazy-pages"]
    with contextlib.ExitStack() as stack:
        hook = None
        if when_there is not None:
            hook = stack.enter_context(ActionHook(request.work, "post-restore", when_there))
            command += ["--action-script", str(hook.script)]
        log = request.work / "restore.log"
        loaded = stack.enter_context(_locks_kept(request))
        try:
            _run("restore", [*command, *request.options], log, request.network_fd, hook, loaded, while_running)
            return int(pid_file.read_text())
        except BaseException:
            _end_left(request.network_fd)
            raise


def _joining(groups: Sequence[Path]) -> list[str]:
    """A command prefix: CRIU is in these control groups from its beginning, and so is all that it restores."""
    if not groups:
        return []
    script = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
    return ["sh", "-c", script, "sh", *(str(group / cgroups.PROCS) for group in groups), "--"]


def _with_its_keeper() -> list[str]:
    """A command prefix: the kernel kills CRIU when the thread that started it ends. Otherwise a CRIU whose keeper and
    pager were killed in the middle of a lazy restore may hang for ever. Never for a dump: the program may be lost if
    its CRIU is killed, and CRIU ends by itself there."""
    setpriv = shutil.which("setpriv")  # of util-linux; Python could only do it between fork and exec
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _run(
    verb: str,
    command: Sequence[str],
    log: Path,
    network_fd: int,
    hook: ActionHook | None,
    loaded: Loaded,
    while_running: Callable[[], None] = lambda: None,
) -> None:
    """Run CRIU to its end or to its time limit, in the program's network namespace.

    There the network is CRIU's own and not looked at. As an external namespace it is: 14 ms more of a frozen program
    where the kernel has no connection tracking, because it looks for the module at each of CRIU's two questions.
    """
    log.unlink(missing_ok=True)
    limit_s = float(os.environ.get("IJFS_CRIU_LIMIT_S") or LIMIT_S)
    deadline = time.monotonic() + limit_s
    # No pipe: what is left of a CRIU that was killed holds it open, and its end is waited for in vain.
    complaints = os.memfd_create("criu-complaints")
    with ns.in_network(network_fd):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            env=loaded.environment,
            pass_fds=loaded.fds,
            start_new_session=True,
        )
    if verb == "dump":
        _spare(process.pid)
    try:
        while_running()
        if hook is not None:
            hook.serve(process, deadline)
        process.wait(max(0.0, deadline - time.monotonic()))
        complaint = _read_all(complaints)
    except subprocess.TimeoutExpired:
        raise _killed(
            hook,
            f"CRIU's {verb} did not end within {limit_s:.0f} s and was killed",
            f"its log is {log}; a program that waits on a dead network or FUSE mount cannot be frozen",
        ) from None
    finally:
        _end(process)
        os.close(complaints)
    if hook is not None and hook.error is not None:
        raise hook.error
    if process.returncode < 0:
        raise _killed(
            hook,
            f"CRIU was ended by {_signal_name(-process.returncode)} in the middle of the {verb}",
            "the kernel does that where memory runs out (`dmesg` says so); else try again",
        )
    if process.returncode != 0:
        raise explain(verb, log, complaint, process.returncode)


def _killed(hook: ActionHook | None, text: str, hint: str) -> CriuKilledError:
    error = CriuKilledError(text, hint=hint)
    error.taken = hook is not None and hook.passed
    return error


@contextlib.contextmanager
def _loaded_into(library: Path, **variables: str) -> Iterator[Loaded]:
    """A CRIU that loads one of ours, named by a descriptor, because LD_PRELOAD takes a blank in a path for its end.
    Where it was not built, or CRIU takes no such thing (it is static or has file capabilities), a save says so by what
    CRIU's log says of calls that end early, and a restore by the locks."""
    environment = dict(os.environ)
    if not library.exists():
        yield Loaded(environment)
        return
    fd = os.open(library, os.O_RDONLY | os.O_CLOEXEC)
    try:
        others = environment.get("LD_PRELOAD")
        environment["LD_PRELOAD"] = ":".join([f"/proc/self/fd/{fd}", *([others] if others else [])])
        yield Loaded(environment | variables, (fd,))
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locks_kept(request: Restore) -> Iterator[Loaded]:
    """A CRIU after which the program has its record locks; what it has not, the request's notes say at the end."""
    locks = relocking.locks_in(request.images)
    if not locks:
        yield Loaded(dict(os.environ))
        return
    path = request.work / "record-locks"
    relocking.write(path, locks)
    with _loaded_into(RECORD_LOCKS, **{relocking.VARIABLE: str(path)}) as loaded:
        yield loaded
    request.notes.extend(relocking.not_set(path))


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _read_all(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")


def _spare(pid: int) -> None:
    """Keep the kernel from choosing this process where memory runs out: a program whose dump is killed may end with
    it. Without the right to (CAP_SYS_RESOURCE), it is one like others."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(OOM_NEVER)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a CRIU that still runs, and its helpers (it leads a session of its own)."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_left(network_fd: int) -> None:
    """End what a restore that failed left, as a CRIU does that is killed: processes of the program, which wait for it
    for ever or even run. They are in the network namespace that was made for this program, and nothing else is."""
    deadline = time.monotonic() + LEFT_S
    inode = os.fstat(network_fd).st_ino
    while (left := procfs.processes_in("net", inode)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # of those that this process was left with (a subreaper)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)
