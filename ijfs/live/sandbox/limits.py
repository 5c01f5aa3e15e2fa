"""What a sandbox may take of the machine: a control group of its own in each hierarchy, made before its program runs.

The program and what `ijfs exec` runs beside it are in it; its keeper, its pager and CRIU at a dump are not. Where a
machine gives no groups (a container whose /sys/fs/cgroup is read-only) a program runs without; one for which limits
were asked is refused. Every group is noted in the sandbox's directory (`SandboxPaths.cgroups`), so that whoever clears
that removes it, should its keeper have been killed.

A group's files are known by their names: version 2's first, version 1's where those are not there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ijfs.live.errors import LimitError
from ijfs.live.model.paths import SandboxPaths
from ijfs.live.model.records import NO_LIMITS, Limits, Usage, ran_out_of
from ijfs.live.process import cgroups

PARENT = "ijfs"
"""The group that all sandboxes' groups are in, in each hierarchy."""

CONTROLLERS = ("memory", "cpu", "pids", "io")

PERIOD_US = 100_000
"""Of a limit of processor time, as the kernel has it by default."""

LEAST_PROCESSES, PROCESSES_A_CPU = 8192, 256
"""Threads and processes that a sandbox may have where nobody says. Ray, Spark and BLAS libraries start some for each
processor in each process; a fork bomb of 8,192 leaves a machine of 2 processors usable (docs/security.md)."""

EMPTY_S = 2.0
"""How long a group takes to be empty once its last process was reaped."""

MOST_TRIES = 10
"""At making a group, while the ones beside it come and go."""

ROOM_MB = 16
"""Beside what a program has, of the least limit that is proposed for it."""

UNLIMITED = "max"

NO_BYTES = 1 << 62
"""From here on, version 1 means that there is no limit."""

_log = logging.getLogger("ijfs.limits")


def default_processes() -> int:
    """Threads and processes that a sandbox may have where nobody says."""
    return max(LEAST_PROCESSES, PROCESSES_A_CPU * (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Group:
    """The control groups of one sandbox, one a hierarchy (none where the machine gives none), and its limits."""

    directories: tuple[Path, ...] = ()
    limits: Limits = NO_LIMITS

    # -- limits ---------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Have the limits be so. LimitError, also where it has more memory already than it may have. Where nobody asked
        for any, what the kernel refuses is logged."""
        try:
            self._apply()
        except OSError as error:
            if self.limits != NO_LIMITS:
                raise LimitError(f"the kernel refuses these limits: {error.strerror}") from error
            _log.warning("no limits: %s", error)

    def _apply(self) -> None:
        if not self.directories:
            return
        self._limit_memory(self.limits.memory or 0)
        self._limit_cpus(self.limits.cpus or 0)
        self._limit_processes(default_processes() if self.limits.pids is None else self.limits.pids)

    def limit_io(self, disk: Path) -> None:
        """The same of I/O, with the block device that `disk` lies on; a save needs none of it lifted. LimitError."""
        if self.limits.io:
            self._limit_io(self.limits.io, disk)

    def lift(self) -> None:
        """Let it take what it wants, for what is done to it while it stands still: a save at its limit of memory must
        not have the kernel kill it, and one without processor time would last."""
        self._limit_memory(0)
        self._limit_cpus(0)
        self._limit_processes(0)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Without limits while the block runs; then they are as they were, whatever came of it."""
        self.lift()
        try:
            yield
        finally:
            self.restrict()

    def restrict(self) -> None:
        """As `apply`, for a program that is to go on in any case; what cannot be is logged."""
        try:
            self.apply()
        except LimitError as error:
            _log.warning("%s", error)

    def _limit_memory(self, limit: int) -> None:
        if (file := self.file("memory.max")) is not None:
            if limit and (used := self.memory()) > limit:  # the kernel would kill at once
                raise too_much_memory(used, limit)
            _write(file, str(limit or UNLIMITED))
            _write(self.file("memory.swap.max"), str(0 if limit else UNLIMITED), missing_ok=True)
        elif (file := self.file("memory.limit_in_bytes")) is not None:
            with_swap = self.file("memory.memsw.limit_in_bytes")
            try:
                _write(with_swap, "-1", missing_ok=True)  # it is never below the other, on the way neither
                _write(file, str(limit or -1))
                _write(with_swap, str(limit or -1), missing_ok=True)
            except OSError as error:
                raise too_much_memory(self.memory(), limit) from error

    def _limit_cpus(self, cpus: float) -> None:
        quota = round(cpus * PERIOD_US)
        if (file := self.file("cpu.max")) is not None:
            _write(file, f"{quota or UNLIMITED} {PERIOD_US}")
        elif (file := self.file("cpu.cfs_quota_us")) is not None:
            _write(file.with_name("cpu.cfs_period_us"), str(PERIOD_US))
            _write(file, str(quota or -1))

    def _limit_processes(self, processes: int) -> None:
        if (file := self.file("pids.max")) is not None:
            _write(file, str(processes) if processes else UNLIMITED)

    def _limit_io(self, rate: int, disk: Path) -> None:
        device = _block_device(disk)
        if (file := self.file("io.max")) is not None:
            rate_or_max = rate or UNLIMITED
            _write(file, f"{device} rbps={rate_or_max} wbps={rate_or_max}")
        else:
            for name in ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"):
                _write(self.file(name), f"{device} {rate}", missing_ok=True)

    # -- what it takes --------------------------------------------------------------------------------------------

    def usage(self) -> Usage | None:
        """What it takes now; None where there is no group, or it is gone."""
        try:
            memory, pids = self.memory(), self._number("pids.current")
            return Usage(memory=memory, cpu_s=self._cpu_s(), pids=pids, oom_kills=self.oom_kills())
        except (OSError, ValueError):
            return None

    def memory(self) -> int:
        """Bytes, without the parts of files that the kernel would give up at once."""
        current = self._number("memory.current", "memory.usage_in_bytes")
        return max(0, current - self._field(("inactive_file", "total_inactive_file"), "memory.stat"))

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        file = self.file("memory.events", "memory.oom_control")
        return _oom_kills(file.read_text()) if file is not None else 0

    def watch(self) -> OomWatch | None:
        """What tells of more such kills from where the groups are not seen any more; None where nothing does."""
        file = self.file("memory.events", "memory.oom_control")
        if file is None:
            return None
        limit = self.file("memory.max", "memory.limit_in_bytes")
        value = limit.read_text().strip() if limit is not None else UNLIMITED
        memory = int(value) if value != UNLIMITED and int(value) < NO_BYTES else None
        return OomWatch(os.open(file, os.O_RDONLY | os.O_CLOEXEC), Limits(memory=memory), self.oom_kills())

    def _cpu_s(self) -> float:
        if (file := self.file("cpuacct.usage")) is not None:
            return int(file.read_text()) / 1e9
        return self._field(("usage_usec",), "cpu.stat") / 1e6

    def _number(self, *names: str) -> int:
        file = self.file(*names)
        return int(file.read_text()) if file is not None else 0

    def _field(self, fields: Sequence[str], *names: str) -> int:
        """A number of a file with a name and a number a line. Version 1 has a group's own beside the total."""
        file = self.file(*names)
        lines = [line.split() for line in file.read_text().splitlines()] if file is not None else []
        found = {words[0]: int(words[1]) for words in lines if len(words) == 2}
        return next((found[field] for field in reversed(fields) if field in found), 0)

    def file(self, *names: str) -> Path | None:
        """The first of these files that one of the groups has; None where none has one."""
        paths = (directory / name for name in names for directory in self.directories)
        return next((path for path in paths if path.exists()), None)


NO_GROUP = Group()


@dataclass(frozen=True, slots=True)
class OomWatch:
    """Whether the kernel has killed more processes of a sandbox for want of memory than the `before` that it had: by a
    descriptor, for a process that is in the sandbox by then. `limits`: what the sandbox has."""

    events: int
    limits: Limits
    before: int

    def said(self) -> str:
        """The sentence's end that says so; "" where there was none."""
        killed = _oom_kills(os.pread(self.events, 1 << 12, 0).decode()) > self.before
        return ran_out_of(self.limits) if killed else ""


def _oom_kills(text: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)


def make(paths: SandboxPaths, limits: Limits) -> Group:
    """New groups for a sandbox, noted in its directory. LimitError where the machine does not give what `limits`
    wants."""
    wanted = frozenset(name for name in CONTROLLERS if getattr(limits, _FIELDS.get(name, name)))
    name = f"{os.getpid()}-{secrets.token_hex(6)}"
    groups = [place / PARENT / name for place in _places(wanted)]
    for group in groups:
        _sweep_strays(group.parent)
    _note(paths, groups)
    made = Group(tuple(group for group in groups if _made(group)), limits)
    missing = [name for name in CONTROLLERS if name in wanted and made.file(*_LIMIT_FILES[name]) is None]
    if missing:
        remove(paths)
        raise LimitError(f"this machine gives no limits of {' and '.join(missing)}", hint="`ijfs doctor` says why")
    return made


_FIELDS = {"cpu": "cpus"}
"""What a controller limits, where that is called otherwise in records.Limits."""

_LIMIT_FILES = {
    "memory": ("memory.max", "memory.limit_in_bytes"),
    "cpu": ("cpu.max", "cpu.cfs_quota_us"),
    "pids": ("pids.max",),
    "io": ("io.max", "blkio.throttle.read_bps_device"),
}
"""A controller is there where a group has one of these."""


def found(paths: SandboxPaths, limits: Limits = NO_LIMITS) -> Group:
    """The groups that were made for a sandbox, for another process than the one that made them."""
    with contextlib.suppress(OSError):
        noted = [Path(line) for line in paths.cgroups.read_text().splitlines()]
        return Group(tuple(path for path in noted if path.is_dir()), limits)
    return NO_GROUP


def remove(paths: SandboxPaths, wait_s: float = EMPTY_S, group: Group = NO_GROUP) -> None:
    """Remove the groups that were made for a sandbox, once their processes are gone; those of one that runs stay.
    `group`: as who made them knows them, should the sandbox's directory be gone."""
    deadline = time.monotonic() + wait_s
    for directory in {*found(paths).directories, *group.directories}:
        while not _removed(directory) and time.monotonic() < deadline:
            time.sleep(0.005)
    if not found(paths).directories:
        paths.cgroups.unlink(missing_ok=True)


def remove_all(instance: Path, wait_s: float = EMPTY_S) -> None:
    """Remove the groups of all sandboxes in an instance's directory."""
    for noted in instance.glob("box-*/cgroups"):
        remove(SandboxPaths(noted.parent), wait_s)


def available() -> dict[str, int]:
    """The controllers by which limits can be set here, and of which version of control groups each is. Pure looking."""
    found: dict[str, int] = {}
    for hierarchy in cgroups.hierarchies():
        found = {name: hierarchy.version for name in CONTROLLERS if _gives(hierarchy, name)} | found
    return found


def _gives(hierarchy: cgroups.Hierarchy, controller: str) -> bool:
    """Whether a sandbox limited by that controller gets a group that has it: perhaps further up than others' are."""
    place = _place(hierarchy, frozenset({controller}))
    return place is not None and controller in _handed_on(hierarchy, place)


def _places(wanted: frozenset[str]) -> Iterator[Path]:
    """In each hierarchy, the group below which sandboxes' groups are made."""
    for hierarchy in cgroups.hierarchies():
        try:
            place = _place(hierarchy, wanted)
        except OSError as error:
            _log.info("no control groups in %s: %s", hierarchy.mount, error)
            continue
        if place is not None and ("cpu" in wanted or not _refuses_real_time(place)):
            yield place


def _refuses_real_time(place: Path) -> bool:
    """Whether a new group would take SCHED_FIFO and SCHED_RR from its programs, as version 1's do on kernels with
    CONFIG_RT_GROUP_SCHED. A snapshot with such a thread would not come back."""
    return (place / "cpu.rt_runtime_us").exists()


def _place(hierarchy: cgroups.Hierarchy, wanted: frozenset[str]) -> Path | None:
    """The group below which a sandbox's is made; None where none can be."""
    own = cgroups.group_of(hierarchy)
    if os.statvfs(own).f_flag & os.ST_RDONLY or not os.access(own, os.W_OK):
        return None
    return place_in(hierarchy, own, wanted)


def place_in(hierarchy: cgroups.Hierarchy, own: Path, wanted: frozenset[str]) -> Path | None:
    """The keeper's `own` group, so that what limits that limits sandboxes, too. Of version 2 the nearest above it that
    hands on what is wanted: one with processes in it may not."""
    if hierarchy.version == 1:
        return own
    above = [own, *(place for place in own.parents if place.is_relative_to(hierarchy.mount))]
    for least in (wanted | {"pids"}, frozenset({"pids"}), frozenset({"memory"})):
        for place in above:
            if least <= _handed_on(hierarchy, place):
                return place
    return None


def _handed_on(hierarchy: cgroups.Hierarchy, group: Path) -> frozenset[str]:
    """The controllers that groups below that one can have. Of version 2: those that it hands on, and all that it has
    where it may hand them on, being the root of all groups (which has no type) or without processes."""
    if hierarchy.version == 1:
        return hierarchy.controllers
    may = not (group / "cgroup.type").exists() or not (group / cgroups.PROCS).read_text().strip()
    return frozenset((group / ("cgroup.controllers" if may else "cgroup.subtree_control")).read_text().split())


def _enable(group: Path) -> None:
    """Have a group of version 2 hand on what controllers it has."""
    control = group / "cgroup.subtree_control"
    if not control.exists():
        return
    missing = set((group / "cgroup.controllers").read_text().split()) - set(control.read_text().split())
    for controller in missing.intersection(CONTROLLERS):
        with contextlib.suppress(OSError):
            control.write_text(f"+{controller}")


def _sweep_strays(parent: Path) -> None:
    """Remove groups without processes whose keeper was killed, and whose notes are gone with their repository."""
    with contextlib.suppress(FileNotFoundError):
        for group in parent.iterdir():
            maker = group.name.partition("-")[0]
            if maker.isdecimal() and not Path("/proc", maker).exists():
                with contextlib.suppress(OSError):  # one with a program in it stays
                    group.rmdir()


def _note(paths: SandboxPaths, groups: Sequence[Path]) -> None:
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.cgroups.write_text("".join(f"{group}\n" for group in groups))


def _made(group: Path) -> bool:
    """Whether a group of that name could be made. The one that it is in goes with the last of them, perhaps now."""
    try:
        for _ in range(MOST_TRIES):
            with contextlib.suppress(FileNotFoundError):
                group.parent.mkdir(exist_ok=True)
                _enable(group.parent.parent)
                _enable(group.parent)
                group.mkdir()
                return True
    except OSError as error:
        _log.info("no control group %s: %s", group, error)
    return False


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with contextlib.suppress(OSError):
        directory.parent.rmdir()
    return True


def too_much_memory(used: int, limit: int, *, saved: bool = False) -> LimitError:
    """The refusal of a limit that is below what a program has, or had when it was `saved`. The hint has some room
    beside that."""
    enough = -(-(used + used // 8) >> 20) + ROOM_MB
    had = f"had {_megabytes(used)} when it was saved" if saved else f"has {_megabytes(used)} already"
    return LimitError(
        f"it may have {_megabytes(limit)} of memory, and {had}",
        hint=f"`--memory {enough}M` is enough for it as it is, `--memory none` no limit",
    )


def _megabytes(count: int) -> str:
    """As `--memory` counts them, a part as a whole one: what is too much by little is more, too."""
    return f"{-(-count >> 20):,} MB"


def _write(file: Path | None, value: str, *, missing_ok: bool = False) -> None:
    if file is None:
        if not missing_ok:
            raise LimitError("a file of the control group is not there")
        return
    file.write_text(value)


def _block_device(path: Path) -> str:
    """`MAJOR:MINOR` of the disk that a file lies on: of a partition, of its whole disk. LimitError."""
    number = os.stat(path).st_dev
    at = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    with contextlib.suppress(OSError):
        at = at.resolve(strict=True)
        return ((at.parent if (at / "partition").exists() else at) / "dev").read_text().strip()
    raise LimitError(f"{path} lies on no block device of this machine, whose I/O could be limited")
