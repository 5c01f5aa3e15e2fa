"""What the pager's threads hand one another: pages of one saved process that are read together.

Made by `scheduler`, filled by `fetch`, copied by `space`, shared among siblings by `shared`.
"""

from __future__ import annotations

from ijfs.live.pager.plan import ProcessMemory

PageRange = tuple[int, int]
"""(first page number, pages)"""


class Task:
    """Pages of one saved process that are read together. One thread has it at a time."""

    __slots__ = ("bad", "block", "memory", "near", "ranges", "reason", "urgent", "zeros")

    def __init__(
        self, memory: ProcessMemory, ranges: list[PageRange], *, urgent: bool = False, near: bool = False
    ) -> None:
        self.memory = memory
        self.ranges = ranges
        """The bytes of one follow those of the one before."""
        self.zeros: list[PageRange] = []
        """Those of the pages that hold only zeros: not to be copied."""
        self.urgent = urgent
        """A fault waits for it."""
        self.near = near
        """It follows faults that went from one page range to the next."""
        self.block: int | None = None
        """The number of this block in the working set; None for what is in none."""
        self.bad: set[int] = set()
        """Page numbers that could not be had."""
        self.reason = ""

    @property
    def pages(self) -> int:
        return sum(count for _, count in self.ranges)
