"""`ijfs mcp` under the protocol's reference client: over stdio as agents start it, and over HTTP."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from live.live_env import LiveEnv
from waiting import patient

import ijfs

mcp = pytest.importorskip("mcp", reason="needs the extra `mcp`")

pytestmark = [pytest.mark.root, pytest.mark.criu]

SERVER = [sys.executable, "-P", "-m", "ijfs.cli", "mcp"]


class Agent:
    """A client with a short way of calling tools."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def content(self, tool: str, **arguments: Any) -> list[Any]:
        """What a tool answers; an error of its as RuntimeError."""
        result = await self.client.call_tool(tool, arguments)
        if result.is_error:
            raise RuntimeError(result.content[0].text)
        return list(result.content)

    async def __call__(self, tool: str, **arguments: Any) -> str:
        """Its first text."""
        return str((await self.content(tool, **arguments))[0].text)


def over_stdio(work: Callable[[Agent], Awaitable[None]]) -> None:
    """One server process, for one client."""

    async def main() -> None:
        parameters = mcp.StdioServerParameters(command=SERVER[0], args=SERVER[1:], env=dict(os.environ))
        async with mcp.Client(parameters) as client:
            await work(Agent(client))

    anyio.run(main)


def test_an_agent_works_goes_back_and_branches(live_env: LiveEnv) -> None:
    async def work(call: Agent) -> None:
        tools = {tool.name for tool in (await call.client.list_tools()).tools}
        assert {"run_code", "run_command", "checkpoint", "undo", "fork", "diff", "kill"} <= tools
        assert await call("start") == "session 'main': it is new"
        first = await call("run_code", code="x = 1\nprint('hi')\nx")
        assert first.startswith("hi\n1\n[checkpoint before it: ")
        assert (await call("run_code", code="x += 41; open('f', 'w').write('made')")).startswith("4\n")
        assert (await call("run_command", command="cat f; exit 3")).startswith("made\n[exit status 3]")
        assert await call("read_file", path="f") == "made"
        assert "before: x += 41" in await call("checkpoints")
        await call("undo", steps=2)
        assert (await call("run_code", code="x")).startswith("1\n")
        with pytest.raises(RuntimeError, match=r"there is no .*/f"):
            await call("read_file", path="f")
        await call("undo")
        await call("undo")
        assert "NameError" in await call("run_code", code="x")
        with pytest.raises(RuntimeError, match="has no checkpoint 50 runs back"):
            await call("undo", steps=50)

    over_stdio(work)


def test_no_undo_goes_further_back_than_it_was_asked_to(live_env: LiveEnv) -> None:
    queue = "import ctypes, os\nq = ctypes.CDLL('librt.so.1').mq_open(b'/q', os.O_CREAT | os.O_RDWR, 0o600, None)"

    async def work(call: Agent) -> None:
        await call("run_code", code="x = 1")
        await call("run_code", code=queue)
        assert "no new checkpoint" in await call("run_code", code="x = 2")  # a message queue is open: no save
        with pytest.raises(RuntimeError, match=r"no checkpoint 1 runs back(.|\n)*2 runs back"):
            await call("undo")
        assert (await call("run_code", code="x")).startswith("2\n")
        await call("undo", steps=3)
        assert (await call("run_code", code="x, 'q' in dir()")).startswith("(1, False)\n")

    over_stdio(work)


def test_a_session_is_found_again_by_the_next_server(live_env: LiveEnv) -> None:
    async def before(call: Agent) -> None:
        await call("run_code", session="again", code="y = 5")
        assert "checkpoint" in await call("checkpoint", session="again", message="five")

    async def after(call: Agent) -> None:
        assert await call("start", session="again") == "session 'again': it is running"
        assert (await call("run_code", session="again", code="y")).startswith("5\n")
        ijfs.Repository.open().box("again").stop(grace_s=0)
        assert "it had ended; it is back as it was" in await call("start", session="again")
        assert (await call("run_code", session="again", code="y")).startswith("5\n")
        assert (await call("fork", session="again", names=["one"])) == "new sessions: one"
        await call("write_file", session="one", path="note", content="hello")
        await call("run_code", session="one", code="y = 6")
        await call("checkpoint", session="one", message="six")
        assert "added" in await call("diff", old="again", new="one")
        assert (await call("run_code", session="again", code="y")).startswith("5\n")
        await call("restore", session="again", snapshot="one")
        assert (await call("run_code", session="again", code="y")).startswith("6\n")
        assert "one: running" in await call("list_sessions")
        await call("kill", session="one")
        assert "one: " not in await call("list_sessions")
        with pytest.raises(RuntimeError, match="there is no program `one`"):
            await call("kill", session="one")

    over_stdio(before)
    over_stdio(after)


def test_pictures_long_output_and_code_out_of_time(live_env: LiveEnv) -> None:
    async def work(call: Agent) -> None:
        async with anyio.create_task_group() as together:  # one of them starts the session, and both find it
            for session in ("main", "main"):
                together.start_soon(partial(call, "run_code", session=session, code="1"))
        picture = "from IPython.display import Image\nImage(b'\\x89PNG drawn', format='png')"
        _, shown = await call.content("run_code", code=picture)
        assert (shown.mime_type, base64.b64decode(shown.data)) == ("image/png", b"\x89PNG drawn")
        long = await call("run_code", code="print('x' * 100_000)")
        assert "characters left out" in long
        assert len(long) < 50_000
        stopped = await call("run_code", code="z = 1\nwhile True: pass", timeout=patient(2))
        assert "KeyboardInterrupt" in stopped
        assert "was interrupted" in stopped
        assert (await call("run_code", code="z")).startswith("1\n")
        assert "it was killed" in await call("run_command", command="sleep 1000", timeout=0.5)

    over_stdio(work)


def test_http_wants_the_token(live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    monkeypatch.setenv("IJFS_MCP_TOKEN", "the-token")
    serving = subprocess.Popen([*SERVER, "--http", "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert serving.stderr is not None
        url = serving.stderr.readline().split()[-1]

        async def main() -> None:
            async with httpx2.AsyncClient() as stranger:
                assert (await stranger.post(url, json={})).status_code == 401
            async with (
                httpx2.AsyncClient(headers={"Authorization": "Bearer the-token"}) as known,
                mcp.Client(streamable_http_client(url, http_client=known)) as client,
            ):
                assert (await Agent(client)("run_code", session="http", code="6 * 7")).startswith("42")

        anyio.run(main)
    finally:
        serving.terminate()
        serving.communicate()


def test_old_checkpoints_before_runs_are_thinned_and_those_asked_for_stay(
    live_env: LiveEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ijfs.mcp import sessions

    monkeypatch.setattr(sessions, "MOST_UNDO", 2)
    repo = ijfs.Repository.open(tmp_path / "thin", create=True)
    with repo.engine() as engine:
        head: list[bytes] = []
        for message in ("before: a", "mine", "before: b", "before: c", "before: d"):
            with engine.begin(head) as writer:
                head = [writer.commit(message=message, branch="main").id]
    sessions.thin(repo, head[0].hex())
    assert [snapshot.message for snapshot in repo.snapshots()] == ["before: d", "before: c", "mine"]
    with repo.engine() as engine:
        for message in ("before: e", "before: f", "before: g"):  # a copy's
            with engine.begin(head) as writer:
                head = [writer.commit(message=message, branch="copy", meta={"spec": {"name": "copy"}}).id]
    sessions.thin(repo, head[0].hex())
    left = {snapshot.message for snapshot in repo.snapshots()}
    assert left == {"before: g", "before: f", "before: d", "before: c", "mine"}
