"""`ijfs top`: once, and its screen driven by keys, over a program that really runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calls import Ijfs
from json_page import check
from textual.pilot import Pilot
from textual.widgets import DataTable, OptionList
from waiting import eventually, patient

from ijfs.cli.top.screen import TopScreen
from ijfs.live.client import api as client
from ijfs_engine import Repository

LOOP = (
    "import time\nx = bytearray(30 << 20)\nx[:] = b'7' * len(x)\nprint('up', flush=True)\nwhile True: time.sleep(0.1)"
)


async def until(pilot: Pilot[None], so: Callable[[], bool]) -> None:
    """Wait for a state of the screen or the repository."""
    async with asyncio.timeout(patient(60)):
        while not so():
            await pilot.pause(0.05)


def tags(repo: Path) -> set[str]:
    with Repository.open(repo) as store:
        return set(store.refs.tags())


def cell(screen: TopScreen, row: int, column: int) -> str:
    return str(screen.query_one("#programs", DataTable).get_cell_at((row, column)))  # type: ignore[call-overload]


def tree(screen: TopScreen) -> str:
    shown = screen.query_one("#tree", OptionList)
    return "\n".join(str(shown.get_option_at_index(n).prompt) for n in range(shown.option_count))


async def use(repo: Path) -> None:
    screen = TopScreen(repo, 0.2)
    names = lambda: [program.info.name for program in screen._programs]  # noqa: E731
    async with screen.run_test(size=(110, 40)) as pilot:
        await until(pilot, lambda: names() == ["worker"] and "MB" in cell(screen, 0, 2))

        await pilot.press("s", *"loaded", "enter")
        await until(pilot, lambda: "loaded" in tree(screen))
        first = client.describe(repo, "worker").snapshot

        await pilot.press("f")
        await until(pilot, lambda: names() == ["worker", "worker-1"])
        forked_from = client.describe(repo, "worker").snapshot
        await until(pilot, lambda: str(forked_from)[:8] in tree(screen))

        await pilot.press("down", "x", "n")
        assert client.is_running(repo, "worker-1")
        await pilot.press("x", "y")
        await until(pilot, lambda: names() == ["worker"])

        await pilot.press("z")
        await until(pilot, lambda: "before going back" in tree(screen))
        await until(pilot, lambda: client.describe(repo, "worker").snapshot == forked_from)

        screen.query_one("#tree").focus()
        await pilot.press("home", "t", *"kept", "enter")
        await until(pilot, lambda: tags(repo) == {"kept"})
        await pilot.press("enter", "y")
        await until(pilot, lambda: client.describe(repo, "worker").snapshot == first)
        await pilot.press("q")


@pytest.mark.root
@pytest.mark.criu
def test_keys_save_fork_stop_undo_tag_and_go_back(ijfs: Ijfs, live: Path) -> None:
    assert ijfs("run", "-d", "--name", "worker", "--", "python3", "-uc", LOOP).code == 0
    asyncio.run(use(live))


@pytest.mark.root
@pytest.mark.criu
def test_once_says_what_each_takes(ijfs: Ijfs, live: Path) -> None:
    """Memory is that of all processes, what they share once."""
    two = f"import os\nos.fork()\n{LOOP}"
    assert ijfs("run", "-d", "--name", "pair", "--", "python3", "-uc", two).code == 0
    taken: dict[str, Any] = {}

    def both_are_full() -> bool:
        (one,) = ijfs("top", "--json").json["programs"]
        taken.update(one)
        return taken["memory"] >= 60 << 20 and taken["processes"] >= 2

    assert eventually(both_are_full, 60), taken
    assert taken["instance"]["name"] == "pair"
    assert taken["memory"] < 100 << 20
    assert taken["processor"] >= 0
    check(ijfs("top", "--json").json, "top")
    assert "pair" in ijfs("top").out
    assert ijfs("top", "-q").out.split() == ["pair"]


def test_nothing_live_is_said(ijfs: Ijfs, repo: Path) -> None:
    assert "nothing is live" in ijfs("top").out
    assert ijfs("top", "--json").json["programs"] == []
