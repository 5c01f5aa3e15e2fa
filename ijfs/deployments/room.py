"""Budgets of memory that deployments share, and who makes room for whom.

A budget is a name and a size: `memory` (given by IJFS_DEPLOY_BUDGET), `gpu:0`, … (what the GPU has). A deployment takes
its `needs` from starting until it is parked: in host memory it gives a GPU's room back, on disk everything. Where there
is no room for one, others park: first those of lower priority, then idle ones of the same, each time the one that was
used least recently. Nothing is killed; where nothing can park, the request waits until something can.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import trio

from ijfs.deployments.records import DeploymentSpec, Stage
from ijfs_engine.errors import IjfsError

BUDGET_VARIABLE = "IJFS_DEPLOY_BUDGET"
"""`memory=8G gpu:0=140G`: sizes of budgets, over what the machine says."""

GPU_RESERVE = 1 << 30
"""Bytes of a GPU that are not given out: contexts, and what others of its users take."""

WAIT_S = 600.0
"""How long a request waits for room."""


class NoRoomError(IjfsError):
    """There is no room for a deployment, and nothing that could make some."""


class Tenant(Protocol):
    """What a deployment shows of itself to those that need room."""

    stage: Stage
    last_used: float

    @property
    def spec(self) -> DeploymentSpec:
        """How it is to be kept."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""

    async def make_room(self, budget: str) -> bool:
        """Park so that this budget gets its share back; whether it did."""


def held(tenant: Tenant, budget: str) -> int:
    """Bytes that a tenant takes of a budget now."""
    if tenant.stage in ("gone", "disk") or (tenant.stage == "memory" and budget.startswith("gpu:")):
        return 0
    return tenant.spec.needs.get(budget, 0)


def victims(wanting: Tenant, tenants: Iterable[Tenant], budget: str) -> list[Tenant]:
    """Who could make room, in the order in which they are asked."""
    mine = wanting.spec.priority
    found = [
        tenant
        for tenant in tenants
        if tenant is not wanting
        and tenant.stage in ("running", "memory")
        and held(tenant, budget)
        and (tenant.spec.priority < mine or (tenant.spec.priority == mine and tenant.is_idle))
    ]
    return sorted(found, key=lambda tenant: (tenant.spec.priority, not tenant.is_idle, tenant.last_used))


class Room:
    """The budgets of one supervisor. `tenants` are all of its deployments."""

    def __init__(self, tenants: Callable[[], Iterable[Tenant]], sizes: Mapping[str, int]) -> None:
        self._tenants = tenants
        self._sizes = dict(sizes)
        self._asking = trio.Lock()
        self._changed = trio.Event()

    def changed(self) -> None:
        """Something was parked, or ended, or has no request any more."""
        self._changed.set()
        self._changed = trio.Event()

    def free(self, budget: str, but: Tenant) -> float:
        """Bytes that are left of a budget, without what `but` takes; without end where nobody set its size."""
        size = self._sizes.get(budget, math.inf)
        return size - sum(held(tenant, budget) for tenant in self._tenants() if tenant is not but)

    async def make(self, wanting: Tenant) -> None:
        """Return when there is room. NoRoomError where it can never fit, or did not in time."""
        for budget, size in wanting.spec.needs.items():
            if size > self._sizes.get(budget, math.inf):
                raise NoRoomError(f"`{wanting.spec.name}` needs {size} bytes of {budget}, which has less")
        with trio.move_on_after(WAIT_S):
            while not await self._tried(wanting):
                await self._changed.wait()
            return
        raise NoRoomError(
            f"no room for `{wanting.spec.name}`: what runs is busy, or more important", hint="try again later"
        )

    async def _tried(self, wanting: Tenant) -> bool:
        """Ask one after the other to park; whether there is room now."""
        async with self._asking:
            for budget, size in wanting.spec.needs.items():
                for victim in victims(wanting, self._tenants(), budget):
                    if self.free(budget, wanting) >= size:
                        break
                    await victim.make_room(budget)
                if self.free(budget, wanting) < size:
                    return False
            return True


def sizes() -> dict[str, int]:
    """The budgets of this machine. IjfsError for a variable that says nothing."""
    return {**_of_gpus(), **parsed(os.environ.get(BUDGET_VARIABLE, ""))}


def parsed(text: str) -> dict[str, int]:
    """`memory=8G gpu:0=140G` as bytes. IjfsError."""
    found = {}
    for word in text.replace(",", " ").split():
        name, _, size = word.partition("=")
        found[name] = _bytes(size, word)
    return found


def _bytes(text: str, word: str) -> int:
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(text[-1:].upper(), 1)
    number = text if unit == 1 else text[:-1]
    if not number.replace(".", "", 1).isdigit():
        raise IjfsError(f"{BUDGET_VARIABLE}: `{word}` is no budget", hint="write it as `memory=8G gpu:0=140G`")
    return int(float(number) * unit)


def _of_gpus() -> dict[str, int]:
    if not os.path.exists("/dev/nvidiactl"):
        return {}
    from ijfs.live.gpu.nvml import inventory

    return {f"gpu:{gpu.index}": gpu.total_bytes - GPU_RESERVE for gpu in inventory().gpus}
