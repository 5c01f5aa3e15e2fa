"""Who makes room for whom where budgets of memory do not hold all deployments."""

from __future__ import annotations

import pytest
import trio

from ijfs.deployments.records import DeploymentSpec, Stage
from ijfs.deployments.room import NoRoomError, Room, parsed, victims
from ijfs.live.model.records import InstanceSpec
from ijfs_engine.errors import IjfsError


class Tenant:
    """A deployment that parks when it is asked to, unless it is busy."""

    def __init__(self, name: str, priority: int, last_used: float, *, busy: bool = False, **needs: int) -> None:
        program = InstanceSpec(name=name, argv=("true",))
        sizes = {budget.replace("_", ":"): size for budget, size in needs.items()}
        self.spec = DeploymentSpec(name=name, program=program, inside=1, priority=priority, needs=sizes)
        self.stage: Stage = "running"
        self.last_used = last_used
        self.is_idle = not busy

    async def make_room(self, budget: str) -> bool:
        if self.is_idle:
            self.stage = "memory" if budget.startswith("gpu:") else "disk"
        return self.is_idle


def test_lower_priority_comes_first_then_what_was_used_least_recently() -> None:
    wanting = Tenant("new", 5, 9.0, memory=1)
    others = [
        Tenant("same-idle", 5, 1.0, memory=1),
        Tenant("low-old", 1, 2.0, memory=1),
        Tenant("low-new", 1, 3.0, memory=1),
        Tenant("low-busy", 1, 0.0, busy=True, memory=1),
        Tenant("same-busy", 5, 0.0, busy=True, memory=1),
        Tenant("high", 6, 0.0, memory=1),
        Tenant("elsewhere", 0, 0.0, gpu_0=1),
    ]
    names = [tenant.spec.name for tenant in victims(wanting, others, "memory")]
    assert names == ["low-old", "low-new", "low-busy", "same-idle"]


@pytest.mark.trio
async def test_no_more_are_parked_than_have_to_be() -> None:
    wanting = Tenant("new", 1, 9.0, memory=4)
    wanting.stage = "disk"
    others = [Tenant(f"old-{n}", 0, float(n), memory=4) for n in range(3)]
    await Room(lambda: [wanting, *others], {"memory": 12}).make(wanting)
    assert [tenant.stage for tenant in others] == ["disk", "running", "running"]


@pytest.mark.trio
async def test_what_is_parked_in_memory_takes_no_gpu_and_still_takes_memory() -> None:
    parked = Tenant("old", 0, 1.0, memory=4, gpu_0=8)
    wanting = Tenant("new", 0, 2.0, memory=4, gpu_0=8)
    wanting.stage = "gone"
    room = Room(lambda: [parked, wanting], {"memory": 8, "gpu:0": 10})
    await room.make(wanting)
    assert parked.stage == "memory"
    assert room.free("memory", wanting) == 4


@pytest.mark.trio
async def test_where_all_are_busy_room_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    busy = Tenant("busy", 0, 1.0, busy=True, memory=8)
    wanting = Tenant("new", 0, 2.0, memory=8)
    wanting.stage = "gone"
    room = Room(lambda: [busy, wanting], {"memory": 8})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.make, wanting)
        await trio.sleep(5)
        assert busy.stage == "running"
        busy.is_idle = True
        room.changed()
    assert busy.stage == "disk"


@pytest.mark.trio
async def test_who_never_gets_room_hears_so(autojump_clock: trio.testing.MockClock) -> None:
    high = Tenant("high", 9, 1.0, memory=8)
    wanting = Tenant("new", 0, 2.0, memory=8)
    wanting.stage = "gone"
    with pytest.raises(NoRoomError, match="more important"):
        await Room(lambda: [high, wanting], {"memory": 8}).make(wanting)
    with pytest.raises(NoRoomError, match="has less"):
        await Room(lambda: [wanting], {"memory": 7}).make(wanting)
    assert high.stage == "running"


def test_budgets_are_read_from_a_line() -> None:
    assert parsed("memory=1.5G, gpu:0=140G") == {"memory": 3 << 29, "gpu:0": 140 << 30}
    with pytest.raises(IjfsError, match="no budget"):
        parsed("memory=much")
