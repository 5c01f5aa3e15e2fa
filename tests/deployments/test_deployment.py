"""What becomes of requests while a deployment's instances start, rest, fail and come back. A `Backend` that fails where
a test says stands for its instances; tests/deployments/test_deploying.py has real ones."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from ijfs.deployments import deployment as deployment_module
from ijfs.deployments import records
from ijfs.deployments.backend import Backend
from ijfs.deployments.deployment import Deployment
from ijfs.deployments.records import DeploymentRecord, DeploymentSpec, Stage
from ijfs.deployments.room import Room
from ijfs.live.errors import SandboxError
from ijfs.live.model.records import InstanceSpec
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError, PreflightError, StorageError

pytestmark = pytest.mark.trio


class Script:
    """What the instances of a test did (`calls`), and what they fail at (`failures`: operation → errors, in turn)."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, list[IjfsError]] = {}
        self.saves = 0
        self.dead = False
        self.left_files = False
        self.saved: str | None = None
        self.found: Stage = "gone"

    def make(self, repo: Path, name: str, program: InstanceSpec, inside: int) -> Backend:
        return cast(Backend, Scripted(self, name))

    def did(self, what: str) -> None:
        self.calls.append(what)
        if self.failures.get(what):
            raise self.failures[what].pop(0)


class Scripted:
    """One instance as a deployment uses it."""

    def __init__(self, script: Script, name: str) -> None:
        self.name, self.requests, self.port = name, 0, 1
        self.phases: dict[str, float] = {}
        self._script = script
        self._depth: Stage = script.found

    @property
    def is_alive(self) -> bool:
        return self._depth == "running" and not self._script.dead

    def depth(self) -> Stage:
        return "gone" if self._script.dead else self._depth

    def start(self, *, keep_files: bool) -> None:
        self._script.did("start")
        self._depth, self._script.dead = "running", False

    def begin(self) -> None:
        self.start(keep_files=True)

    def restore(self, snapshot: str) -> None:
        self._script.did("restore")
        self._depth, self._script.dead = "running", False

    def park(self) -> None:
        self._script.did("park")
        self._depth = "memory"

    def wake(self) -> None:
        self._script.did("wake")
        self._depth = "running"

    def save(self, message: str, *, stop: bool = False, thinned: bool = False) -> Any:
        self._script.did("save")
        self._script.saves += 1
        self._depth = "gone" if stop else self._depth
        return msgspec.defstruct("Saved", [("snapshot", str)])(f"{self._script.saves:064x}")

    def stop(self) -> None:
        self._script.did("stop")
        self._depth = "gone"

    def forget(self) -> None:
        self._script.did("forget")
        self._depth = "gone"

    def ended_with_files(self) -> bool:
        return self._script.left_files

    def saved_at_its_end(self) -> str | None:
        return self._script.saved

    def last_words(self) -> str:
        return "no such model"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Instances that do as they are told; tags are not made of snapshots that do not exist."""
    monkeypatch.setattr(deployment_module, "keep", lambda repo, name, snapshot: None)
    return Script()


@contextlib.asynccontextmanager
async def deployed(script: Script, repo: Path, **settings: Any) -> AsyncIterator[Deployment]:
    """A deployment at work, its port aside."""
    if not repo.exists():
        Repository.init(repo).close()
    program = InstanceSpec(name="web", argv=("sh",))
    spec = DeploymentSpec(**{"name": "web", "program": program, "inside": 8000, "idle_s": None, **settings})
    path = records.record_path(repo, "web")
    record = records.read(path) if path.exists() else DeploymentRecord(spec=spec)
    async with trio.open_nursery() as nursery:
        made: list[Deployment] = []
        room = Room(lambda: made, {})
        deployment = Deployment(repo, record, room, nursery.start_soon, script.make)
        made.append(deployment)
        await deployment.take_over()
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(deployment.run, listener)
        await trio.testing.wait_all_tasks_blocked()
        yield deployment
        await deployment.end()
        nursery.cancel_scope.cancel()


async def ask(deployment: Deployment) -> None:
    async with deployment.request():
        pass


async def test_the_first_request_starts_it_and_leaves_a_snapshot(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        assert web.stage == "gone"
        await ask(web)
        assert (web.stage, script.calls) == ("running", ["start", "save"])
        assert web.info().snapshot == f"{1:064x}"


async def test_of_requests_that_come_at_once_one_brings_it_up(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, web)
        assert script.calls == ["start", "save"]
        assert web.info().served == 20


async def test_it_rests_in_memory_then_on_disk_and_comes_back(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        assert await web.park("memory")
        await ask(web)
        assert await web.park("memory")
        assert await web.park("disk")
        await ask(web)
        assert script.calls == ["start", "save", "park", "wake", "park", "save", "restore"]


async def test_a_request_under_way_is_waited_for_and_new_ones_wait(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web, trio.open_nursery() as nursery:
        async with web.request():
            nursery.start_soon(web.park, "memory")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, web)
            await trio.testing.wait_all_tasks_blocked()
            assert script.calls == ["start", "save"]
        while script.calls != ["start", "save", "park", "wake"]:
            await trio.sleep(0.01)


async def test_a_request_that_lasts_too_long_keeps_it_up(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo", drain_s=0.05) as web:
        async with web.request():
            assert not await web.park("memory")
            assert web.stage == "running"
        assert "park" not in script.calls


async def test_a_snapshot_that_cannot_be_restored_falls_back_to_the_command(script: Script, tmp_path: Path) -> None:
    script.failures["restore"] = [SandboxError("CRIU gave up")]
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        await web.park("disk")
        await ask(web)
        assert script.calls == ["start", "save", "save", "restore", "stop", "start", "save"]
        assert "CRIU gave up" in web.info().note
        assert web.stage == "running"


async def test_a_gpu_without_room_starts_no_second_way(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment_module, "AFTER_FAILURE_S", 0.0)
    script.failures["wake"] = [PreflightError("GPU 0 has 1 MiB free")]
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        await web.park("memory")
        with pytest.raises(PreflightError, match="1 MiB free"):
            await ask(web)
        assert web.stage == "memory"
        await ask(web)
        assert script.calls == ["start", "save", "park", "wake", "wake"]


async def test_a_full_disk_at_the_first_snapshot_stops_no_request(script: Script, tmp_path: Path) -> None:
    script.failures["save"] = [StorageError("no space left")]
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        assert "no snapshot could be made" in web.info().note
        assert (web.stage, web.info().snapshot) == ("running", None)


async def test_one_that_died_while_it_was_parked_comes_back_from_its_snapshot(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        await web.park("memory")
        script.dead = True
        await ask(web)
        assert script.calls[-1] == "restore"


async def test_one_that_died_with_files_that_are_nowhere_else_begins_over_them(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        script.dead = script.left_files = True
        await ask(web)
        assert script.calls == ["start", "save", "start", "save"]


async def test_a_failed_start_is_told_with_its_last_words_and_tried_again(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment_module, "AFTER_FAILURE_S", 3600.0)
    script.failures["start"] = [SandboxError("it ended")]
    async with deployed(script, tmp_path / "repo") as web:
        with pytest.raises(SandboxError, match="it ended: no such model"):
            await ask(web)
        with pytest.raises(SandboxError):
            await ask(web)
        assert script.calls == ["start"], "not for every request"
        monkeypatch.setattr(deployment_module, "AFTER_FAILURE_S", 0.0)
        await ask(web)
        assert web.stage == "running"


async def test_a_changed_program_is_not_restored_from_its_old_snapshot(script: Script, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_text("one")
    async with deployed(script, tmp_path / "repo", watched=(str(model),)) as web:
        await ask(web)
        await web.park("disk")
        model.write_text("another")
        await ask(web)
        assert script.calls == ["start", "save", "save", "start", "save"]


async def test_a_stateless_one_is_ended_and_not_saved_again(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo", stateless=True) as web:
        await ask(web)
        await web.park("disk")
        await ask(web)
        assert script.calls == ["start", "save", "stop", "restore"]


async def test_a_cold_one_is_ended_and_begun_anew(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo", start_mode="cold") as web:
        await ask(web)
        await web.park("disk")
        await ask(web)
        assert script.calls == ["start", "stop", "start"]


async def test_nobody_asks_and_it_rests_deeper_and_deeper(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo", idle_s=0.05, disk_s=0.1, ttl_s=0.15) as web:
        await ask(web)
        while script.calls[-1] != "forget":
            await trio.sleep(0.01)
        assert script.calls == ["start", "save", "park", "save", "forget"]
        assert web.info().snapshot is None


async def test_another_supervisor_goes_on_from_what_was_written(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        await web.park("disk")
    async with deployed(script, tmp_path / "repo") as web:
        assert web.stage == "disk"
        await ask(web)
        assert script.calls == ["start", "save", "save", "restore"]


async def test_a_snapshot_that_a_killed_supervisor_did_not_hear_of_is_gone_on_from(
    script: Script, tmp_path: Path
) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
    script.saved, script.dead = "5" * 64, True
    async with deployed(script, tmp_path / "repo") as web:
        assert (web.stage, web.info().snapshot) == ("disk", script.saved)
        await ask(web)
        assert script.calls == ["start", "save", "restore"]


async def test_a_wrong_answer_after_a_restore_falls_back_to_the_command(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["200 right", "200 wrong", "200 right"])
    monkeypatch.setattr(deployment_module, "answer_of", lambda line, port: next(answers))
    async with deployed(script, tmp_path / "repo", verify="http://127.0.0.1:8000/") as web:
        await ask(web)
        await web.park("disk")
        await ask(web)
        assert script.calls == ["start", "save", "save", "restore", "stop", "start", "save"]
        assert "not the one that was recorded" in web.info().note


async def test_another_version_takes_over_when_it_is_ready_and_the_old_one_ends_after(
    script: Script, tmp_path: Path
) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        async with web.request() as old:
            await web.replace(msgspec.structs.replace(web.spec, priority=1))
            async with web.request() as new:
                assert (old.name, new.name) == ("web", "web-v2")
            assert "forget" not in script.calls
        while "forget" not in script.calls:
            await trio.sleep(0.01)


async def test_another_version_that_does_not_start_leaves_the_old_one(script: Script, tmp_path: Path) -> None:
    async with deployed(script, tmp_path / "repo") as web:
        await ask(web)
        script.failures["start"] = [SandboxError("it ended")]
        with pytest.raises(SandboxError):
            await web.replace(web.spec)
        assert script.calls[-1] == "forget", "what was there of it has ended"
        async with web.request() as still:
            assert still.name == "web"
        (written,) = records.all_of(tmp_path / "repo")
        assert (written.generation, written.leaving) == (1, ())


async def test_what_a_killed_supervisor_left_of_another_version_is_ended_by_the_next(
    script: Script, tmp_path: Path
) -> None:
    repo = tmp_path / "repo"
    async with deployed(script, repo) as web, web.request():
        await web.replace(web.spec)
        (written,) = records.all_of(repo)
        assert (written.generation, written.leaving) == (2, ("web",))
    async with deployed(script, repo) as web:
        assert web.record.leaving
        await web.end_leaving()
        assert script.calls[-1] == "forget"
        assert records.all_of(repo)[0].leaving == ()
