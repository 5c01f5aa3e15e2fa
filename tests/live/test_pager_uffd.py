"""What the running kernel answers to each userfaultfd operation: the facts that the pager is built on."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
from collections.abc import Iterator

import pytest
from pagerlab import PAGE

from ijfs.live.pager.uffd import Outcome, Uffd, open_userfaultfd

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

    def at(self, page: int) -> int:
        return self.start + page * PAGE


@pytest.fixture
def region() -> Iterator[Region]:
    made = Region()
    yield made
    made.uffd.close()


def test_a_copy_fills_missing_pages_at_once(region: Region) -> None:
    assert region.uffd.copy(region.at(0), region.data, PAGES * PAGE) == (PAGES * PAGE, Outcome.DONE)
    assert region.memory[:] == region.source[:]


def test_a_copy_stops_before_a_page_that_is_there(region: Region) -> None:
    region.uffd.zero(region.at(5), PAGE)
    assert region.uffd.copy(region.at(0), region.data, PAGES * PAGE) == (5 * PAGE, Outcome.DONE)
    assert region.uffd.copy(region.at(5), region.data, PAGE) == (0, Outcome.EXISTS)
    assert region.memory[5 * PAGE] == 0


def test_a_copy_across_the_end_of_the_registered_range_does_nothing(region: Region) -> None:
    assert region.uffd.unregister(region.at(8), 8 * PAGE)
    assert region.uffd.copy(region.at(0), region.data, PAGES * PAGE) == (0, Outcome.NOT_MAPPED)
    assert region.uffd.copy(region.at(0), region.data, 8 * PAGE) == (8 * PAGE, Outcome.DONE)
    assert region.memory[8 * PAGE] == 0


def test_unregistering_what_is_not_mapped_is_no_error(region: Region) -> None:
    assert not region.uffd.unregister(1 << 40, PAGE)


def test_a_poisoned_page_kills_who_touches_it_and_nobody_else(region: Region) -> None:
    region.uffd.copy(region.at(0), region.data, PAGE)
    assert region.uffd.poison(region.at(1), PAGE) == (PAGE, Outcome.DONE)
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
    assert uffd.copy(start, region.data, PAGE) == (0, Outcome.GONE)
    assert uffd.zero(start, PAGE) == (0, Outcome.GONE)
    uffd.wake(PAGE, 1 << 40)
    uffd.close()
    for each in (ours, theirs, ready, go_on, pidfd):
        os.close(each)
