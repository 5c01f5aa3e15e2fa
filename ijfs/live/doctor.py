"""What this machine, or one program on it, has or lacks for being saved and restored; records for `ijfs doctor`.

Pure looking: nothing is installed, changed or left behind. `machine` asks of the machine, `program` of a running
program (a pid, or an instance's name). Each check says what it saw and, where it is not well, what to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from ijfs.live.checks import blockers, privilege
from ijfs.live.checks.result import CheckOutcome, CheckResult
from ijfs.live.criu import command as criu_command
from ijfs.live.errors import CriuMissingError, NoInstanceError
from ijfs.live.machine import place
from ijfs.live.machine.lost import lost
from ijfs.live.model.paths import InstancePaths, live_directory
from ijfs.live.model.record_file import read_record
from ijfs.live.process import fork_request, procfs, syscalls
from ijfs.live.sandbox import disk, egress, limits
from ijfs.live.sandbox.rootfs import OVERLAY_OPTIONS
from ijfs.live.sandbox.sandbox import INIT_PROGRAMS
from ijfs.live.sandbox.volumes import is_layered, kind_at
from ijfs_engine.errors import IjfsError, UnknownNameError

# A save writes the program's memory once; below this a snapshot of an ordinary notebook kernel does not fit.
LOW_SPACE = 2 << 30


def machine(repo: Path) -> list[CheckResult]:
    """Every check of the machine; `repo` is where a repository is or would be."""
    checks: list[Callable[[], Iterator[CheckResult]]] = [
        _kernel,
        place.surroundings,
        place.user,
        _criu,
        lambda: place.root_filesystem(_existing(repo)),
        lambda: _overlay(repo),
        lambda: _disk(repo),
        place.system_settings,
        _userfaultfd,
        _fuse,
        _programs,
        _limits,
        _io_uring,
        lambda: _repository(repo),
        lambda: _space(repo),
        lambda: _plain(repo),
        lambda: _lost(repo),
        lambda: _spare(repo),
        _gpus,
    ]
    found = [result for check in checks for result in _guarded(check)]
    return [*found, *_guarded(lambda: place.trial(_beside(_existing(repo)), found))]


def named(repo: Path, target: str) -> tuple[Literal["program", "snapshot"], list[CheckResult]]:
    """(what the name is, every check) of a live program, or else of a snapshot: whether it would come back here.
    UnknownNameError; NotLiveError for an imported snapshot."""
    try:
        return "program", program(repo, target)
    except UnknownNameError as unknown:
        from ijfs.live.machine import fit

        try:
            return "snapshot", fit.of_snapshot(repo, target)
        except UnknownNameError:
            raise UnknownNameError(f"{unknown}, and there is no such snapshot", hint="`ijfs ps`, `ijfs log`") from None


def provider(repo: Path) -> list[CheckResult]:
    """What kind of machine or container this is, and which needs it meets (machine/kinds.py)."""
    from ijfs.live.machine import kinds

    return kinds.here(machine(repo))


def needed(repo: Path, text: str) -> list[CheckResult]:
    """Every check of what a snapshot of another machine needs (machine/needs.py). IjfsError for what is none."""
    from ijfs.live.machine import fit, needs

    return fit.compared(needs.decode(text), repo, comes=True)


def program(repo: Path, target: str) -> list[CheckResult]:
    """Every check of a program: an instance's name, or any process's pid on this machine. UnknownNameError."""
    pid = _pid_of(repo, target)
    try:
        return _program(pid)
    except PermissionError:
        evidence = f"process {pid} cannot be looked into"
        return [CheckResult(check="program", outcome="unknown", evidence=evidence, remedy="run ijfs as root")]


def _program(pid: int) -> list[CheckResult]:
    found = blockers.of_program(pid)
    if not any(result.outcome == "refuse" for result in found):
        count = len(procfs.processes_in("pid", procfs.namespace_id(pid, "pid"))) if _in_sandbox(pid) else 1
        evidence = f"nothing known stands against saving process {pid} ({count} process{'es' * (count > 1)})"
        found.insert(0, CheckResult(check="program", outcome="ok", evidence=evidence))
    if not _in_sandbox(pid):
        remedy = "`ijfs run -- COMMAND` starts a program so that it can be saved"
        evidence = f"process {pid} does not run in an ijfs sandbox: ijfs cannot save it"
        found.append(CheckResult(check="sandbox", outcome="warn", evidence=evidence, remedy=remedy))
    return [*found, *_gpu(pid)]


def _pid_of(repo: Path, target: str) -> int:
    try:
        record = read_record(InstancePaths.of(repo, target))
    except (NoInstanceError, IjfsError):
        if target.isdecimal() and procfs.state(int(target)):
            return int(target)
        raise UnknownNameError(f"`{target}` is neither a live program nor the pid of a process") from None
    if record.program is None or not procfs.is_alive(record.program):
        raise UnknownNameError(f"the program of `{target}` has ended")
    return record.program.pid


def _in_sandbox(pid: int) -> bool:
    return procfs.namespace_id(pid, "pid") != procfs.namespace_id("self", "pid")


def _guarded(check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    """A check that cannot look says so; it does not stop the others."""
    try:
        yield from check()
    except (OSError, subprocess.SubprocessError) as error:
        name = getattr(check, "__name__", "check").strip("_").replace("<lambda>", "filesystem")
        yield CheckResult(check=name, outcome="unknown", evidence=f"cannot be found out here: {error}")


def _result(check: str, good: bool, evidence: str, remedy: str = "", *, bad: CheckOutcome = "refuse") -> CheckResult:
    return CheckResult(check=check, outcome="ok" if good else bad, evidence=evidence, remedy="" if good else remedy)


def _kernel() -> Iterator[CheckResult]:
    release, arch = platform.release(), platform.machine()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    known = arch in syscalls.MACHINES
    yield _result("kernel", known and numbers >= (5, 14), f"Linux {release}, {arch}", "Linux 5.14 or newer on x86-64")


def _criu() -> Iterator[CheckResult]:
    try:
        found = criu_command.find()
    except CriuMissingError as error:
        yield CheckResult(check="CRIU", outcome="refuse", evidence=str(error), remedy=error.hint or "")
        return
    version = criu_command.version(found)
    shown = ".".join(map(str, version)) or "of an unknown version"
    new_enough = version >= criu_command.MINIMUM
    wanted = ".".join(map(str, criu_command.MINIMUM))
    yield _result("CRIU", new_enough, f"{found} {shown}", f"{wanted} or newer: `tools/setup` in a checkout brings one")
    if privilege.missing():  # said already, and the cause of whatever it would complain of
        return
    complaint = criu_command.check(found)
    remedy = "a newer CRIU (`tools/setup`), or a kernel with what is named there"
    yield _result("criu check", complaint is None, complaint or "looks good", remedy)


def _overlay(repo: Path) -> Iterator[CheckResult]:
    """A real mount, in a mount namespace of a child's own, on the repository's filesystem."""
    if "SYS_ADMIN" in privilege.missing():  # said already; nothing can be mounted
        return
    where = _existing(repo)
    with tempfile.TemporaryDirectory(dir=_beside(where), prefix=".ijfs-doctor-") as directory:
        for name in ("upper", "work", "root", "lower/usr"):
            os.makedirs(f"{directory}/{name}")
        lower = f"{directory}/lower" if is_layered(kind_at(Path("/"))) else "/"
        options = f"lowerdir={lower},upperdir={directory}/upper,workdir={directory}/work,{OVERLAY_OPTIONS}"
        code = f"mount -t overlay overlay -o {options} {directory}/root && test -d {directory}/root/usr"
        done = subprocess.run(["unshare", "-m", "sh", "-c", code], capture_output=True, text=True, check=False)
        # An overlay's work directory keeps one with no permissions at all; nobody but root can remove it.
        shutil.rmtree(f"{directory}/work", ignore_errors=True)
    evidence = f"{where} can hold a sandbox's files" if done.returncode == 0 else (done.stderr.strip() or "no overlay")
    remedy = "keep the repository on ext4, xfs, btrfs or tmpfs (not on another overlay or NFS)"
    yield _result("overlay", done.returncode == 0, evidence.splitlines()[0], remedy)


def _disk(repo: Path) -> Iterator[CheckResult]:
    """A real image, mounted nowhere."""
    if "SYS_ADMIN" in privilege.missing():
        return
    with tempfile.TemporaryDirectory(dir=_beside(_existing(repo)), prefix=".ijfs-doctor-") as directory:
        why_not = disk.trial(Path(directory))
    evidence = why_not or "programs can have a disk of their own (`--disk`): open databases write on in a copy"
    remedy = "without `--disk` programs are saved all the same; an SQLite database that is open is read-only in a copy"
    yield _result("disk", not why_not, evidence.splitlines()[0], remedy, bad="warn")


def _beside(place: Path) -> Path:
    """A directory on the same filesystem that is not the repository's own, if there is one: a doctor only looks."""
    above = place.parent
    same = above.stat().st_dev == place.stat().st_dev
    return above if same and os.access(above, os.W_OK | os.X_OK) else place


def _userfaultfd() -> Iterator[CheckResult]:
    if "SYS_PTRACE" in privilege.missing():  # said already: others get none, whatever the kernel can do
        return
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(syscalls.number("userfaultfd"), os.O_CLOEXEC | os.O_NONBLOCK)
    evidence = "a restored program's memory can come in while it runs"
    if fd < 0:
        evidence = f"not available: {os.strerror(ctypes.get_errno())}"
    else:
        os.close(fd)
    yield _result(
        "userfaultfd", fd >= 0, evidence, "CONFIG_USERFAULTFD; until then use `ijfs restore --eager`", bad="warn"
    )


def _fuse() -> Iterator[CheckResult]:
    usable = os.access("/dev/fuse", os.R_OK | os.W_OK)
    evidence = "/dev/fuse is there" if usable else "/dev/fuse is missing or closed to this user"
    yield _result("FUSE", usable, evidence, "`modprobe fuse`, or give the container /dev/fuse", bad="warn")
    helper = shutil.which("fusermount3")
    yield _result("fusermount3", bool(helper), helper or "not found", "install the package `fuse3`", bad="warn")


def _programs() -> Iterator[CheckResult]:
    init = next((path for path in map(shutil.which, INIT_PROGRAMS) if path), None)
    yield _result("init", init is not None, init or "neither tini nor docker-init", "install the package `tini`")
    slirp = shutil.which("slirp4netns")
    remedy = "install the package `slirp4netns` if programs in a sandbox are to reach the network"
    yield _result("slirp4netns", bool(slirp), slirp or "not found", remedy, bad="warn")
    missing = egress.missing_programs()
    evidence = f"{missing[0]} not found" if missing else shutil.which(egress.PROGRAMS[0]) or ""
    remedy = "install the package `iptables` if programs are to reach some places alone (`--network allow=HOST:PORT`)"
    yield _result("iptables", not missing, evidence, remedy, bad="warn")


def _limits() -> Iterator[CheckResult]:
    found = limits.available()
    by_version = {
        version: [name for name in found if found[name] == version] for version in sorted(set(found.values()))
    }
    shown = "; ".join(f"version {version}: {', '.join(names)}" for version, names in by_version.items())
    missing = [name for name in limits.CONTROLLERS if name not in found]
    evidence = f"control groups {shown or 'cannot be made here'}"
    remedy = (
        f"nothing limits {', '.join(missing)} of programs (`--memory`, `--cpus`, `--pids`, `--io`): a container needs "
        "/sys/fs/cgroup to write to; of version 2 its processes have to be in a group below the container's"
    )
    yield _result("limits", not missing, evidence, remedy, bad="warn")


def _io_uring() -> Iterator[CheckResult]:
    """Nothing to refuse: sandboxes refuse io_uring by themselves. Said, because it is the blocker met most often."""
    path = Path("/proc/sys/kernel/io_uring_disabled")
    value = path.read_text().strip() if path.exists() else "0"
    evidence = "off on this machine" if value == "2" else "refused to programs in a sandbox, unless they are allowed it"
    yield CheckResult(check="io_uring", outcome="ok", evidence=evidence)


def _repository(repo: Path) -> Iterator[CheckResult]:
    """Nothing to refuse: where snapshots go, and whether there are any yet."""
    there = (repo / "format").is_file()
    evidence = f"{repo}" if there else f"none yet at {repo}: `ijfs init` makes one"
    yield CheckResult(check="repository", outcome="ok", evidence=evidence)


def _space(repo: Path) -> Iterator[CheckResult]:
    where = _existing(repo)
    free = shutil.disk_usage(where).free
    evidence = f"{free / 1e9:.1f} GB free at {where}"
    yield _result("disk space", free >= LOW_SPACE, evidence, "`ijfs gc`, or keep the repository elsewhere", bad="warn")


def _plain(repo: Path) -> Iterator[CheckResult]:
    """What lies beside an encrypted repository's packs as it is: files of programs. Nothing of other repositories."""
    live = live_directory(repo)
    if not (repo / "keys").is_dir() or not live.is_dir():
        return
    ended, running = [], 0
    for path in sorted(live.iterdir()):
        with contextlib.suppress(IjfsError):
            alive = procfs.is_alive(read_record(InstancePaths(path)).program)
            running += alive
            ended += [] if alive else [path.name]
    evidence = f"the files of {running} live and {len(ended)} ended programs lie in plain at {live}"
    remedy = "`ijfs stop --rm --ended` takes away those of ended ones that left nothing unsaved"
    yield _result("plain files", not ended, evidence, remedy, bad="warn")


def _lost(repo: Path) -> Iterator[CheckResult]:
    """Programs that were running when the machine went down. Nothing where there are none."""
    found = lost(repo)
    if not found:
        return
    saved = [one.name for one in found if one.snapshot is not None]
    yield CheckResult(
        check="programs",
        outcome="warn",
        evidence=f"{len(found)} ended with the machine: {', '.join(one.name for one in found)}",
        remedy=f"`ijfs restore --lost` brings back what was saved: {', '.join(saved)}"
        if saved
        else "nothing of them was saved; `ijfs cp NAME:PATH .` takes out a file, `ijfs stop --rm NAME` forgets one",
    )


def _spare(repo: Path) -> Iterator[CheckResult]:
    """Nothing to refuse. Said, because it is the one process of ijfs that runs while nothing is live."""
    found = fork_request.forkserver_info(repo)
    evidence = "none waits: the next start or restore loads what it needs first"
    if found is not None:
        minutes = (time.time_ns() - found.since_ns) // 60_000_000_000
        memory = f", {found.memory >> 20} MiB" if found.memory is not None else ""
        evidence = f"process {found.pid} waits since {minutes} min{memory}; `ijfs stop --all` ends it"
    yield CheckResult(check="spare", outcome="ok", evidence=evidence)


def _gpus() -> Iterator[CheckResult]:
    """The machine's GPUs, where its driver shows any; what GPU programs need on top."""
    if not Path("/dev/nvidiactl").exists():
        return
    from importlib.util import find_spec

    from ijfs.live.gpu.nvml import inventory
    from ijfs.live.gpu.preflight import check_driver

    found = inventory()
    for gpu in found.gpus:
        evidence = f"{gpu.name}, {gpu.free_bytes >> 20} of {gpu.total_bytes >> 20} MiB free, {gpu.uuid}"
        yield CheckResult(check=f"GPU {gpu.index}", outcome="ok", evidence=evidence)
    for result in check_driver(found):
        # Without it, only GPU programs cannot be saved; everything else can.
        yield msgspec.structs.replace(result, outcome="warn") if result.outcome == "refuse" else result
    bindings = find_spec("cuda") is not None
    remedy = "`pip install ijfs[gpu]`; without it GPU programs cannot be saved"
    yield _result("cuda-bindings", bindings, "installed" if bindings else "not installed", remedy, bad="warn")


def _gpu(pid: int) -> Iterator[CheckResult]:
    from ijfs.live.gpu.evidence import device_holders

    pids = procfs.processes_in("pid", procfs.namespace_id(pid, "pid")) if _in_sandbox(pid) else [pid]
    if not device_holders(pids):
        return
    from ijfs.live.gpu.program import GpuProgram

    program = GpuProgram(find=lambda _root: device_holders(pids))
    try:
        yield from program.check(pid)
    except IjfsError as error:
        yield CheckResult(check="GPU", outcome="unknown", evidence=str(error), remedy=error.hint or "")
    finally:
        program.close()


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
