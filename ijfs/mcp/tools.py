"""The tools that an agent sees: names, descriptions, arguments and what they answer. Built by `server`, for server.py.

The docstrings and the descriptions of the arguments are what a model reads. Every failure is a sentence with what to do
next, and no failure ends a session.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, TextContent
from pydantic import Field

from ijfs.jupyter.cells import CellTimeoutError
from ijfs.jupyter.outputs import CellResult
from ijfs.mcp.sessions import Checkpoint, Session, Sessions
from ijfs.sdk import aio
from ijfs.sdk.commands import CommandTimeoutError, Completed
from ijfs_engine.errors import IjfsError

INSTRUCTIONS = """\
Each session is a live Python kernel in a sandbox of its own, with its memory and files. It is saved by itself before
each run, so nothing you do is lost: `undo` goes back to before the last run, `checkpoint` marks a moment, `restore`
goes to any, `fork` makes live copies as sessions of their own to try things side by side. A session is found again by
its name, also after you, or this server, were restarted.
"""

MOST_TEXT = 40_000
"""Characters of an output that are answered: its beginning and its end. A model's context is small."""

Content = list[TextContent | ImageContent]
Tool = Callable[..., Awaitable[Any]]

SessionName = Annotated[str, Field(description="The session's name: letters, digits, `.`, `_`, `-`.")]
Seconds = Annotated[float, Field(gt=0, description="After so many seconds it is ended; the session's state stays.")]
Spec = Annotated[str, Field(description="An id or its beginning, a session's name, a tag, `NAME~2`.")]


def server(sessions: Sessions) -> MCPServer[None]:
    """The server with its tools, not running yet."""
    made: MCPServer[None] = MCPServer("ijfs", instructions=INSTRUCTIONS)
    tools = Tools(sessions)
    for tool in tools.all():
        made.add_tool(_with_sentences(tool), structured_output=False)
    return made


def _with_sentences(tool: Tool) -> Tool:
    """A tool whose errors are told to the agent as ijfs says them."""

    @functools.wraps(tool)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await tool(*args, **kwargs)
        except IjfsError as error:
            raise ToolError(f"{error}{f' (hint: {error.hint})' if error.hint else ''}") from None

    return call


class Tools:
    """Every tool is a method: what stands in its docstring and beside its arguments is what a model reads."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def all(self) -> list[Tool]:
        """The tools in the order in which an agent is told of them."""
        return [
            self.start,
            self.run_code,
            self.run_command,
            self.read_file,
            self.write_file,
            self.checkpoint,
            self.undo,
            self.restore,
            self.fork,
            self.list_sessions,
            self.checkpoints,
            self.diff,
            self.kill,
        ]

    async def start(self, session: SessionName = "main") -> str:
        """Start a session, or find the one of this name again: the running one, or an ended one as it was last
        saved."""
        _, how = await self.sessions.start(session)
        return f"session '{session}': {how}"

    async def run_code(
        self,
        code: Annotated[str, Field(description="Python; the value of its last expression is answered.")],
        session: SessionName = "main",
        timeout: Seconds = 120,
    ) -> Content:
        """Run Python code in the session's kernel: what it prints, its value, its pictures, its error. Variables, files
        and threads stay for the next run. The moment before it is saved: `undo` goes back to it."""
        found = await self.sessions.ready(session)
        async with found.turn:
            checkpoint = await self.sessions.before_run(found, code)
            try:
                result = await found.box.run(code, timeout=timeout)
                note = ""
            except CellTimeoutError as error:
                if error.result is None:
                    raise
                result, note = error.result, f"\n[{error}]"
            return _cell(result, note + await self._footer(found, checkpoint))

    async def run_command(
        self,
        command: Annotated[str, Field(description="For `sh -c`, in the session's working directory.")],
        session: SessionName = "main",
        timeout: Seconds = 120,
    ) -> Content:
        """Run a shell command among the session's files, processes and ports. The moment before it is saved."""
        found = await self.sessions.ready(session)
        async with found.turn:
            checkpoint = await self.sessions.before_run(found, f"$ {command}")
            try:
                completed = await found.box.exec(["sh", "-c", command], timeout=timeout)
                note = ""
            except CommandTimeoutError as error:
                completed, note = error.completed, f"\n[{error}]"
            return _command(completed, note + await self._footer(found, checkpoint))

    async def read_file(
        self,
        path: Annotated[str, Field(description="Absolute, or from the session's working directory.")],
        session: SessionName = "main",
    ) -> Content:
        """Read a file of the session: text, a picture, or the size of anything else."""
        found = await self.sessions.ready(session)
        return _file(path, await found.box.files.read(path))

    async def write_file(
        self,
        path: Annotated[str, Field(description="Absolute, or from the session's working directory.")],
        content: Annotated[str, Field(description="The whole new content, as text.")],
        session: SessionName = "main",
    ) -> str:
        """Write a file of the session, whole or not at all; directories that are missing are made."""
        found = await self.sessions.ready(session)
        async with found.turn:
            await found.box.files.write(path, content)
            found.dirty = True
        return f"wrote {len(content.encode())} bytes to {path}"

    async def checkpoint(
        self, message: Annotated[str, Field(description="What this moment is.")] = "", session: SessionName = "main"
    ) -> str:
        """Save this moment of a session: memory, GPU memory and files. Such checkpoints are never thinned out."""
        found = await self.sessions.ready(session)
        async with found.turn:
            return f"checkpoint {(await self.sessions.checkpoint(found, message))[:12]}"

    async def undo(
        self,
        steps: Annotated[int, Field(ge=1, description="How many runs to take back.")] = 1,
        session: SessionName = "main",
    ) -> str:
        """Go back to the moment before the last run (or so many runs): memory and files."""
        found = await self.sessions.ready(session)
        async with found.turn:
            snapshot = await self.sessions.undo(found, steps)
        return f"session '{session}' is as it was at checkpoint {snapshot[:12]}"

    async def restore(self, snapshot: Spec, session: SessionName = "main") -> str:
        """Go to any checkpoint, also another session's. What was not saved of the session is lost."""
        found = await self.sessions.ready(session)
        async with found.turn:
            return f"session '{session}' is as it was at {(await self.sessions.restore(found, snapshot))[:12]}"

    async def fork(
        self,
        count: Annotated[int, Field(ge=1, le=64, description="How many copies.")] = 1,
        names: Annotated[list[str], Field(description="Their names; given, they say how many.")] = [],  # noqa: B006
        session: SessionName = "main",
    ) -> str:
        """Make live copies of a session, each a session of its own with its own memory and files, to try things side by
        side. The session itself goes on."""
        found = await self.sessions.ready(session)
        async with found.turn:
            made = await self.sessions.fork(found, names, count)
            found.dirty = False
        return f"new sessions: {', '.join(made)}"

    async def list_sessions(self) -> str:
        """List sessions: whether they run, on which checkpoint, since when."""
        boxes = await aio.Repository(self.sessions.repo).boxes(ended=True)
        infos = [await box.info() for box in boxes]
        lines = [f"{i.name}: {i.status}, checkpoint {(i.snapshot or 'none')[:12]}" for i in infos]
        return "\n".join(lines) or "no sessions"

    async def checkpoints(
        self,
        session: SessionName = "main",
        most: Annotated[int, Field(ge=1, description="How many, newest first.")] = 20,
    ) -> str:
        """List a session's checkpoints, newest first: what the next `undo` would go back to, and so on."""
        found = await self.sessions.ready(session)
        lines: list[str] = []
        at = await found.box.snapshot()
        while at is not None and len(lines) < most:
            lines.append(f"{at.id[:12]}  {await at.message()}")
            at = next(iter(await at.parents()), None)
        return "\n".join(lines) or "no checkpoints yet"

    async def diff(
        self,
        old: Spec,
        new: Annotated[str, Field(description="As `old`; left out: the newest.")] = "latest",
    ) -> str:
        """Compare two checkpoints: files that were added, removed and changed, and how much memory differs."""
        difference = await aio.Repository(self.sessions.repo).diff(old, new)
        lines = [f"{change.change}: /{change.path.removeprefix('files/')}" for change in difference.files]
        lines += [
            f"{change.process}: {change.changed} pages changed, {change.added} new, {change.removed} gone"
            for change in difference.memory
        ]
        return _clipped("\n".join(lines)) or "nothing differs"

    async def kill(self, session: SessionName) -> str:
        """End a session. Its checkpoints stay: `start` with its name makes a new one, `restore` brings one back."""
        await self.sessions.kill(session)
        return f"session '{session}' has ended"

    async def _footer(self, session: Session, checkpoint: Checkpoint) -> str:
        if checkpoint.number is None:
            return f"\n[no new checkpoint: {checkpoint.reason}]"
        return f"\n[checkpoint before it: {(await self.sessions.settled(session, checkpoint))[:12]}]"


def _cell(result: CellResult, note: str) -> Content:
    parts = [result.text, result.stderr, result.error]
    text = _clipped("\n".join(part.rstrip("\n") for part in parts if part))
    pictures = [
        ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=kind)
        for kind, data in result.images()
    ]
    return [TextContent(type="text", text=text + note), *pictures]


def _command(completed: Completed, note: str) -> Content:
    parts = [completed.text, completed.stderr.decode(errors="replace")]
    text = _clipped("\n".join(part.rstrip("\n") for part in parts if part))
    return [TextContent(type="text", text=f"{text}\n[exit status {completed.exit_code}]{note}")]


PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


def _file(path: str, data: bytes) -> Content:
    for magic, kind in PICTURES.items():
        if data.startswith(magic):
            return [ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=kind)]
    try:
        return [TextContent(type="text", text=_clipped(data.decode()))]
    except UnicodeDecodeError:
        return [TextContent(type="text", text=f"{path}: {len(data)} bytes that are no text")]


def _clipped(text: str) -> str:
    if len(text) <= MOST_TEXT:
        return text
    half = MOST_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - MOST_TEXT} characters left out …]\n{text[-half:]}"
