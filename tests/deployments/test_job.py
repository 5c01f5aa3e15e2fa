"""Jobs, which answer nobody: they give way to what is more important, come back, and are over once. Scripted instances,
as in test_deployment.py, in a room of a hundred bytes; the last test has real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from deployments.conftest import Deployments
from deployments.test_deployment import Script, ask
from waiting import eventually, patient

from ijfs.deployments import client, records
from ijfs.deployments import deployment as deployment_module
from ijfs.deployments import job as job_module
from ijfs.deployments.deployment import Deployment
from ijfs.deployments.job import Job
from ijfs.deployments.making import job
from ijfs.deployments.records import DeploymentRecord, DeploymentSpec
from ijfs.deployments.room import BUDGET_VARIABLE, Room
from ijfs.live.client import api
from ijfs.live.errors import SandboxError
from ijfs.live.model.records import InstanceSpec, Limits
from ijfs_engine import Repository

PROGRAM = InstanceSpec(name="train", argv=("sh",))


class Place:
    """A room of two tenants: a job that takes 60 bytes, and a server that takes as many and is more important."""

    def __init__(self, nursery: trio.Nursery, repo: Path, budget: str, script: Script) -> None:
        self._nursery = nursery
        self.repo = repo
        self._room = Room(lambda: [self.job, self.server], {budget: 100})
        spec = job(PROGRAM, priority=1, needs={budget: 60})
        path = records.record_path(repo, "train")
        record = records.read(path) if path.exists() else DeploymentRecord(spec=spec)
        self.job: Job = Job(repo, record, self._room, nursery.start_soon, script.make)
        server = DeploymentSpec(
            name="web",
            program=InstanceSpec(name="web", argv=("sh",)),
            inside=80,
            idle_s=None,
            priority=5,
            needs={budget: 60},
        )
        self.server = Deployment(
            repo, DeploymentRecord(spec=server), self._room, nursery.start_soon, Script().make, serves=False
        )

    async def begin(self) -> None:
        await self.job.take_over()
        self._nursery.start_soon(self.job.run)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(deployment_module, "keep", lambda repo, name, snapshot: None)
    monkeypatch.setattr(job_module, "untag", lambda repo, name: None)
    monkeypatch.setattr(job_module, "LOOK_S", 0.01)
    monkeypatch.setattr(job_module, "ROOM_S", 0.05)
    monkeypatch.setattr(deployment_module, "AFTER_FAILURE_S", 0.0)
    return Script()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    Repository.init(tmp_path / "repo").close()
    return tmp_path / "repo"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(patient(30.0)):
        while not condition():
            await trio.sleep(0.005)


def run(steps: Callable[[Place], Any], repo: Path, script: Script, budget: str = "gpu:0") -> None:
    """`steps` at such a place, in a trio loop; all is over after."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            place = Place(nursery, repo, budget, script)
            await place.begin()
            await steps(place)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_it_gives_a_gpu_to_what_is_more_important_and_goes_on_after(script: Script, repo: Path) -> None:
    async def steps(place: Place) -> None:
        await place.job.wake()
        await ask(place.server)
        assert (place.job.stage, place.server.stage) == ("memory", "running")
        assert place.job.record.resting == "room"
        await trio.sleep(0.05)
        assert place.job.stage == "memory", "there is no room for it"
        await place.server.park("memory")
        await until(lambda: place.job.stage == "running")
        assert place.job.record.resting == ""

    run(steps, repo, script)
    assert script.calls == ["start", "park", "wake"]


def test_it_gives_ordinary_memory_by_a_snapshot(script: Script, repo: Path) -> None:
    async def steps(place: Place) -> None:
        await place.job.wake()
        await ask(place.server)
        assert (place.job.stage, place.server.stage) == ("disk", "running")
        await place.server.park("disk")
        await until(lambda: place.job.stage == "running")

    run(steps, repo, script, "memory")
    assert script.calls == ["start", "save", "restore"]


def test_one_that_finds_no_room_begins_by_itself_when_there_is_some(script: Script, repo: Path) -> None:
    async def steps(place: Place) -> None:
        await ask(place.server)
        await place.job.wake()
        assert place.job.stage == "gone"
        await place.server.park("memory")
        await until(lambda: place.job.stage == "running")

    run(steps, repo, script)
    assert script.calls == ["start"]


def test_its_end_is_the_end_of_the_job_and_it_is_never_begun_twice(script: Script, repo: Path) -> None:
    async def steps(place: Place) -> None:
        await place.job.wake()
        assert records.all_of(repo)
        script.dead = True
        await until(lambda: place.job.is_over)
        assert not records.all_of(repo)

    run(steps, repo, script)
    assert script.calls == ["start"]


def test_parked_by_somebody_it_rests_until_it_is_woken(script: Script, repo: Path) -> None:
    async def steps(place: Place) -> None:
        await place.job.wake()
        await place.job.park("disk")
        await trio.sleep(0.05)
        assert (place.job.stage, place.job.record.resting) == ("disk", "asked")
        await place.job.wake()
        assert place.job.stage == "running"

    run(steps, repo, script)
    assert script.calls == ["start", "save", "restore"]


def test_one_that_dies_as_it_rests_in_memory_is_over(script: Script, repo: Path) -> None:
    """Not brought back from the snapshot that it rested in before."""

    async def steps(place: Place) -> None:
        await place.job.wake()
        await place.job.park("disk")
        await place.job.wake()
        await place.job.park("memory")
        script.dead = True
        await until(lambda: place.job.is_over)

    run(steps, repo, script)
    assert script.calls == ["start", "save", "restore", "park"]


def test_one_that_somebody_parked_still_rests_after_the_machine_was_away(script: Script, repo: Path) -> None:
    async def steps(place: Place) -> None:
        await place.job.wake()
        await place.job.park("memory")
        await place.job.give_way("disk")
        assert (place.job.stage, place.job.record.resting) == ("disk", "asked")

    run(steps, repo, script)
    assert script.calls == ["start", "park", "save"]


def test_one_that_cannot_begin_is_not_begun_again_and_again(script: Script, repo: Path) -> None:
    script.failures["start"] = [SandboxError("there is no such program")]

    async def steps(place: Place) -> None:
        await until(lambda: place.job.record.resting == "asked")
        assert "no such program" in place.job.info().note
        await place.job.wake()

    run(steps, repo, script)
    assert script.calls == ["start", "start"]


@pytest.mark.parametrize("saved", [None, "5" * 64])
def test_a_supervisor_that_was_killed_as_it_gave_way_leaves_it_to_the_next(
    script: Script, repo: Path, saved: str | None
) -> None:
    """With its snapshot stored it comes back from it; still running, it runs on."""
    spec = job(PROGRAM, priority=1, needs={"memory": 60})
    records.write(repo, DeploymentRecord(spec=spec, last_used_ns=1, resting="room"))
    script.saved, script.dead = saved, saved is not None

    async def steps(place: Place) -> None:
        await until(lambda: place.job.stage == "running")
        assert place.job.record.resting == ""
        script.dead = True
        await until(lambda: place.job.is_over)

    if saved is None:
        script.found = "running"
    run(steps, repo, script)
    assert script.calls == (["restore"] if saved else [])


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUDGET_VARIABLE, "memory=300M")


@pytest.mark.root
@pytest.mark.criu
@pytest.mark.usefixtures("little_room")
def test_a_real_one_gives_way_and_comes_back_with_its_memory(deployments: Deployments) -> None:
    counts = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done"
    program = InstanceSpec(name="train", argv=("sh", "-c", counts), cwd="/", limits=Limits(memory=200 << 20))
    needs = {"memory": 200 << 20}
    begun = client.deploy(deployments.repo, job(program, priority=1, needs=needs))
    assert (begun.state, begun.url) == ("running", "")
    assert eventually(lambda: len(said(deployments)) > 3)

    deployments.deploy(priority=5, needs=needs, start=False)
    client.wake(deployments.repo, "web")
    assert not api.is_running(deployments.repo, "train")
    assert deployments.info("train").state == "disk"
    client.undeploy(deployments.repo, "web")
    assert eventually(lambda: api.is_running(deployments.repo, "train"), 60)
    reached = len(said(deployments))
    assert eventually(lambda: len(said(deployments)) > reached + 3, 60)
    assert said(deployments) == [str(number + 1) for number in range(len(said(deployments)))], "it counted on"

    with api.connect(deployments.repo, "train") as keeper:
        keeper.stop()
    assert eventually(lambda: not client.is_deployed(deployments.repo, "train"), 60), "its end is the end of the job"
    assert [info.status for info in api.list_instances(deployments.repo)] == ["exited"]


def said(deployments: Deployments) -> list[str]:
    """The whole lines that it has written."""
    text = Path(api.describe(deployments.repo, "train").log).read_text()
    return text[: text.rfind(os.linesep) + 1].split()
