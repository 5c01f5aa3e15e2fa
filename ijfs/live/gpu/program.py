"""One instance's GPU side, as its keeper sees it: suspended for a dump, resumed after it, brought back after a restore.

A keeper makes one `GpuProgram` when its program was started with `--gpu`; the driver's helper starts in the background
at once, since the first save should not wait for it. What a snapshot has to remember is a `GpuRecord` in its meta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from ijfs.live.checks.result import CheckResult, require
from ijfs.live.gpu.checkpoint import LOCK_TIMEOUT_MS, GpuLostError, GpuSteps, GpuSuspendError
from ijfs.live.gpu.driver import CheckpointDriver, ProcessState
from ijfs.live.gpu.evidence import GpuEvidence, device_holders
from ijfs.live.gpu.helper import DriverProcess
from ijfs.live.gpu.huge_pages import HugePages
from ijfs.live.gpu.nvml import Inventory, gpu_map, inventory, require_room
from ijfs.live.gpu.preflight import FORKED_REMEDY, check_program
from ijfs.live.process.procfs import inner_pid, namespace_id, processes_in
from ijfs_engine.errors import IjfsError

KILL_CHECKPOINTED_DRIVER = 595
"""From this branch on, killing a process that was restored hung the host unless it was checkpointed first (reported for
595; 580 was killed without it dozens of times here)."""


class GpuProcess(msgspec.Struct, frozen=True):
    """A CUDA process of a snapshot: its pid inside the sandbox, and the bytes it held per GPU UUID."""

    inner_pid: int
    held: dict[str, int]


class GpuRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot's meta has under `gpu`; the inventory is that of the machine it was taken on."""

    inventory: Inventory
    processes: tuple[GpuProcess, ...]

    def held(self) -> dict[str, int]:
        """GPU UUID → bytes of all processes together."""
        total: dict[str, int] = {}
        for process in self.processes:
            for uuid, size in process.held.items():
                total[uuid] = total.get(uuid, 0) + size
        return total


class GpuProgram:
    """Suspends and resumes the CUDA processes of one program; its calls block, so a keeper makes them in a thread."""

    def __init__(
        self,
        driver: CheckpointDriver | None = None,
        *,
        take_inventory: Callable[[], Inventory] = inventory,
        find: Callable[[int], list[GpuEvidence]] | None = None,
        huge_pages: HugePages | None = None,
    ) -> None:
        self._driver = driver or DriverProcess()
        self._inventory = take_inventory
        self._find = find or tree_evidence
        self._suspended: list[int] = []
        self._restored = False
        self._steps = GpuSteps(self._driver)
        self._huge_pages = huge_pages or HugePages()
        self._huge_pages.put_back()

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each driver operation since the last suspend or restore began: `gpu_lock`, `gpu_checkpoint`, …"""
        return {f"gpu_{operation}": seconds for operation, seconds in self._steps.seconds.items()}

    def check(self, root_pid: int) -> list[CheckResult]:
        """What preflight says of the tree; an empty list when nothing in it holds a GPU's files."""
        processes, strangers = self._look(root_pid)
        return check_program(processes, self._inventory(), strangers)

    def held_bytes(self, root_pid: int) -> int:
        """Device memory of the tree: what a suspend will add to its host memory."""
        return sum(self._inventory().held_by([process.pid for process in self._find(root_pid)]).values())

    def suspend(
        self, root_pid: int, *, force: bool = False, lock_timeout_ms: int = LOCK_TIMEOUT_MS
    ) -> GpuRecord | None:
        """Take the GPU state of the whole tree into host memory; None when no process of it uses CUDA.

        Raises PreflightError before anything is touched, GpuSuspendError when a step failed and was undone,
        GpuLostError when it could not be undone.
        """
        processes, strangers = self._look(root_pid)
        if not processes and not strangers:
            return None
        machine = self._inventory()
        require(check_program(processes, machine, strangers), force=force)
        if not processes:
            return None
        self._steps = GpuSteps(self._driver)
        pids = [process.pid for process in processes]
        record = GpuRecord(
            inventory=machine,
            processes=tuple(GpuProcess(inner_pid(pid), machine.held_by([pid])) for pid in pids),
        )
        with self._huge_pages.wanted():
            self._steps.suspend(pids, lock_timeout_ms=lock_timeout_ms)
        self._suspended = pids
        if not force:
            self._require_let_go(root_pid)
        return record

    def resume(self) -> None:
        """Give the GPU back to what `suspend` took it from; does nothing when nothing is suspended."""
        pids, self._suspended = self._suspended, []
        if pids:
            with self._huge_pages.wanted():
                self._steps.resume(pids)

    def resume_found(self, root_pid: int) -> None:
        """Give the GPU back to whatever of the tree has none: `suspend` took it, perhaps that of an earlier keeper."""
        if not self._suspended:
            self._suspended = [
                pid
                for pid in host_pids(root_pid).values()
                if self._driver.state(pid) in (ProcessState.CHECKPOINTED, ProcessState.LOCKED)
            ]
        self.resume()

    def require_room_again(self, held: Mapping[str, int]) -> None:
        """Refuse to go on where others have taken the GPU meanwhile: running out inside the driver would wedge it.
        `held`: UUID → bytes. Raises PreflightError with the numbers."""
        if held:
            require_room(self._inventory(), held, {})

    def require_room(self, record: GpuRecord, wanted: Sequence[str] = (), *, copies: int = 1) -> None:
        """Refuse a restore that cannot fit before anything is started. Raises PreflightError with the numbers."""
        now = self._inventory()
        require_room(now, record.held(), self._map(record, now, wanted), copies=copies)

    def restore(self, root_pid: int, record: GpuRecord, wanted: Sequence[str] = ()) -> None:
        """Give the GPU to a tree that CRIU just restored; `wanted` chooses GPUs (index or UUID). GpuLostError."""
        self._steps = GpuSteps(self._driver)
        inner = host_pids(root_pid)
        missing = [process.inner_pid for process in record.processes if process.inner_pid not in inner]
        if missing:
            raise GpuLostError(f"the restored tree has no process {missing[0]}, which held the GPU when it was saved")
        pids = [inner[process.inner_pid] for process in record.processes]
        strange = [pid for pid in pids if self._driver.state(pid) is not ProcessState.CHECKPOINTED]
        if strange:
            raise GpuLostError(f"a restored process has no GPU state to bring back: {self._steps.describe(strange)}")
        with self._huge_pages.wanted():
            self._steps.resume(pids, gpu_map=self._map(record, self._inventory(), wanted) or None)
        self._restored = True

    def prepare_to_kill(self, root_pid: int) -> None:
        """Take a restored program off the device before it is killed, with the drivers that want it; never raises."""
        branch = self._inventory().driver_version.partition(".")[0]
        if self._restored and branch.isdigit() and int(branch) >= KILL_CHECKPOINTED_DRIVER:
            with suppress(IjfsError):
                self.suspend(root_pid, force=True)

    def close(self) -> None:
        """End the driver's helper."""
        if isinstance(self._driver, DriverProcess):
            self._driver.close()

    def _look(self, root_pid: int) -> tuple[list[GpuEvidence], list[GpuEvidence]]:
        """Who holds the GPU's files: those that the driver knows as CUDA processes, and the others."""
        holders = self._find(root_pid)
        known = [process for process in holders if self._driver.state(process.pid) is not None]
        return known, [process for process in holders if process not in known]

    def _require_let_go(self, root_pid: int) -> None:
        """The driver closes what a process opened through it, not what that inherited from another. GpuSuspendError
        with the program running on, before CRIU would read all memory and then refuse."""
        left = [process for process in self._find(root_pid) if process.device_files]
        if left:
            self.resume()
            names = ", ".join(left[0].device_files)
            text = f"process {left[0].pid} holds {names} still, inherited from the process that forked it"
            raise GpuSuspendError(f"{text}; the program runs on", hint=FORKED_REMEDY)

    @staticmethod
    def _map(record: GpuRecord, now: Inventory, wanted: Sequence[str]) -> dict[str, str]:
        return gpu_map(record.inventory, now, wanted, list(record.held()))


def tree_evidence(root_pid: int) -> list[GpuEvidence]:
    """The processes in the pid namespace of `root_pid` that hold files of the GPU."""
    return device_holders(processes_in("pid", namespace_id(root_pid, "pid")))


def host_pids(root_pid: int) -> dict[int, int]:
    """Pid inside → host pid, for every process in the pid namespace of `root_pid`."""
    found = {}
    for pid in processes_in("pid", namespace_id(root_pid, "pid")):
        with suppress(FileNotFoundError, ProcessLookupError):
            found[inner_pid(pid)] = pid
    return found
