"""Whether a snapshot's program would come back on this machine, told before anything is tried; for `ijfs doctor`.

Each check compares one thing that the snapshot says of its machine with this one. What CRIU would refuse is a refusal,
what it may stumble over a warning, and what the snapshot does not say is unknown. `ijfs save --verify` tries it. What a
snapshot needs may come from another machine (needs.py), which asks before it sends it.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ijfs.drawing.words import count
from ijfs.live.checkpoint.machine_files import REMEDY, difference
from ijfs.live.checkpoint.snapshot_io import gpu_record
from ijfs.live.checks import privilege
from ijfs.live.checks.result import CheckOutcome, CheckResult
from ijfs.live.criu import command as criu_command
from ijfs.live.criu import reservations
from ijfs.live.errors import CriuMissingError
from ijfs.live.machine import needs
from ijfs.live.machine.needs import Needs
from ijfs.live.model.records import Base
from ijfs.live.process import processor
from ijfs.live.process.memory import available
from ijfs.live.sandbox import egress
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError, NoRepositoryError, UnknownNameError

# Rows that differ, of one kind; more are counted.
MOST_ROWS = 10


def of_snapshot(repo: Path, name: str) -> list[CheckResult]:
    """Every check of a snapshot. UnknownNameError; NotLiveError for an imported one; NoRepositoryError."""
    return compared(needs.of_snapshot(repo, name), repo)


def compared(needed: Needs, repo: Path, *, comes: bool = False) -> list[CheckResult]:
    """What a snapshot needs against this machine. `comes`: it is in no repository here yet, its base neither."""
    return list(_Fit(needed, repo, comes=comes).results())


class _Fit:
    """One snapshot against this machine."""

    def __init__(self, needed: Needs, repo: Path, *, comes: bool) -> None:
        self._needed = needed
        self._repo = repo
        self._comes = comes

    def results(self) -> Iterator[CheckResult]:
        checks: list[Callable[[], Iterator[CheckResult]]] = [
            self._rights,
            self._kernel,
            self._processor,
            self._criu,
            self._base,
            self._files,
            self._mounts,
            self._memory,
            self._disk,
            self._reservations,
            self._huge_pages,
            self._network,
            self._gpu,
        ]
        for check in checks:
            yield from check()

    # -- what there is to a machine ---------------------------------------------------------------------------------

    def _rights(self) -> Iterator[CheckResult]:
        found = privilege.objection()
        if found is not None:
            yield CheckResult(check="capabilities", outcome="refuse", evidence=found[0], remedy=found[1])

    def _kernel(self) -> Iterator[CheckResult]:
        machine, here = self._needed.versions.get("machine", ""), platform.machine()
        if machine and machine != here:
            evidence = f"it ran on {machine}, this machine is {here}"
            yield _result("kernel", "refuse", evidence, f"a machine that is {machine}")
            return
        kernel = self._needed.versions.get("kernel", "")
        older = _numbers(platform.release()) < _numbers(kernel)
        evidence = f"Linux {platform.release()}" + (
            f", it was saved on {kernel}" if kernel != platform.release() else ""
        )
        yield _result("kernel", "warn" if older else "ok", evidence, "a kernel that is no older, where CRIU refuses it")

    def _processor(self) -> Iterator[CheckResult]:
        had = self._needed.versions.get("cpu_flags", "").split()
        if not had:
            yield _result("processor", "unknown", "the snapshot does not say what its processor had")
            return
        lacking = sorted(set(had) - processor.flags())
        model = self._needed.versions.get("cpu", "")
        shown = " ".join(lacking[:MOST_ROWS]) + (" …" if lacking[MOST_ROWS:] else "")
        if lacking:
            evidence = f"this processor lacks {shown}, which the one it was saved on had ({model})"
            yield _result("processor", _judged(lacking), evidence, "a processor of the same family or a newer one")
        else:
            yield _result("processor", "ok", f"{processor.model()} has all that {model} had")

    def _criu(self) -> Iterator[CheckResult]:
        try:
            here = criu_command.version(criu_command.find())
        except CriuMissingError as error:
            yield _result("CRIU", "refuse", str(error), error.hint or "")
            return
        there = self._needed.versions.get("criu", "")
        shown = ".".join(map(str, here))
        older = here < _numbers(there)
        evidence = f"{shown}, it was saved by {there}" if older else shown
        yield _result("CRIU", "warn" if older else "ok", evidence, f"CRIU {there} or newer")

    # -- what it stands on ------------------------------------------------------------------------------------------

    def _base(self) -> Iterator[CheckResult]:
        base = self._needed.base
        if base is None:
            return
        if self._is_known(base):
            yield _result("base", "ok", f"`{base.name}` is in this repository: its files come from there")
        elif self._comes:
            yield _result("base", "ok", f"`{base.name}` comes with it: its files are not this machine's")
        else:
            evidence = f"the base `{base.name}` ({base.snapshot[:12]}) is not in this repository"
            yield _result("base", "refuse", evidence, "`ijfs base list` shows those that are")

    def _is_known(self, base: Base) -> bool:
        try:
            with Repository.open(self._repo) as repository:
                repository.snapshot(bytes.fromhex(base.snapshot))
        except (UnknownNameError, NoRepositoryError):
            return False
        return True

    def _files(self) -> Iterator[CheckResult]:
        """The files of the machine that it has open or maps, by size, mode and build id."""
        if self._needed.base is not None:
            return
        found = self._needed.files
        differences = [(file.path, text) for file in found if (text := difference(file, Path("/")))]
        for path, text in differences[:MOST_ROWS]:
            yield _result("file", "refuse", f"{path} {text}", REMEDY)
        if differences[MOST_ROWS:]:
            yield _result("file", "refuse", f"and {len(differences) - MOST_ROWS} others", "")
        if not differences:
            yield _result("files", "ok", f"as they were: {count(len(found), 'file')}, libraries among them")

    def _mounts(self) -> Iterator[CheckResult]:
        gone = [path for path in self._needed.mounts if not Path(path).is_dir()]
        for path in gone[:MOST_ROWS]:
            yield _result("mount", "refuse", f"{path}, which it saw, is not there", "mount it, or make the directory")
        if self._needed.mounts and not gone:
            yield _result("mounts", "ok", f"{len(self._needed.mounts)} mounts that it saw are there")

    # -- what it takes ----------------------------------------------------------------------------------------------

    def _memory(self) -> Iterator[CheckResult]:
        needed, free = self._needed.memory, available()
        evidence = f"{needed >> 20} MiB of memory, {free >> 20} MiB are free"
        yield _result("memory", "warn" if needed > free else "ok", evidence, "stop other programs, or add swap")

    def _disk(self) -> Iterator[CheckResult]:
        """Its files are laid out before it runs; what it reads of its memory may go through a cache on the disk."""
        above = next(p for p in (self._repo, *self._repo.absolute().parents) if p.exists())
        needed, free = self._needed.written, shutil.disk_usage(above).free
        evidence = f"{needed >> 20} MiB of files, {free >> 20} MiB are free at {self._repo}"
        yield _result("disk", "refuse" if needed > free else "ok", evidence, "`ijfs gc`, or a repository elsewhere")

    def _reservations(self) -> Iterator[CheckResult]:
        left = reservations.commit_left()
        if left is not None and (largest := self._needed.largest_mapping) > left:
            evidence = (
                f"it has a mapping of {largest >> 20} MiB, and this machine, which counts strictly, has {left >> 20}"
            )
            yield _result("reservations", "refuse", evidence, "`sysctl vm.overcommit_memory=0`, or 1")

    def _huge_pages(self) -> Iterator[CheckResult]:
        needed = self._needed.huge_pages
        free = _meminfo("HugePages_Free") * (_meminfo("Hugepagesize") << 10)
        if needed:
            outcome: CheckOutcome = "refuse" if needed > free else "ok"
            evidence = f"{needed >> 20} MiB of huge pages, {free >> 20} MiB are free"
            yield _result("huge pages", outcome, evidence, "raise vm.nr_hugepages")

    def _network(self) -> Iterator[CheckResult]:
        if self._needed.network == "slirp4netns":
            there = shutil.which("slirp4netns")
            evidence = there or "it had a way out by slirp4netns, which is not here"
            yield _result("network", "ok" if there else "refuse", evidence, "install the package `slirp4netns`")
        if self._needed.egress and (missing := egress.missing_programs()):
            evidence = f"where it may connect to is restricted by {missing[0]}, which is not here"
            yield _result("connections", "refuse", evidence, "install the package `iptables`")

    def _gpu(self) -> Iterator[CheckResult]:
        record = gpu_record(self._needed.gpu)
        if record is None:
            return
        from ijfs.live.gpu.nvml import inventory
        from ijfs.live.gpu.program import GpuProgram

        now = inventory()
        program = GpuProgram(take_inventory=lambda: now)
        try:
            program.require_room(record)
        except IjfsError as error:
            yield _result("GPU", "refuse", str(error), error.hint or "")
        else:
            yield _result(
                "GPU", "ok", f"{len(record.held())} held {sum(record.held().values()) >> 20} MiB: there is room"
            )
        finally:
            program.close()
        was, here = record.inventory.driver_version, now.driver_version
        if was != here:
            remedy = "the driver of the snapshot, where the restore fails"
            yield _result("GPU driver", "warn", f"{here or 'none'}, it was saved with {was}", remedy)


def _result(check: str, outcome: CheckOutcome, evidence: str, remedy: str = "") -> CheckResult:
    return CheckResult(check=check, outcome=outcome, evidence=evidence, remedy=remedy if outcome != "ok" else "")


# Registers that a program's state is saved in: CRIU refuses where they are missing (its --cpu-cap=fpu). What else is
# missing ends a program only where it uses it.
_REGISTERS = frozenset(("fpu", "fxsr", "xsave", "avx", "avx512f", "amx_tile", "pku"))


def _judged(lacking: list[str]) -> CheckOutcome:
    return "refuse" if _REGISTERS.intersection(lacking) else "warn"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdecimal())


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
