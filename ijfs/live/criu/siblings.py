"""The order of a process's children; called by mending.py, on pstree.img on its way to `criu restore`.

CRIU forks siblings in the opposite order to that of its image, so every second copy of a program has them turned round.
That matters to CRIU itself: a process that has /dev/tty open can only be saved if it comes, in the order of the process
tree, before whoever else has that terminal (sandbox/terminal_server.c is after its program).
"""

from __future__ import annotations

from collections.abc import Iterator

from ijfs.live.criu.image_format import HEAD, parse_parents, parse_tasks


def in_order(name: str, data: bytes) -> bytes:
    """The image with siblings turned round, parents before children as they have to be. CorruptError."""
    records = dict(parse_tasks(name, data))
    children: dict[int, list[int]] = {}
    for pid, parent in parse_parents(name, data).items():
        children.setdefault(parent, []).append(pid)
    order = list(_below(children, 0))
    if sorted(order) != sorted(records):  # what nobody knows is left as it is
        return data
    return data[:HEAD] + b"".join(records[pid] for pid in order)


def _below(children: dict[int, list[int]], root: int) -> Iterator[int]:
    """All descendants, each before its own; siblings from the last to the first."""
    waiting = list(children.get(root, ()))
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, ())
