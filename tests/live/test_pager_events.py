"""A real pager process pages a program that forks, moves, drops and unmaps memory. Kernel real, CRIU absent."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from pagerlab import BASE, PAGE, Program, write_images
from waiting import eventually, patient

from ijfs.live.model.records import Process
from ijfs.live.pager.account import Progress, create, progress_of, read
from ijfs.live.pager.api import Pager, PagerProcess
from ijfs.live.pager.messages import Begin, Source
from ijfs.live.process import procfs
from ijfs_engine.errors import TargetDiedError

pytestmark = pytest.mark.root

PAGES = 2048
LENGTH = PAGES * PAGE
SECOND = BASE + 2 * LENGTH
MAPPINGS = [(BASE, BASE + LENGTH + 64 * PAGE), (SECOND, SECOND + LENGTH)]
STORED = [(BASE, PAGES), (SECOND, 700), (SECOND + 800 * PAGE, PAGES - 800)]

Start = Callable[..., tuple[Pager, Program]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a pager and a program with the regions above; both are gone after the test."""
    with ExitStack() as stack:

        def start_one(
            delay_s: float = 0.0, *, madv: int = 0, rest_after_s: float = 0.0, on_demand: bool = False, **options: Any
        ) -> tuple[Pager, Program]:
            images = write_images(tmp_path / "images", MAPPINGS, STORED, madv=madv)
            source = Source(images=str(images), delay_s=delay_s, rest_after_s=rest_after_s, on_demand=on_demand)
            pager = stack.enter_context(Pager(tmp_path, source, **options))
            program = stack.enter_context(Program(tmp_path, MAPPINGS))
            pager.wait_resumed(10)
            return pager, program

        yield start_one


STORED_PAGES = sum(pages for _, pages in STORED)


def all_right(program: Program) -> bool:
    answers = [program.run(f"wrong({vaddr}, {pages})") for vaddr, pages in STORED]
    answers.append(program.run(f"not_zero({BASE + LENGTH}, 64)"))
    answers.append(program.run(f"not_zero({SECOND + 700 * PAGE}, 100)"))
    return answers == [[], [], [], [], []]


def test_every_page_comes_in_once_and_is_right(start: Start) -> None:
    pager, program = start()
    status = pager.wait(20)
    assert (status.pages, status.pages_in, status.zero) == (STORED_PAGES, STORED_PAGES, 0)
    assert all_right(program)


def test_memory_is_right_while_it_is_still_coming_in(start: Start) -> None:
    pager, program = start(0.005)
    assert all_right(program)
    assert pager.wait(20).complete


def test_what_nobody_asks_for_waits_where_that_is_wished_and_faults_do_not(start: Start) -> None:
    pager, program = start(rest_after_s=patient(600))
    assert program.run(f"wrong({SECOND}, 1)") == []
    assert not pager.status.complete
    assert all_right(program)
    assert pager.wait(20).complete


def test_what_waited_comes_by_itself_later(start: Start) -> None:
    rest_after_s = 0.5
    began = time.monotonic()
    pager, program = start(rest_after_s=rest_after_s)
    assert pager.wait(20).complete
    assert time.monotonic() - began > rest_after_s
    assert all_right(program)


def test_on_demand_only_what_is_touched_comes_until_the_keeper_hurries(start: Start) -> None:
    """Also in a pager that takes the place of one that died before, and after."""
    pager, program = start(on_demand=True)
    assert program.run(f"wrong({SECOND}, 1)") == []
    os.kill(pager.pid, signal.SIGKILL)
    assert program.run(f"wrong({SECOND + 500 * PAGE}, 1)") == []
    assert program.run(f"wrong({BASE}, 1)") == []
    assert eventually(lambda: pager.status.pages_in >= 3)
    assert pager.status.pages_in <= 6 * 16
    pager.hurry()
    assert pager.wait(patient(20)).pages_in == STORED_PAGES
    assert all_right(program)


def test_what_is_dropped_or_unmapped_never_comes_back(start: Start) -> None:
    pager, program = start(0.02)
    assert program.run(f"advise({BASE + 100 * PAGE}, {500 * PAGE})") == 0
    assert program.run(f"unmap({SECOND + 300 * PAGE}, {100 * PAGE})") == 0
    assert program.run(f"map_at({SECOND + 300 * PAGE}, {100 * PAGE})")
    pager.wait(20)
    assert program.run(f"wrong({BASE}, 100)") == []
    assert program.run(f"not_zero({BASE + 100 * PAGE}, 500)") == []
    assert program.run(f"wrong({BASE + 600 * PAGE}, {PAGES - 600})") == []
    assert program.run(f"wrong({SECOND}, 300)") == []
    assert program.run(f"not_zero({SECOND + 300 * PAGE}, 100)") == []
    assert program.run(f"wrong({SECOND + 400 * PAGE}, 300)") == []


def test_what_moves_keeps_its_bytes(start: Start) -> None:
    pager, program = start(0.02)
    there = BASE + 16 * LENGTH
    assert program.run(f"remap({BASE + 512 * PAGE}, {there}, {512 * PAGE})") == there
    assert program.run(f"remap({there + 100 * PAGE}, {SECOND + 800 * PAGE}, {100 * PAGE})") == SECOND + 800 * PAGE
    assert program.run(f"wrong({there}, 100, {BASE + 512 * PAGE})") == []
    pager.wait(20)
    assert program.run(f"wrong({SECOND + 800 * PAGE}, 100, {BASE + 612 * PAGE})") == []
    assert program.run(f"wrong({there + 200 * PAGE}, 312, {BASE + 712 * PAGE})") == []
    assert program.run(f"wrong({SECOND + 900 * PAGE}, {PAGES - 900})") == []


def test_mappings_split_by_mprotect_are_filled_on_both_sides(start: Start) -> None:
    pager, program = start(0.02)
    for page in range(7, 600, 50):
        assert program.run(f"protect({BASE + page * PAGE}, {PAGE}, 1)") == 0
    pager.wait(20)
    assert all_right(program)


def test_forked_children_see_what_the_parent_had(start: Start) -> None:
    pager, program = start(0.01)
    whole = f"[wrong({BASE}, {PAGES}), wrong({SECOND}, 700)]"
    assert program.run(f"forked('{whole}')") == [[], []]
    assert program.run(f"advise({BASE}, {LENGTH})") == 0
    nested = f'forked("[not_zero({BASE}, 64), wrong({SECOND}, 700)]")'
    assert program.run(f"forked({nested!r})") == [[], []]
    pager.wait(20)
    assert program.run(f"wrong({SECOND}, 700)") == []


def test_memory_that_is_wiped_on_fork_is_zero_in_the_child(start: Start) -> None:
    pager, program = start(0.02, madv=1 << 18)
    assert program.run(f"advise({BASE}, {LENGTH}, 18)") == 0
    assert program.run(f"advise({SECOND}, {LENGTH}, 18)") == 0
    assert program.run(f"forked('[not_zero({BASE}, {PAGES}), not_zero({SECOND}, {PAGES})]')") == [[], []]
    pager.wait(20)
    assert all_right(program)


def test_a_pager_leaves_when_its_program_dies(start: Start) -> None:
    pager, program = start(0.05)
    program.process.kill()
    program.process.wait()
    assert pager.wait(10).complete


def test_a_killed_pager_is_replaced_and_nothing_is_lost(start: Start) -> None:
    pager, program = start(0.02)
    there = BASE + 16 * LENGTH
    for step in range(4):
        line = [
            f"remap({BASE + 512 * PAGE}, {there}, {512 * PAGE})",
            f"advise({BASE + 1100 * PAGE}, {100 * PAGE})",
            f"unmap({SECOND + 300 * PAGE}, {100 * PAGE})",
            f"forked('wrong({there}, 64, {BASE + 512 * PAGE})')",
        ][step]
        program.run(line)
        kill(pager)
        assert program.run(f"wrong({BASE + step * 64 * PAGE}, 16)") == []
    status = pager.wait(30)
    assert status.replaced >= 2
    assert program.run(f"wrong({BASE}, 512)") == []
    assert program.run(f"wrong({there}, 512, {BASE + 512 * PAGE})") == []
    assert program.run(f"wrong({BASE + 1024 * PAGE}, 76)") == []
    assert program.run(f"not_zero({BASE + 1100 * PAGE}, 100)") == []
    assert program.run(f"wrong({BASE + 1200 * PAGE}, {PAGES - 1200})") == []
    assert program.run(f"wrong({SECOND + 400 * PAGE}, 300)") == []


@pytest.mark.parametrize("which", ["pager", "worker"])
def test_a_thread_that_waits_for_a_page_survives_the_pager(start: Start, which: str) -> None:
    pager, program = start(0.3)
    program.send(f"wrong({SECOND + 1000 * PAGE}, 1)")  # blocks in a fault: the bytes take 0.3 s
    time.sleep(0.1)
    os.kill(pager.pid if which == "pager" else worker_of(pager), signal.SIGKILL)
    assert program._answer() == []
    assert pager.status.replaced == int(which == "pager")


def test_bytes_that_cannot_be_had_raise_sigbus_on_their_pages_only(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pager, program = start(0.02)
    last = SECOND + (PAGES - 1) * PAGE
    os.truncate(tmp_path / "images" / "pages-1.img", (STORED_PAGES - 1) * PAGE)
    status = pager.wait(20)
    assert status.poisoned == 1
    assert status.damage == "4 KiB of it could not be read from the repository"
    account = read(tmp_path)
    assert account is not None
    assert (account.complete, account.poisoned, account.share, account.damage) == (True, 1, 1.0, status.damage)
    assert program.run(f"wrong({SECOND + 800 * PAGE}, {PAGES - 801})") == []
    assert program.run(f"forked('wrong({last}, 1)')") == f"status {signal.SIGBUS.value}"
    assert program.run(f"wrong({BASE}, {PAGES})") == []
    (told,) = [record.message for record in caplog.records if "cannot be had" in record.message]
    assert f"at {last:#x}" in told
    assert "pages-1.img" in told


def test_a_keeper_that_dies_leaves_the_program_paged(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", MAPPINGS, STORED)
    ours, theirs = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        keeper_pager = Pager(tmp_path, Source(images=str(images), delay_s=0.05))
        os.write(theirs, str(keeper_pager.pid).encode())
        time.sleep(60)
        os._exit(1)
    pager = int(os.read(ours, 20))
    with Program(tmp_path, MAPPINGS) as program:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        assert all_right(program)
        wait_until_gone(pager)
        assert all_right(program)
    assert progress_of(tmp_path, Process(pager, 0)) == Progress(1.0, complete=True, damage="")
    os.close(ours)
    os.close(theirs)


def test_a_pager_killed_after_its_keeper_is_no_pager_that_has_finished(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", MAPPINGS, STORED)
    ours, theirs = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        keeper_pager = Pager(tmp_path, Source(images=str(images), delay_s=30))
        os.write(theirs, str(keeper_pager.pid).encode())
        time.sleep(60)
        os._exit(1)
    pager = procfs.identify(int(os.read(ours, 20)))
    assert pager is not None
    with Program(tmp_path, MAPPINGS):
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        progress = progress_of(tmp_path, pager)
        assert progress.share < 1
        assert not progress.complete
        assert not progress.damage
        os.kill(pager.pid, signal.SIGKILL)
        wait_until_gone(pager.pid)
        progress = progress_of(tmp_path, pager)
        assert progress.share < 1
        assert not progress.complete
        assert "zeros" in progress.damage
    os.close(ours)
    os.close(theirs)


def test_a_pager_whose_keeper_dies_while_it_hands_over_ends(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", MAPPINGS, STORED)
    account = create(tmp_path)
    successor = PagerProcess.started()
    successor.channel.send(Begin(source=Source(images=str(images)), account=str(account), adopt=True))
    successor.channel.close()
    assert eventually(lambda: successor.process.poll() is not None, 20)


def test_who_waits_for_memory_is_told_when_it_is_not_brought_any_more(start: Start) -> None:
    pager, _ = start(5.0)
    waiting = ThreadPoolExecutor(1)
    answer = waiting.submit(pager.wait, 60)
    pager.close()
    with pytest.raises(TargetDiedError, match="not brought in any more"):
        answer.result(10)
    waiting.shutdown()


def wait_until_gone(pid: int) -> None:
    assert eventually(lambda: not Path(f"/proc/{pid}").exists(), 20), "the pager did not leave"


def worker_of(pager: Pager) -> int:
    """The process that does the paging; the pager itself only watches over it."""
    return int(Path(f"/proc/{pager.pid}/task/{pager.pid}/children").read_text().split()[0])


def kill(pager: Pager) -> None:
    """Kill the pager, and wait until another is in its place, unless all was in already."""
    before = pager.status.replaced
    os.kill(pager.pid, signal.SIGKILL)
    while pager.status.replaced == before and not pager.status.complete:
        time.sleep(0.005)


REST_S = 1.0
"""What nobody touches stays away for so long: the pager has something to do when it is killed."""


@pytest.mark.parametrize("which", ["pager", "worker"])
@pytest.mark.parametrize("seed", range(2))
def test_no_moment_to_kill_the_pager_is_a_bad_one(start: Start, seed: int, which: str) -> None:
    """Memory is moved, dropped and touched at random, the pager is killed at random; a model says what is right."""
    pager, program = start(0.02, rest_after_s=REST_S)
    choose = random.Random(seed)
    blocks: dict[int, int | None] = {BASE + at * BLOCK: BASE + at * BLOCK for at in range(LENGTH // BLOCK)}
    free = [BASE + 64 * LENGTH + at * BLOCK for at in range(100)]
    kills = {0, *choose.sample(range(1, 60), 3)}  # of five within ten seconds it would be given up
    deaths, began_complete = 0, pager.status.complete
    for number in range(120):
        if number in kills and not pager.status.complete:
            with suppress(ProcessLookupError, FileNotFoundError, IndexError):  # one that is just being replaced
                os.kill(pager.pid if which == "pager" else worker_of(pager), signal.SIGKILL)
                deaths += 1
        where = choose.choice(list(blocks))
        action = choose.choice(["touch", "touch", "move", "move", "drop", "fork", "unmap"])
        if action == "move":
            there = free.pop()
            assert program.run(f"remap({where}, {there}, {BLOCK})") == there
            blocks[there] = blocks.pop(where)
            free.insert(0, where)
        elif action == "drop":
            assert program.run(f"advise({where}, {BLOCK})") == 0
            blocks[where] = None
        elif action == "unmap":
            assert program.run(f"unmap({where}, {BLOCK})") == 0
            del blocks[where]
            free.insert(0, where)
        else:
            question = held(where, blocks[where])
            assert program.run(question if action == "touch" else f"forked({question!r})") == []
    assert pager.wait(patient(60)).replaced <= deaths
    assert deaths > 0 or began_complete
    assert [program.run(held(where, image)) for where, image in blocks.items()] == [[]] * len(blocks)


BLOCK = 32 * PAGE


def held(where: int, image: int | None) -> str:
    return f"not_zero({where}, 32)" if image is None else f"wrong({where}, 32, {image})"
