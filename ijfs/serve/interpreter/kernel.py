"""Cells of one sandbox's kernel, one after the other, each in its context. Called by endpoints.py."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from ijfs.jupyter.outputs import CellResult, Output
from ijfs.sdk import aio
from ijfs.sdk.box import Box
from ijfs.serve.errors import ApiError
from ijfs.serve.interpreter import contexts, results
from ijfs.serve.records import Context
from ijfs_engine.errors import IjfsError

DEFAULT = "default"
"""The context of a kernel's own variables."""
AHEAD = 64
"""Outputs that the client may be behind before the cell's are read no more."""
ASIDE_S = 60.0
"""How long a cell of the server's own may take: a few milliseconds are usual."""


class Change(Protocol):
    """Writes a sandbox's contexts down."""

    def __call__(self, *, contexts: tuple[Context, ...]) -> None: ...


class Interpreter:
    """The kernel of one sandbox."""

    def __init__(self, box: Box, made: Sequence[Context], change: Change) -> None:
        self._box, self._made, self._change = box, list(made), change
        self._turn = asyncio.Lock()

    @property
    def contexts(self) -> list[Context]:
        """All that there are."""
        return [Context(DEFAULT, self._box.info.cwd), *self._made]

    async def create(self, cwd: str | None) -> Context:
        """A new context, without variables."""
        made = Context(secrets.token_hex(8), cwd or (await aio.in_thread(lambda: self._box.info)).cwd)
        async with self._turn:
            await self._aside(contexts.enter(made.id, made.cwd, {}))
        self._keep([*self._made, made])
        return made

    async def remove(self, ident: str) -> None:
        """Let a context go. ApiError 404."""
        self._find(ident)
        if ident == DEFAULT:
            raise ApiError(400, "the default context is the kernel's own: it stays")
        async with self._turn:
            await self._aside(contexts.enter("", "", {}))
            await self._aside(contexts.forget(ident))
        self._keep([context for context in self._made if context.id != ident])

    async def restart(self, ident: str) -> None:
        """Let go of its variables, and of the cell that it runs. ApiError 404."""
        found = self._find(ident)
        if self._turn.locked():
            await aio.in_thread(self._box.interrupt)
        async with self._turn:
            await self._aside(contexts.enter(_inside(ident), found.cwd, {}, fresh=True))

    def _keep(self, made: list[Context]) -> None:
        self._made = made
        self._change(contexts=tuple(made))

    def _find(self, ident: str) -> Context:
        if ident == DEFAULT:
            return Context(DEFAULT, "")
        found = next((context for context in self._made if context.id == ident), None)
        if found is None:
            raise ApiError(404, f"there is no context {ident}")
        return found

    async def _aside(self, code: str) -> None:
        """A cell of the server's own."""
        done = await aio.in_thread(self._box.run, code, timeout=ASIDE_S)
        if not done.ok:
            raise ApiError(501, f"contexts and variables of one run want a Python kernel: {done.error_name}")

    def execute(self, code: str, context: str | None, env: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """What a cell comes to, piece by piece. Who leaves this in the middle interrupts it. ApiError 404."""
        return self._events(code, self._find(context or DEFAULT), env)

    async def _events(self, code: str, context: Context, env: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        send, receive = anyio.create_memory_object_stream[dict[str, Any]](AHEAD)
        running = asyncio.create_task(self._run(code, context, env, send))
        try:
            with receive:
                async for event in receive:
                    yield event
            await running
        except (IjfsError, ApiError) as error:
            yield results.error(type(error).__name__, str(error))
        finally:
            running.cancel()

    async def _run(
        self, code: str, context: Context, env: Mapping[str, str], send: MemoryObjectSendStream[dict[str, Any]]
    ) -> None:
        def on_output(output: Output) -> None:
            # In the cell's thread. Nobody may be left to read.
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                anyio.from_thread.run(send.send, results.event(output))

        with send:
            async with self._turn:
                if self._made or env:
                    await self._aside(contexts.enter(_inside(context.id), context.cwd, env))
                try:
                    done = await aio.to_its_end(self._box.run, code, on_output=on_output, store_history=True)
                finally:
                    if env:
                        await self._aside(contexts.leave())
            for event in _last(done):
                await send.send(event)


def _inside(ident: str) -> str:
    """What the kernel calls a context."""
    return "" if ident == DEFAULT else ident


def _last(done: CellResult) -> list[dict[str, Any]]:
    """What is told when a cell has ended."""
    return [{"type": "number_of_executions", "execution_count": done.execution_count}, {"type": "end_of_execution"}]
