"""Operations merge: whatever order messages come in, and whichever are lost for how long, hosts end with one view."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from ijfs_engine import CorruptError, RemoteError
from ijfs_engine.format.frames import Codec, EncodedChunk, FrameKind, encode_header
from ijfs_engine.remote.bucket import Bucket
from ijfs_engine.remote.known import KnownTree
from ijfs_engine.remote.operation import Change, Listed, Moved, Operation, Unlisted, encode_operation
from ijfs_engine.remote.oplog import MANIFEST_EVERY, OpLog
from ijfs_engine.remote.view import (
    EMPTY,
    View,
    applied,
    decode_view,
    encode_view,
    merged,
    settled,
    shown_refs,
)

NAMES = ("branch/main", "branch/lab", "tag/v1")


def ident(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def pack(number: int) -> bytes:
    return hashlib.md5(bytes([number])).digest()


Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["move", "list", "remove", "drop", "see"]), st.integers(0, 2), st.integers(0, 2),
              st.integers(0, 5)),
    max_size=30,
)  # fmt: skip


def changes(view: View, step: Step) -> list[Change]:
    """What a host that sees this view says when it does one thing."""
    what, _, name, number = step
    ref, snapshot = NAMES[name], ident(number)
    listing = view.listings.get(snapshot)
    over = tuple(listing.packs) if listing else ()
    match what:
        case "move":
            return [
                Listed(snapshot, number, b"r", pack(number), over),
                Moved(ref, snapshot, tuple(view.refs.get(ref, {}))),
            ]
        case "list":
            return [Listed(snapshot, number, b"r", pack(number), over)]
        case "remove":
            return [Unlisted(snapshot, over)] if over else []
        case "drop":
            return [Moved(ref, None, tuple(view.refs.get(ref, {})))] if ref in view.refs else []
    return []


class Hosts:
    """Three hosts that see one another's operations when a step says so, with one view each."""

    def __init__(self) -> None:
        self.views = [EMPTY] * 3
        self.heads: list[frozenset[bytes]] = [frozenset()] * 3
        self.operations: dict[bytes, Operation] = {}

    def do(self, number: int, step: Step) -> None:
        host = step[1]
        if step[0] == "see":
            other = step[2]
            self.views[host] = merged(self.views[host], self.views[other])
            self.heads[host] |= self.heads[other]
            return
        wanted = changes(self.views[host], step)
        if wanted:
            operation = Operation(tuple(sorted(self.heads[host])), number, "", f"h{host}", "", tuple(wanted))
            key, _ = encode_operation(operation)
            self.operations[key] = operation
            self.views[host] = applied(self.views[host], key, operation)
            self.heads[host] = frozenset((key,))


@settings(max_examples=150, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_any_order_ends_in_the_same_view(steps: list[Step], rng: random.Random) -> None:
    hosts = Hosts()
    for number, step in enumerate(steps):
        hosts.do(number, step)
    a, b, c = hosts.views
    everything = merged(merged(a, b), c)
    assert everything == merged(a, merged(b, c)) == merged(merged(c, a), merged(b, a))
    assert merged(everything, a) == everything
    assert everything == replayed(hosts.operations, rng)
    assert decode_view(encode_view(everything)) == everything


def replayed(operations: dict[bytes, Operation], rng: random.Random) -> View:
    """All operations in some order that puts parents first."""
    view, left = EMPTY, dict(operations)
    while left:
        ready = sorted(key for key, one in left.items() if view.history.issuperset(one.parents))
        key = rng.choice(ready)
        view = applied(view, key, left.pop(key))
    return view


def test_a_branch_that_moved_apart_keeps_both_names() -> None:
    hosts = Hosts()
    for number, step in enumerate([("move", 0, 0, 1), ("see", 1, 0, 0), ("move", 0, 0, 2), ("move", 1, 0, 3)]):
        hosts.do(number, step)
    refs = shown_refs(merged(hosts.views[0], hosts.views[1]))
    first, second = sorted(refs)
    assert first == "branch/main"
    assert second in ("branch/main@h0", "branch/main@h1")
    assert set(refs.values()) == {ident(2), ident(3)}


def test_a_ref_that_moved_apart_moves_on_and_the_other_keeps_its_name() -> None:
    bucket = Bucket(MemoryStore(), "memory:")
    logs = [OpLog(bucket) for _ in range(2)]
    for at, log in enumerate(logs):
        log.refresh()
        logs[at] = log
    for at, log in enumerate(logs):
        log._add(log._next(tuple(changes(log.view, ("move", at, 0, at + 1))), "", f"h{at}", ""))
    before = shown_refs(logs[0].refresh())
    (beside,) = set(before) - {"branch/main"}
    log = logs[0]
    log.add(
        lambda view: [*settled(view), Moved("branch/main", ident(5), tuple(view.refs["branch/main"]))],
        who="", host="h0", why="",
    )  # fmt: skip
    after = shown_refs(logs[1].refresh())
    assert after == {"branch/main": ident(5), beside: before[beside]}


def test_a_name_that_cannot_be_one_is_not_shown() -> None:
    view = EMPTY
    for name in ("branch/main", "branch/../../x", "branch/a\nb", "elsewhere/x", "tag/v1"):
        operation = Operation(tuple(view.history), 1, "", "h", "", (Moved(name, ident(1)),))
        view = applied(view, encode_operation(operation)[0], operation)
    assert sorted(KnownTree(view, ()).refs) == ["branch/main", "tag/v1"]


def test_a_manifest_that_claims_to_be_huge_is_refused() -> None:
    sound = encode_view(EMPTY)
    huge = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1 << 20))
    header = encode_header(FrameKind.MANIFEST, EncodedChunk(bytes(32), Codec.ZSTD, 10, huge))
    assert decode_view(sound) == EMPTY
    with pytest.raises(CorruptError, match="two different sizes"):
        decode_view(header + huge)


def test_a_removal_and_a_use_keep_the_snapshot() -> None:
    hosts = Hosts()
    for number, step in enumerate([("list", 0, 0, 1), ("see", 1, 0, 0), ("remove", 0, 0, 1), ("move", 1, 0, 1)]):
        hosts.do(number, step)
    assert ident(1) in merged(hosts.views[0], hosts.views[1]).listings


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=60))
def test_hosts_of_one_store_end_with_one_view(steps: list[tuple[int, int, int]]) -> None:
    bucket = Bucket(MemoryStore(), "memory:")
    hosts = [OpLog(bucket) for _ in range(3)]
    for host, name, number in steps:
        step: Step = ("move", host, name, number)
        hosts[host].add(lambda view, step=step: changes(view, step), who="", host=f"h{host}", why="")  # type: ignore[misc]
    views = [host.refresh() for host in (*hosts, OpLog(bucket))]
    assert all(view == views[0] for view in views)
    assert len(hosts[0].heads) == 1


def racing(bucket: Bucket, logs: Sequence[OpLog], number: int) -> None:
    """Operations of hosts that have all looked before any of them wrote."""
    for log in logs:
        log.refresh()
    for at, log in enumerate(logs):
        operation = log._next(tuple(changes(log.view, ("move", at, 0, (number + at) % 6))), "", f"h{at}", "")
        log._add(operation)


def test_hosts_that_write_at_once_make_heads_that_the_next_merges() -> None:
    bucket = Bucket(MemoryStore(), "memory:")
    logs = [OpLog(bucket) for _ in range(3)]
    for number in range(2 * MANIFEST_EVERY):
        racing(bucket, logs, number)
        logs[number % 3].refresh()
        logs[number % 3].merge()
    cold = OpLog(bucket)
    before = bucket.traffic.requests
    assert cold.refresh() == logs[0].refresh() == logs[1].refresh() == logs[2].refresh()
    assert len(cold.heads) == 1
    assert bucket.traffic.requests - before < 20
    assert sorted(shown_refs(cold.view).values()) == sorted(
        {value.id for value in cold.view.refs["branch/main"].values()}
    )


def test_a_head_that_could_not_be_taken_away_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(MemoryStore(), "memory:")
    log = OpLog(bucket)

    def refuse(self: Bucket, paths: Sequence[str]) -> None:
        raise RemoteError("broken off")

    monkeypatch.setattr(Bucket, "delete", refuse)
    for number in range(3):
        log.add(lambda view, n=number: changes(view, ("move", 0, 0, n)), who="", host="h", why="")  # type: ignore[misc]
    assert len(list(bucket.list("heads"))) == 3
    cold = OpLog(bucket)
    assert cold.refresh() == log.view
    assert cold.heads == log.heads


def test_a_manifest_that_is_lost_is_made_up_for_from_the_operations() -> None:
    bucket = Bucket(MemoryStore(), "memory:")
    log = OpLog(bucket)
    for number in range(2 * MANIFEST_EVERY + 3):
        log.add(lambda view, n=number: changes(view, ("move", 0, n % 3, n % 6)), who="", host="h", why="")  # type: ignore[misc]
    manifests = [found.path for found in bucket.list("manifests")]
    assert len(manifests) == 2
    bucket.delete(manifests)
    assert OpLog(bucket).refresh() == log.view
