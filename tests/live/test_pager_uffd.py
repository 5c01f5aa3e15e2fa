"""What the running kernel answers to each userfaultfd operation: the facts that the pager is built on."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from pagerlab import PAGE
from userfaultfd import open_userfaultfd

from ijfs.live.pager.filling import Filler
from ijfs.live.pager.plan import IN, MISSING, POISONED, ZERO
from ijfs.live.pager.uffd import RangeOutcome, Uffd

pytestmark = pytest.mark.root

PAGES = 16


class Region:
    """Sixteen missing pages of this process, and sixteen pages to fill them from."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.source = mmap.mmap(-1, PAGES * PAGE)
        self.source[:] = b"".join(bytes([at]) * PAGE for at in range(1, PAGES + 1))
        self.data = ctypes.addressof(ctypes.c_char.from_buffer(self.source))
        self.uffd = Uffd(open_userfaultfd(0))
        self.uffd.register(self.start, PAGES * PAGE)
        self.states = bytearray(PAGES)
        self.filler = Filler(self.uffd.fd, self.states)

    def fill(self, first: int, count: int, *, settled: bool = True) -> RangeOutcome:
        data = self.data + first * PAGE
        return RangeOutcome(self.filler.fill([(self.at(first), first, count, data)], settled))

    def at(self, page: int) -> int:
        return self.start + page * PAGE


@pytest.fixture
def region() -> Iterator[Region]:
    made = Region()
    yield made
    made.uffd.close()


def test_missing_pages_are_filled_at_once(region: Region) -> None:
    assert region.fill(0, PAGES) is RangeOutcome.DONE
    assert region.memory[:] == region.source[:]
    assert region.states == bytes([IN]) * PAGES
    assert not region.filler.any_missing()


def test_a_page_that_is_there_stays_as_it_is(region: Region) -> None:
    region.uffd.zero(region.at(5), PAGE)
    assert region.fill(0, PAGES) is RangeOutcome.DONE
    assert region.memory[5 * PAGE] == 0
    assert region.memory[6 * PAGE :] == region.source[6 * PAGE :]
    assert region.states == bytes([IN]) * PAGES


def test_a_page_that_is_not_missing_is_left_alone(region: Region) -> None:
    region.states[3] = ZERO
    region.filler.zero(7, 2)
    assert region.fill(0, PAGES) is RangeOutcome.DONE
    assert region.filler.counts() == (0, PAGES - 3, 3, 0)
    region.uffd.unregister(region.start, PAGES * PAGE)
    assert [region.memory[page * PAGE] for page in (2, 3, 4, 7, 8, 9)] == [3, 0, 5, 0, 0, 10]


def test_what_is_not_registered_is_given_up_only_when_all_is_settled(region: Region) -> None:
    assert region.uffd.unregister(region.at(5), 11 * PAGE)
    assert region.fill(0, PAGES, settled=False) is RangeOutcome.NOT_MAPPED
    assert region.states == bytes(PAGES)
    assert region.fill(0, PAGES) is RangeOutcome.DONE
    assert region.states == bytes([IN]) * 5 + bytes([ZERO]) * 11
    assert region.memory[: 6 * PAGE] == region.source[: 5 * PAGE] + bytes(PAGE)


def test_a_fill_gives_way_to_who_wants_the_lock_alone(region: Region) -> None:
    region.filler.share()
    other = threading.Thread(target=region.filler.seize)
    other.start()
    while region.fill(0, 1) is RangeOutcome.DONE:
        region.states[0] = MISSING
    assert region.fill(1, 1) is RangeOutcome.INTERRUPTED
    region.filler.release()
    other.join()


def test_stretches_are_filled_together_but_for_what_is_not_mapped_yet(region: Region) -> None:
    region.uffd.unregister(region.at(4), 2 * PAGE)
    stretches = [(region.at(at), at, 2, region.data + at * PAGE) for at in (0, 4, 8)]
    assert region.filler.fill(stretches, False) == RangeOutcome.NOT_MAPPED
    assert [at for at, state in enumerate(region.states) if state == IN] == [0, 1, 8, 9]
    with pytest.raises(ValueError, match="no 2 pages"):
        region.filler.fill([(region.at(0), PAGES - 1, 2, region.data)], True)


def test_threads_that_fill_the_same_pages_fill_each_once(region: Region) -> None:
    def fill() -> None:
        for first in range(PAGES):
            while region.filler.any_missing():
                region.filler.share()
                outcome = region.fill(first, PAGES - first)
                region.filler.release()
                if outcome is RangeOutcome.DONE:
                    break

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    while region.filler.any_missing():
        region.filler.seize()
        region.filler.release()
    for thread in threads:
        thread.join()
    assert region.memory[:] == region.source[:]


def test_unregistering_what_is_not_mapped_is_no_error(region: Region) -> None:
    assert not region.uffd.unregister(1 << 40, PAGE)


def test_a_poisoned_page_kills_who_touches_it_and_nobody_else(region: Region) -> None:
    assert region.fill(0, 1) is RangeOutcome.DONE
    assert region.filler.fill([(region.at(1), 1, 1, 0)], True) == RangeOutcome.DONE
    assert region.states[:3] == bytes([IN, POISONED, MISSING])
    statuses = []
    for page in (0, 1):
        child = os.fork()
        if child == 0:
            faulthandler.disable()
            os._exit(region.memory[page * PAGE])
        statuses.append(os.waitpid(child, 0)[1])
    assert statuses == [1 << 8, signal.SIGBUS]


def test_an_address_space_that_ended_says_so(region: Region) -> None:
    ours, theirs = os.pipe()
    ready, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        other = Region()
        os.set_inheritable(other.uffd.fd, True)
        os.write(theirs, f"{other.uffd.fd} {other.start}".encode())
        os.read(ready, 1)
        os._exit(0)
    fd, start = map(int, os.read(ours, 100).split())
    pidfd = os.pidfd_open(child)
    theirs_here = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, fd, 0)  # pidfd_getfd
    os.write(go_on, b"x")
    os.waitpid(child, 0)
    uffd = Uffd(theirs_here)
    assert Filler(theirs_here, bytearray(1)).fill([(start, 0, 1, region.data)], True) == RangeOutcome.GONE
    assert uffd.zero(start, PAGE) == (0, RangeOutcome.GONE)
    uffd.wake(PAGE, 1 << 40)
    uffd.close()
    for each in (ours, theirs, ready, go_on, pidfd):
        os.close(each)
