"""What a replacement pager must know, in shared memory that outlives the pager: one ledger per address space.

The kernel forgets an event the moment it is read, and lets the program go on. So `read_events` has the kernel write
each message straight into the ledger (a memfd that the guardian also holds): a pager that is killed at any instruction
leaves behind either an unread event or a readable message, and its successor finishes what it had begun.

    offset  bytes  content
         0      8  "ijfspgr1"
         8      4  pid of the process (as CRIU numbers it)
        12      4  0
        16      8  its lazy pages (number of state bytes)
        24      8  moves that count
        64    512  inbox: 16 messages of 32 bytes, zero where empty
      4096  pages  one state byte per page (`plan`), padded to whole pages
         …  24 ea. moves, in order: source, destination, length
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final

from ijfs.live.pager.plan import Plan, ProcessMemory
from ijfs.live.pager.uffd import EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP, MESSAGE
from ijfs_engine import PAGE

_MAGIC: Final = b"ijfspgr1"
_HEAD: Final = struct.Struct("<8sIIQQ")
_MOVES_AT: Final = 24
_INBOX: Final = 64
_SLOTS: Final = 16
_MOVE: Final = struct.Struct("<QQQ")
_EMPTY: Final = bytes(MESSAGE.size)


class Ledger:
    """The shared memory of one address space; `fd` is the memfd that a guardian keeps a duplicate of."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._head = mmap.mmap(fd, PAGE)
        magic, self.pid, _, self.pages, self._moves = _HEAD.unpack_from(self._head)
        if magic != _MAGIC:
            raise ValueError("this is no pager's ledger")
        self._moves_offset = PAGE + -(-self.pages // PAGE) * PAGE
        self.states: mmap.mmap | bytearray = mmap.mmap(fd, self.pages, offset=PAGE) if self.pages else bytearray()
        self._inbox = memoryview(self._head)[_INBOX : _INBOX + _SLOTS * MESSAGE.size]

    @classmethod
    def create(cls, pid: int, pages: int) -> Ledger:
        """A ledger in which every page is missing and nothing has moved."""
        fd = os.memfd_create("ijfs-pager-ledger", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGE + -(-pages // PAGE) * PAGE)
        os.pwrite(fd, _HEAD.pack(_MAGIC, pid, 0, pages, 0), 0)
        return cls(fd)

    def fork(self) -> Ledger:
        """A copy for a forked child: the same states and moves, an empty inbox."""
        child = Ledger.create(self.pid, self.pages)
        child.states[0 : self.pages] = bytes(self.states[0 : self.pages])
        for move in self.moves():
            child._append_move(move)
        return child

    def close(self) -> None:
        self._inbox.release()
        self._head.close()
        if isinstance(self.states, mmap.mmap):
            self.states.close()
        os.close(self.fd)

    def read_events(self, uffd: int) -> int:
        """Read up to 16 messages of this userfaultfd into the inbox; how many there are. 0: none waits."""
        with contextlib.suppress(BlockingIOError):
            return os.readv(uffd, [self._inbox]) // MESSAGE.size
        return 0

    def inbox(self) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
        """The messages that were read and not settled yet: (slot, (event, a, b, c))."""
        for slot in range(_SLOTS):
            message = MESSAGE.unpack_from(self._inbox, slot * MESSAGE.size)
            if message[0]:
                yield slot, message

    def settle(self, slot: int) -> None:
        """This message was dealt with. Each is settled before the next is begun: only one can be seen twice."""
        self._inbox[slot * MESSAGE.size : (slot + 1) * MESSAGE.size] = _EMPTY

    def apply(self, plan: Plan, event: int, a: int, b: int, c: int) -> None:
        """Bring the plan and the shared state in line with a mapping event. Doing it twice does no harm.

        A move is remembered before it is made. One that equals the last remembered is that same event, seen again
        after a crash: moving the same pages there a second time takes another move, back, in between.
        """
        if event in (EVENT_REMOVE, EVENT_UNMAP):
            plan.drop(a, b)
        elif event == EVENT_REMAP and plan.overlaps(a, a + c):
            if self._last_move() != (a, b, c):
                self._append_move((a, b, c))
            plan.move(a, b, c)

    def restore(self, memory: ProcessMemory) -> Plan:
        """The plan as the predecessor left it."""
        plan = Plan(memory, self.states)
        for source, destination, length in self.moves():
            plan.move(source, destination, length)
        return plan

    def moves(self) -> Iterator[tuple[int, int, int]]:
        data = os.pread(self.fd, self._moves * _MOVE.size, self._moves_offset)
        return (tuple(move) for move in _MOVE.iter_unpack(data))

    def _last_move(self) -> tuple[int, int, int] | None:
        if not self._moves:
            return None
        at = self._moves_offset + (self._moves - 1) * _MOVE.size
        source, destination, length = _MOVE.unpack(os.pread(self.fd, _MOVE.size, at))
        return source, destination, length

    def _append_move(self, move: tuple[int, int, int]) -> None:
        os.pwrite(self.fd, _MOVE.pack(*move), self._moves_offset + self._moves * _MOVE.size)
        self._moves += 1
        struct.pack_into("<Q", self._head, _MOVES_AT, self._moves)
