"""What peers on a LAN would give: hosts that restore one snapshot at once, from an object store alone, and with peers.

    python -m bench.peers [--hosts 1000] [--gb 16] [--link-gbit 10] [--store-gbit 100] [--latency-ms 20] [--json FILE]
    python -m bench.peers --latencies FILE      # a JSON list of seconds, as some store was measured to take

A simulation, not a measurement: nothing of it is built. docs/decisions.md ("Peers on a LAN") has the design. Each host
asks for blocks, `WINDOW` at a time: the working set first and in one order, which all hosts have, then the rest in an
order of its own. A link carries its transfers one after the other, in both directions at once; the store has one link
for all. With peers, a block comes from the least busy of a few hosts that have it, or from the store where that is
quicker or nobody has it; `SEEDS` hosts at most get a block from the store before somebody else has it. A share of hosts
answers with wrong bytes: whoever gets them notices by the id and asks elsewhere.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 16 << 20
WORKING_SET = 64 << 20
WINDOW = 16
SEEDS = 2
LOOKED_AT = 4
"""Hosts among which the least busy is chosen."""
LAN_MS = 0.3


@dataclass(frozen=True)
class Place:
    """The network: bytes a second of a host's link and of the store's, and what the store took to begin to answer."""

    hosts: int
    size: int
    link: float
    store: float
    latencies_s: Sequence[float]
    wrong: float = 0.01


@dataclass
class Outcome:
    """When each host had its working set, and all, in seconds; bytes that the store sent, and requests to it."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    sent: int = 0
    requests: int = 0


class Simulation:
    """One restore by all hosts."""

    def __init__(self, place: Place, *, peers: bool, seed: int = 1) -> None:
        self._place = place
        self._peers = peers
        self._rng = random.Random(seed)
        self._blocks = place.size // BLOCK
        self._hot = WORKING_SET // BLOCK
        self._liars = {host for host in range(place.hosts) if self._rng.random() < place.wrong}
        self._store_free = 0.0
        self._up = [0.0] * place.hosts
        self._down = [0.0] * place.hosts
        self._holders: list[list[int]] = [[] for _ in range(self._blocks)]
        self._seeds = [0] * self._blocks
        self._waiting: list[list[int]] = [[] for _ in range(self._blocks)]
        self._todo = [self._order() for _ in range(place.hosts)]
        self._hot_left = [self._hot] * place.hosts
        self._left = [self._blocks] * place.hosts
        self._events: list[tuple[float, int, int, int, bool]] = []
        self._number = 0
        self.outcome = Outcome()

    def _order(self) -> list[int]:
        rest = list(range(self._hot, self._blocks))
        self._rng.shuffle(rest)
        return [*rest, *reversed(range(self._hot))]

    def run(self) -> Outcome:
        """To the end."""
        for host in range(self._place.hosts):
            for _ in range(WINDOW):
                self._ask_next(host, 0.0)
        while self._events:
            at, _, host, block, right = heapq.heappop(self._events)
            if right:
                self._arrived(host, block, at)
            else:
                self._ask(host, block, at)
        return self.outcome

    def _ask_next(self, host: int, now: float) -> None:
        if self._todo[host]:
            self._ask(host, self._todo[host].pop(), now)

    def _ask(self, host: int, block: int, now: float) -> None:
        """From a peer, from the store, or when somebody has it."""
        if self._peers:
            holders = self._holders[block]
            if holders:
                source = min(self._rng.choices(holders, k=LOOKED_AT), key=self._up.__getitem__)
                if self._up[source] <= max(self._store_free, now + self._place.latencies_s[0]):
                    self._from_peer(host, block, source, now)
                    return
            elif self._seeds[block] >= SEEDS:
                self._waiting[block].append(host)
                return
            self._seeds[block] += 1
        self._from_store(host, block, now)

    def _from_store(self, host: int, block: int, now: float) -> None:
        begin = max(now + self._rng.choice(self._place.latencies_s), self._store_free)
        self._store_free = begin + BLOCK / self._place.store
        self.outcome.sent += BLOCK
        self.outcome.requests += 1
        self._receive(host, block, begin, self._store_free, right=True)

    def _from_peer(self, host: int, block: int, source: int, now: float) -> None:
        begin = max(now + LAN_MS / 1000, self._up[source])
        self._up[source] = begin + BLOCK / self._place.link
        self._receive(host, block, begin, self._up[source], right=source not in self._liars)

    def _receive(self, host: int, block: int, begin: float, sent: float, *, right: bool) -> None:
        self._down[host] = max(self._down[host], begin) + BLOCK / self._place.link
        self._number += 1
        heapq.heappush(self._events, (max(sent, self._down[host]), self._number, host, block, right))

    def _arrived(self, host: int, block: int, now: float) -> None:
        self._left[host] -= 1
        self._hot_left[host] -= block < self._hot
        if block < self._hot and not self._hot_left[host]:
            self.outcome.first.append(now)
        if not self._left[host]:
            self.outcome.whole.append(now)
        if self._peers:
            self._holders[block].append(host)
            waiting, self._waiting[block] = self._waiting[block], []
            for other in waiting:
                self._ask(other, block, now)
        self._ask_next(host, now)


def shares(times: Sequence[float]) -> str:
    """Half of the hosts, 99 of 100."""
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2]:8.1f} {ordered[int(len(ordered) * 0.99)]:8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--gb", type=float, default=16)
    parser.add_argument("--link-gbit", type=float, default=10)
    parser.add_argument("--store-gbit", type=float, default=100)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--latencies", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    latencies = json.loads(args.latencies.read_text()) if args.latencies else [args.latency_ms / 1000]
    size = int(args.gb * 1e9) // BLOCK * BLOCK
    place = Place(args.hosts, size, args.link_gbit * 1e9 / 8, args.store_gbit * 1e9 / 8, sorted(latencies))
    mean_ms = 1000 * sum(latencies) / len(latencies)
    print(f"{args.hosts} hosts, {args.gb:g} GB each, links of {args.link_gbit:g} Gbit/s")
    print(f"a store of {args.store_gbit:g} Gbit/s, {mean_ms:.0f} ms to its first byte")
    print("seconds until half of the hosts have it, and 99 of 100")
    print(f"{'':18}{'working set':>17}{'all':>18}{'of the store':>16}{'requests':>10}")
    rows = {}
    for name, peers in (("the store alone", False), ("with peers", True)):
        done = Simulation(place, peers=peers).run()
        rows[name] = {"first": done.first, "whole": done.whole, "sent": done.sent, "requests": done.requests}
        print(f"{name:18}{shares(done.first)} {shares(done.whole)}{done.sent / 1e12:13.2f} TB{done.requests:10}")
    if args.json:
        args.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
