"""What is put right in images on their way to CRIU: only that, and nothing else of them changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import (
    CORE_MAGIC,
    MM_MAGIC,
    PSTREE_MAGIC,
    TCP_STREAM_MAGIC,
    image_file,
    message,
    twin_fields,
    twin_records,
    varint,
)

from ijfs.live.criu import reservations
from ijfs.live.criu.image_format import MAP_NORESERVE, parse_parents, parse_threads, parse_unsent_bytes
from ijfs.live.criu.mending import mended
from ijfs.live.criu.posix_timers import with_known_threads
from ijfs.live.criu.reservations import without_accounting
from ijfs_engine import CorruptError

GIB = 1 << 30
PRIVATE, SHARED = 0x22, 0x21


def timer(notify: int, thread: int | None) -> bytes:
    fields = [(1, 0), (2, 1), (3, 35), (4, notify), (5, 0), (6, 0), (7, 0), (8, 50), (9, 0), (10, 25)]
    return message(*fields, *([(11, thread)] if thread is not None else []))


def core(*timers: bytes) -> bytes:
    task = message((1, 1), (6, b"python"), (7, message((1, b"\x08\0"), *((4, each) for each in timers))), (9, 3))
    return image_file(CORE_MAGIC, [message((1, 1), (2, b"registers"), (3, task), (5, b"thread"))])


def area(start: int, end: int, flags: int) -> bytes:
    return message((1, start), (2, end), (3, 0), (4, 0), (5, 0), (6, flags), (7, 1), (8, 1))


def mm(*areas: bytes) -> bytes:
    return image_file(MM_MAGIC, [message((1, 7), *((14, each) for each in areas), (15, b"auxv"))])


def flags_of(image: bytes) -> list[int]:
    (record,) = twin_records(image, MM_MAGIC)
    vmas = [value for number, value in twin_fields(record) if number == 14]
    return [dict(twin_fields(vma))[6] for vma in vmas if isinstance(vma, bytes)]  # type: ignore[misc]


def test_a_timer_that_notifies_no_thread_of_its_process_notifies_the_main_thread() -> None:
    threads = frozenset((7, 8))
    for notify, thread, wanted in ((4, 2**64 - 5, 7), (4, 8, 8), (4, 7, 7), (4, None, 7), (0, 99, 99), (1, None, None)):
        after = with_known_threads("core-7.img", core(timer(0, None), timer(notify, thread)), threads)
        assert after == core(timer(0, None), timer(notify, thread)) or wanted == 7
        fixed = timer(notify, thread) + (message((11, 7)) if wanted == 7 and thread != 7 else b"")
        assert after == core(timer(0, None), fixed)
        assert with_known_threads("core-7.img", after, threads) == after


def test_only_private_mappings_that_are_too_large_are_taken_out_of_the_account() -> None:
    before = mm(
        area(4096, 8192, PRIVATE),
        area(GIB, 101 * GIB, PRIVATE),
        area(200 * GIB, 300 * GIB, SHARED),
        area(400 * GIB, 500 * GIB, PRIVATE | MAP_NORESERVE),
    )
    after = without_accounting("mm-2.img", before, 24 * GIB)
    assert flags_of(after) == [PRIVATE, PRIVATE | MAP_NORESERVE, SHARED, PRIVATE | MAP_NORESERVE]
    assert without_accounting("mm-2.img", after, 24 * GIB) == after
    assert without_accounting("mm-2.img", before, 100 * GIB) == before


def test_a_machine_that_counts_otherwise_has_its_reservations_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"mm-2.img": mm(area(GIB, 101 * GIB, PRIVATE)), "other.img": b"anything"}
    monkeypatch.setattr(reservations, "mappable_bytes", lambda: None)
    assert mended(images) == images
    monkeypatch.setattr(reservations, "mappable_bytes", lambda: GIB)
    assert mended(images) != images


def test_threads_and_unsent_bytes_are_read_from_their_images() -> None:
    plain, packed = message((1, 2), (5, 2), (5, 9)), message((1, 300), (5, varint(300) + varint(301)))
    assert parse_threads("pstree.img", image_file(PSTREE_MAGIC, [plain, packed])) == {
        2: frozenset((2, 9)),
        300: frozenset((300, 301)),
    }
    assert parse_threads("pstree.img", b"") == {}
    stream = image_file(TCP_STREAM_MAGIC, [message((1, 0), (3, 70), (12, 30))]) + b"what was queued, without a record"
    assert parse_unsent_bytes("tcp-stream-1.img", stream) == 30
    assert parse_unsent_bytes("tcp-stream-1.img", b"") == 0


ANY = st.one_of(
    st.binary(max_size=80), st.builds(lambda data: message((14, data), (3, message((7, data)))), st.binary())
)


@given(st.lists(ANY, max_size=3), st.binary(max_size=20))
def test_any_bytes_are_refused_or_returned_never_a_crash(records: list[bytes], rest: bytes) -> None:
    for name, magic in (("mm-2.img", MM_MAGIC), ("core-2.img", CORE_MAGIC), ("pstree.img", PSTREE_MAGIC)):
        try:
            mended({name: image_file(magic, records) + rest})
        except CorruptError:
            continue


def test_siblings_come_back_in_the_order_in_which_they_were() -> None:
    tree = [(1, 0), (2, 1), (3, 2), (4, 2), (9, 4), (5, 1)]
    saved = image_file(PSTREE_MAGIC, [message((1, pid), (2, parent), (3, pid), (4, 1)) for pid, parent in tree])
    children: dict[int, list[int]] = {}
    for pid, parent in parse_parents("pstree.img", mended({"pstree.img": saved})["pstree.img"]).items():
        assert parent == 0 or parent in children
        children.setdefault(pid, [])
        children.setdefault(parent, []).insert(0, pid)  # as CRIU reads them
    assert (children[1], children[2], children[4]) == ([2, 5], [3, 4], [9])


def test_a_process_tree_that_nobody_knows_is_left_as_it_is() -> None:
    orphaned = image_file(PSTREE_MAGIC, [message((1, 1), (2, 0)), message((1, 3), (2, 2))])
    assert mended({"pstree.img": orphaned})["pstree.img"] == orphaned
