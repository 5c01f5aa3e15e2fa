"""Whether a snapshot's program would come back on this machine, told before anything is tried; for `ijfs doctor`.

Each check compares one thing that the snapshot says of its machine with this one. What CRIU would refuse is a refusal,
what it may stumble over a warning, and what the snapshot does not say is unknown. `ijfs save --verify` tries it.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ijfs.live.checkpoint.machine_files import REMEDY, difference, machine_files
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore, gpu_record
from ijfs.live.checks import privilege
from ijfs.live.checks.result import CheckOutcome, CheckResult
from ijfs.live.criu import command as criu_command
from ijfs.live.criu import reservations
from ijfs.live.criu.image_format import parse_areas
from ijfs.live.errors import CriuMissingError
from ijfs.live.process import processor
from ijfs.live.process.memory import available
from ijfs_engine import Snapshot, is_pages
from ijfs_engine.errors import IjfsError, UnknownNameError

# Rows that differ, of one kind; more are counted.
MOST_ROWS = 10


def of_snapshot(repo: Path, name: str) -> list[CheckResult]:
    """Every check of a snapshot. UnknownNameError; NotLiveError for an imported one; NoRepositoryError."""
    store = SnapshotStore(repo)
    try:
        snapshot, meta = store.load(name)
        return list(_Fit(store, snapshot, meta).results())
    finally:
        store.close()


class _Fit:
    """One snapshot against this machine."""

    def __init__(self, store: SnapshotStore, snapshot: Snapshot, meta: LiveMeta) -> None:
        self._store = store
        self._snapshot = snapshot
        self._meta = meta
        self._images = self._small_images()

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
            self._reservations,
            self._huge_pages,
            self._network,
            self._gpu,
        ]
        for check in checks:
            yield from check()

    def _small_images(self) -> dict[str, bytes]:
        tree = self._store.tree_at(self._snapshot, "images")
        entries = self._store.reader.tree(tree).entries if tree is not None else ()
        named = {os.fsdecode(entry.name): entry for entry in entries if entry.kind == "f"}
        opened = {name: self._store.reader.open(entry) for name, entry in named.items() if not is_pages(name)}
        return {name: file.read(0, file.size) for name, file in opened.items()}

    # -- what there is to a machine ---------------------------------------------------------------------------------

    def _rights(self) -> Iterator[CheckResult]:
        found = privilege.objection()
        if found is not None:
            yield CheckResult(check="capabilities", outcome="refuse", evidence=found[0], remedy=found[1])

    def _kernel(self) -> Iterator[CheckResult]:
        machine, here = self._meta.versions.get("machine", ""), platform.machine()
        if machine and machine != here:
            evidence = f"it ran on {machine}, this machine is {here}"
            yield _result("kernel", "refuse", evidence, f"a machine that is {machine}")
            return
        kernel = self._meta.versions.get("kernel", "")
        older = _numbers(platform.release()) < _numbers(kernel)
        evidence = f"Linux {platform.release()}" + (
            f", it was saved on {kernel}" if kernel != platform.release() else ""
        )
        yield _result("kernel", "warn" if older else "ok", evidence, "a kernel that is no older, where CRIU refuses it")

    def _processor(self) -> Iterator[CheckResult]:
        had = self._meta.versions.get("cpu_flags", "").split()
        if not had:
            yield _result("processor", "unknown", "the snapshot does not say what its processor had")
            return
        lacking = sorted(set(had) - processor.flags())
        model = self._meta.versions.get("cpu", "")
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
        there = self._meta.versions.get("criu", "")
        shown = ".".join(map(str, here))
        older = here < _numbers(there)
        evidence = f"{shown}, it was saved by {there}" if older else shown
        yield _result("CRIU", "warn" if older else "ok", evidence, f"CRIU {there} or newer")

    # -- what it stands on ------------------------------------------------------------------------------------------

    def _base(self) -> Iterator[CheckResult]:
        base = self._meta.base
        if base is None:
            return
        try:
            self._store.repository.snapshot(bytes.fromhex(base.snapshot))
        except UnknownNameError:
            evidence = f"the base `{base.name}` ({base.snapshot[:12]}) is not in this repository"
            yield _result("base", "refuse", evidence, "`ijfs base list` shows those that are")
            return
        yield _result("base", "ok", f"`{base.name}` is in this repository: its files come from there")

    def _files(self) -> Iterator[CheckResult]:
        """The files of the machine that it has open or maps, by size, mode and build id."""
        root = self._root()
        if root is None:
            return
        found = list(machine_files(self._store, self._snapshot))
        differences = [(file.path, text) for file in found if (text := difference(file, root))]
        for path, text in differences[:MOST_ROWS]:
            yield _result("file", "refuse", f"{path} {text}", REMEDY)
        if differences[MOST_ROWS:]:
            yield _result("file", "refuse", f"and {len(differences) - MOST_ROWS} others", "")
        if not differences:
            yield _result("files", "ok", f"{len(found)} files and libraries are as they were")

    def _root(self) -> Path | None:
        """What it would stand on, where that is not its own."""
        return Path("/") if self._meta.base is None else None

    def _mounts(self) -> Iterator[CheckResult]:
        if self._meta.base is not None:
            return
        gone = [volume.path for volume in self._meta.volumes if not Path(volume.path).is_dir()]
        for path in gone[:MOST_ROWS]:
            yield _result("mount", "refuse", f"{path}, which it saw, is not there", "mount it, or make the directory")
        if self._meta.volumes and not gone:
            yield _result("mounts", "ok", f"{len(self._meta.volumes)} mounts that it saw are there")

    # -- what it takes ----------------------------------------------------------------------------------------------

    def _memory(self) -> Iterator[CheckResult]:
        needed, free = self._meta.image_bytes, available()
        evidence = f"{needed >> 20} MiB of memory, {free >> 20} MiB are free"
        yield _result("memory", "warn" if needed > free else "ok", evidence, "stop other programs, or add swap")

    def _reservations(self) -> Iterator[CheckResult]:
        left = reservations.commit_left()
        if left is not None and (largest := self._largest_mapping()) > left:
            evidence = (
                f"it has a mapping of {largest >> 20} MiB, and this machine, which counts strictly, has {left >> 20}"
            )
            yield _result("reservations", "refuse", evidence, "`sysctl vm.overcommit_memory=0`, or 1")

    def _largest_mapping(self) -> int:
        images = {name: data for name, data in self._images.items() if name.startswith("mm-")}
        sizes = (area.end - area.start for name, data in images.items() for area in parse_areas(name, data))
        return max(sizes, default=0)

    def _huge_pages(self) -> Iterator[CheckResult]:
        from ijfs.live.criu import eager_pages

        needed = eager_pages.reasons(self._images).get(eager_pages.HUGETLB, 0)
        free = _meminfo("HugePages_Free") * (_meminfo("Hugepagesize") << 10)
        if needed:
            outcome: CheckOutcome = "refuse" if needed > free else "ok"
            evidence = f"{needed >> 20} MiB of huge pages, {free >> 20} MiB are free"
            yield _result("huge pages", outcome, evidence, "raise vm.nr_hugepages")

    def _network(self) -> Iterator[CheckResult]:
        if self._meta.spec.network == "slirp4netns":
            there = shutil.which("slirp4netns")
            evidence = there or "it had a way out by slirp4netns, which is not here"
            yield _result("network", "ok" if there else "refuse", evidence, "install the package `slirp4netns`")

    def _gpu(self) -> Iterator[CheckResult]:
        record = gpu_record(self._meta)
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
