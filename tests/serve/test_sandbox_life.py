"""Who changes whether a sandbox runs, two at the same moment: nothing that was saved is lost, nothing lives unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from live.live_env import LiveEnv

from ijfs.sdk.repository import Repository
from ijfs.serve.errors import ApiError
from ijfs.serve.keys import KeyRecord
from ijfs.serve.records import Records
from ijfs.serve.sandboxes import Sandbox, Sandboxes
from ijfs.serve.telemetry import Telemetry
from ijfs.serve.templates import Templates

pytestmark = [pytest.mark.root, pytest.mark.criu]


def served(live_env: LiveEnv) -> Sandboxes:
    """What a server has of a repository when it starts."""
    repo, records = Repository(live_env.repo), Records(live_env.repo)
    templates = Templates(repo, records, kernel="python3", home=str(live_env.work), network="none")
    return Sandboxes(repo, records, templates, Telemetry())


async def made(sandboxes: Sandboxes) -> Sandbox:
    """A sandbox with a file."""
    key = KeyRecord(name="tests", digest="", made_ns=0)
    given = {"env": {}, "metadata": {}, "at_the_end": "kill", "resumes": False}
    sandbox = await sandboxes.create(key, "base", timeout_s=600, **given)  # type: ignore[arg-type]
    sandbox.box.files.write("/tmp/kept", "kept")
    return sandbox


async def behind(sandbox: Sandbox, waits: Awaitable[object], first: Callable[[], Awaitable[object]]) -> None:
    """Have one wait for its turn while `first` has it; both are done when this returns."""
    async with sandbox.life:
        waiting = asyncio.ensure_future(waits)
        await asyncio.sleep(0)  # it asks for its turn
        await first()
    await waiting


def test_one_that_was_just_paused_is_not_taken_for_ended(live_env: LiveEnv) -> None:
    """Upkeep saw a program that a pause had saved and ended, and came when that was done."""

    async def life() -> None:
        sandboxes = served(live_env)
        sandbox = await made(sandboxes)
        await behind(sandbox, sandboxes.end_if_over(sandbox), lambda: sandboxes._paused(sandbox))
        assert sandbox.record.state == "paused"
        assert await sandboxes.resume(sandbox)
        assert sandbox.box.files.read_text("/tmp/kept") == "kept"
        await sandboxes.kill(sandbox)

    asyncio.run(life())


def test_one_that_was_ended_meanwhile_does_not_come_back(live_env: LiveEnv) -> None:
    """It would run for ever: no call finds it."""

    async def life() -> None:
        sandboxes = served(live_env)
        sandbox = await made(sandboxes)
        await sandboxes.pause(sandbox)
        with pytest.raises(ApiError, match="was not found"):
            await behind(sandbox, sandboxes.resume(sandbox), lambda: sandboxes._gone(sandbox))
        sandboxes.set_end(sandbox, 600)
        assert not sandbox.box.running
        assert sandboxes.records.sandboxes.all() == []

    asyncio.run(life())


@pytest.mark.parametrize("saved", [True, False])
def test_a_server_that_is_killed_while_it_pauses_one_is_followed_by_one_that_has_it(
    live_env: LiveEnv, saved: bool
) -> None:
    async def life() -> None:
        before = served(live_env)
        sandbox = await made(before)
        sandbox.change(before.records, state="pausing")
        if saved:
            sandbox.box.save("paused", stop=True)
        after = served(live_env)
        await after.settle()
        found = after.find(sandbox.record.id)
        assert found.record.state == ("paused" if saved else "running")
        assert await after.resume(found) is saved
        assert found.box.files.read_text("/tmp/kept") == "kept"
        await after.kill(found)

    asyncio.run(life())
