"""Datagrams that a program has got and not read, which CRIU leaves out of its images; asked by checkpoint/freeze.py.

The program stands still while this is read: two files of /proc, a tenth of a millisecond.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_MOST = 5


def unread_datagrams(pid: int) -> Iterator[str]:
    """A sentence for each UDP socket in the network of `pid` that has something to read."""
    found = [port for name in ("udp", "udp6") for port in _waiting(Path(f"/proc/{pid}/net/{name}"))]
    for port in found[:_MOST]:
        yield f"datagrams that a UDP socket (port {port}) had not read are not saved: a copy does not get them"


def _waiting(table: Path) -> Iterator[int]:
    """The ports with a receive queue that is not empty (proc_pid_net(5): tx_queue:rx_queue, in hexadecimal)."""
    with contextlib.suppress(OSError):
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[4].partition(":")[2], 16):
                yield int(fields[1].rpartition(":")[2], 16)
