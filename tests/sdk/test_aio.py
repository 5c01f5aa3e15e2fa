"""The awaited twins of the SDK, under asyncio and trio: the same surface, and cancelling loses nothing."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from looking import pids_of
from waiting import eventually, patient

import ijfs
from ijfs import aio
from ijfs.sdk import forks, repository, search

TWINS = [
    (ijfs.Repository, aio.Repository),
    (ijfs.Box, aio.Box),
    (ijfs.Snapshot, aio.Snapshot),
    (ijfs.Files, aio.Files),
    (ijfs.Command, aio.Command),
]
ONLY_BLOCKING = {"Repository.engine", "Files.open"}
"""Handles of what is not made for a second thread."""


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run an async function under one of the two."""

    def call(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return anyio.run(function, *args, backend=request.param)

    return call


def public(of: type) -> set[str]:
    return {name for name in vars(of) if not name.startswith("_")}


def parameters(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Names, kinds, types and defaults; of a default that is a function, that it is one."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.annotation, "…" if inspect.isfunction(p.default) else p.default) for p in found]


@pytest.mark.parametrize(("plain", "awaited"), TWINS, ids=lambda twin: twin.__module__ + "." + twin.__name__)
def test_a_class_and_its_twin_offer_the_same(plain: type, awaited: type) -> None:
    names = {name for name in public(plain) if f"{plain.__name__}.{name}" not in ONLY_BLOCKING}
    assert names - public(awaited) == set()
    for name in names:
        theirs = inspect.getattr_static(plain, name)
        if isinstance(theirs, property):
            continue
        assert parameters(getattr(plain, name)) == parameters(getattr(awaited, name)), name


@pytest.mark.parametrize("name", ["branches", "explore"])
def test_a_function_and_its_twin_take_the_same(name: str) -> None:
    module = forks if name == "branches" else search
    assert parameters(getattr(module, name)) == parameters(getattr(aio, name))
    assert {n for n in ("start", "kernel", "restore") if not hasattr(aio, n) or not hasattr(repository, n)} == set()


@pytest.mark.root
@pytest.mark.criu
def test_a_kernel_is_worked_with_by_many_tasks(run: Callable[..., Any], box: ijfs.Box) -> None:
    async def main() -> list[str]:
        twin = aio.Box(box)
        await twin.run("y = 5")
        moment = await twin.save("by a task")
        assert (await moment.message(), await twin.snapshot()) == ("by a task", moment)
        said: dict[int, str] = {}

        async def one(number: int, kid: aio.Box) -> None:
            said[number] = (await kid.run(f"y * {number}")).text

        async with aio.branches(moment, 2) as kids, anyio.create_task_group() as tasks:
            for number, kid in enumerate(kids):
                tasks.start_soon(one, number, kid)
        return [said[number] for number in sorted(said)]

    assert run(main) == ["0", "5"]


@pytest.mark.root
@pytest.mark.criu
def test_a_copy_is_paused_and_goes_on_under_another_name(run: Callable[..., Any], box: ijfs.Box) -> None:
    async def main() -> tuple[bool, str, str]:
        twin = aio.Box(box)
        await twin.run("w = 7")
        (copy,) = await twin.fork()
        await copy.run("w += 1")
        paused = await copy.save("paused", stop=True)
        stands = not await copy.running()
        async with await paused.restore() as again:
            told = (await again.run("w")).text, (await twin.run("w")).text
        await copy.discard()
        return stands, *told

    assert run(main) == (True, "8", "7")


@pytest.mark.root
@pytest.mark.criu
def test_a_cancelled_cell_is_interrupted_and_the_kernel_keeps_its_state(run: Callable[..., Any], box: ijfs.Box) -> None:
    async def main() -> str:
        twin = aio.Box(box)
        begun = anyio.Event()
        tell = anyio.lowlevel.current_token()

        def on_stream(name: str, text: str) -> None:
            anyio.from_thread.run_sync(begun.set, token=tell)

        async with anyio.create_task_group() as tasks:

            async def endless() -> None:
                await twin.run("z = 1; print('begun', flush=True)\nwhile True: pass", on_stream=on_stream)

            tasks.start_soon(endless)
            await begun.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(patient(20)):
            return (await twin.run("z + 1")).text

    assert run(main) == "2"


@pytest.mark.root
@pytest.mark.criu
def test_a_cancelled_command_is_killed(run: Callable[..., Any], box: ijfs.Box) -> None:
    async def main() -> None:
        async with await aio.Box(box).popen(["sh", "-c", "echo begun; sleep 98763"]) as command:
            async for piece in command.pieces():
                assert piece == ("stdout", b"begun\n")
                break
        with anyio.move_on_after(0.2):
            await aio.Box(box).exec(["sleep", "98762"])

    run(main)
    assert eventually(lambda: not pids_of(b"sleep 9876"))


def test_events_are_heard_by_a_task_that_may_leave(run: Callable[..., Any], box: ijfs.Box) -> None:
    async def main() -> tuple[str, str]:
        async with aio.events(box.repo) as happening:
            with anyio.move_on_after(0.01):  # who waits may be cancelled, and comes back
                await anext(happening)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, lambda: box.save("heard"))
                with anyio.fail_after(patient(30)):
                    async for event in happening:
                        if event.kind == "saved":
                            return event.instance, event.snapshot or ""
        raise AssertionError("nothing was heard")

    name, snapshot = run(main)
    assert name == box.name
    assert snapshot == ijfs.Repository(box.repo).snapshot("latest").id


def test_leaving_events_by_an_error_ends_the_listening(run: Callable[..., Any], box: ijfs.Box) -> None:
    async def main() -> None:
        async with aio.events(box.repo):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)
