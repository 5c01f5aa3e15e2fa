"""What a save has taken that cannot be restored, known from its images alone: a table of what was seen to fail.

Called by keeper/save.py after the thaw, for every save; it takes a millisecond, and what it finds the save says, with
exit code 12. What is not in the table may fail all the same: `ijfs save --verify` tries it. Whatever CRIU refuses at
the dump is not here.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ijfs.live.criu import reservations
from ijfs.live.criu.image_format import parse_areas, parse_bound_addresses, parse_unsent_bytes
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.silence import Silence
from ijfs_engine.errors import CorruptError


class Taken(NamedTuple):
    """What a save took: the small images by name. And what it did not take: network devices, with their addresses."""

    images: Mapping[str, bytes]
    lost: Mapping[str, Sequence[bytes]]


def objections(taken: Taken) -> list[str]:
    """Why it cannot be restored, a sentence each; none where nothing is known."""
    try:
        return [text for check in _TABLE for text in check(taken)]
    except CorruptError as error:  # a restore would end with it
        return [str(error)]


def _lost_addresses(taken: Taken) -> Iterator[str]:
    """A socket that is bound to an address of a network device of the program's own."""
    devices = {address: device for device, addresses in taken.lost.items() for address in addresses}
    for bound in sorted(set(parse_bound_addresses("files.img", taken.images.get("files.img", b"")))):
        if bound in devices:
            where, device = ipaddress.ip_address(bound), devices[bound]
            yield f"it has a socket at {where}, an address of the network device {device}, which is not saved"


def _strict_reservations(taken: Taken) -> Iterator[str]:
    """More address space at one stroke than a machine that counts strictly would give it."""
    left = reservations.commit_left()
    if left is None:
        return
    images = {name: data for name, data in taken.images.items() if name.startswith("mm-")}
    largest = max(
        (area.end - area.start for name, data in images.items() for area in parse_areas(name, data)), default=0
    )
    if largest > left:
        yield f"it has a mapping of {largest >> 20} MiB, and this machine counts strictly (vm.overcommit_memory=2)"


def _unsent_bytes(taken: Taken) -> Iterator[str]:
    """A full send queue, where the kernel has nothing to hold it back with while CRIU fills it again."""
    streams = {name: data for name, data in taken.images.items() if name.startswith("tcp-stream-")}
    if not any(parse_unsent_bytes(name, data) for name, data in streams.items()):
        return
    network_fd = ns.new_network()
    try:
        silence = Silence(network_fd)
        silence.end()
        if not silence.holds:
            yield "a TCP connection has bytes to send, and this kernel has no queues (CONFIG_NET_SCHED)"
    finally:
        os.close(network_fd)


_TABLE: tuple[Callable[[Taken], Iterator[str]], ...] = (_lost_addresses, _strict_reservations, _unsent_bytes)
