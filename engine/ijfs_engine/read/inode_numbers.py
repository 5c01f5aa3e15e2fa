"""Inode numbers of the caller's choice for what an export makes, where the filesystem takes a wish (ext4's inode_goal).

Made by who calls export_tree, asked by export.py and small_files.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class InodeNumbers:
    """`goal`: a file in which the filesystem is told the number of the next new inode. `of`: the number for a path
    below the target; 0: any."""

    def __init__(self, goal: int, of: Callable[[bytes], int]) -> None:
        self.goal = goal
        self.of = of
        self.turn = threading.Lock()
        """Held from a wish to the end of what is made by it: there is one wish at a time for all of the filesystem."""

    def wish(self, path: bytes) -> None:
        """What is made next is this. OSError."""
        os.pwrite(self.goal, b"%d" % self.of(path), 0)
