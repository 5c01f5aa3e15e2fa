"""The plan against a naive model: a dictionary of addresses that is edited page by page."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from pagerlab import BASE, PAGE

from ijfs.live.pager.ledger import Ledger
from ijfs.live.pager.plan import IN, MISSING, ZERO, Mapping, Plan, ProcessMemory, Run
from ijfs.live.pager.uffd import EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP

RUNS = [Run(BASE, 10, 0), Run(BASE + 10 * PAGE, 6, 10 * PAGE), Run(BASE + 24 * PAGE, 8, 16 * PAGE)]
MAPPINGS = [Mapping(BASE, BASE + 10 * PAGE, wiped_on_fork=True), Mapping(BASE + 10 * PAGE, BASE + 64 * PAGE)]
IMAGE = ProcessMemory(7, RUNS, MAPPINGS)

spans = st.tuples(st.integers(0, 40), st.integers(1, 20))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("drop"), spans),
        st.tuples(st.just("move"), spans, st.integers(0, 60)),
        st.tuples(st.just("copy"), st.tuples(st.integers(0, 23), st.integers(1, 24))),
        st.tuples(st.just("fork")),
        st.tuples(st.just("crash")),
    ),
    max_size=12,
)


class Model:
    """Where each page belongs (address → number), and which of them are missing."""

    def __init__(self) -> None:
        vaddrs = [run.vaddr + at * PAGE for run in RUNS for at in range(run.pages)]
        self.where = {vaddr: number for number, vaddr in enumerate(vaddrs)}
        self.missing = set(range(24))

    def drop(self, start: int, end: int) -> None:
        for vaddr in [v for v in self.where if start <= v < end]:
            self.missing.discard(self.where.pop(vaddr))

    def move(self, source: int, destination: int, length: int) -> None:
        moved = {v: n for v, n in self.where.items() if source <= v < source + length}
        for vaddr in moved:
            del self.where[vaddr]
        self.drop(destination, destination + length)
        self.where.update({v + destination - source: n for v, n in moved.items()})

    def targets(self) -> set[tuple[int, int]]:
        return {(vaddr, number) for vaddr, number in self.where.items() if number in self.missing}


def targets(space: Plan, first: int = 0, count: int = 24) -> set[tuple[int, int]]:
    found = [
        (vaddr + at * PAGE, page + at)
        for vaddr, page, pages in space.places(first, count)
        for at in range(pages)
        if space.states[page + at] == MISSING
    ]
    assert len(found) == len(set(found))
    return set(found)


def agrees(space: Plan, model: Model) -> None:
    assert targets(space) == model.targets()
    assert sum(pages for _, pages in space.missing_runs(0, 24)) == len(model.missing)
    for at in range(70):
        page = space.page_at(BASE + at * PAGE)
        expected = model.where.get(BASE + at * PAGE)
        # A page that was dropped may still be known there; then it counts as zero.
        assert page == expected or (expected is None and page is not None and space.states[page] == ZERO)


@settings(max_examples=300, deadline=None)
@given(operations)
def test_the_plan_is_right_after_any_history_and_survives_any_crash(history: list[tuple[object, ...]]) -> None:
    ledger = Ledger.create(7, 24)
    space, model = Plan(IMAGE, ledger.states), Model()
    for name, *arguments in history:
        if name == "drop":
            ((at, pages),) = arguments
            ledger.apply(space, EVENT_REMOVE, BASE + at * PAGE, BASE + (at + pages) * PAGE, 0)
            model.drop(BASE + at * PAGE, BASE + (at + pages) * PAGE)
        elif name == "move":
            (at, pages), to = arguments
            if at <= to < at + pages or to <= at < to + pages:
                continue  # mremap refuses to overlap
            # The kernel tells of what was unmapped at the destination before it tells of the move.
            ledger.apply(space, EVENT_UNMAP, BASE + to * PAGE, BASE + (to + pages) * PAGE, 0)
            ledger.apply(space, EVENT_REMAP, BASE + at * PAGE, BASE + to * PAGE, pages * PAGE)
            model.move(BASE + at * PAGE, BASE + to * PAGE, pages * PAGE)
        elif name == "copy":
            ((first, count),) = arguments
            for _, page in targets(space, first, min(count, 24 - first)):
                space.mark(page, 1, IN)
                model.missing.discard(page)
        elif name == "fork":
            parent, ledger = ledger, ledger.fork()
            parent.close()
            space = space.fork(ledger.states)
            model.missing -= set(range(10))
        else:
            space = ledger.restore(IMAGE)
        agrees(space, model)
    ledger.close()


def test_a_mapping_event_that_is_seen_twice_changes_nothing_the_second_time() -> None:
    ledger = Ledger.create(7, 24)
    space = Plan(IMAGE, ledger.states)
    far = BASE + 1000 * PAGE
    for event, a, b, c in [
        (EVENT_REMAP, BASE, far, 4 * PAGE),
        (EVENT_REMOVE, far + PAGE, far + 2 * PAGE, 0),
        (EVENT_REMAP, far, BASE, 4 * PAGE),
        (EVENT_REMAP, BASE, far, 4 * PAGE),
    ]:
        ledger.apply(space, event, a, b, c)
        expected = targets(space)
        after_crash = ledger.restore(IMAGE)
        ledger.apply(after_crash, event, a, b, c)
        assert targets(after_crash) == expected
        space = after_crash
    ledger.close()


def test_messages_are_kept_until_each_is_settled() -> None:
    ledger = Ledger.create(7, 24)
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    assert ledger.read_events(ours) == 0
    os.write(theirs, bytes([EVENT_REMOVE]) + bytes(7) + (4096).to_bytes(8, "little") * 3)
    os.write(theirs, bytes([EVENT_UNMAP]) + bytes(7) + (8192).to_bytes(8, "little") * 3)
    assert ledger.read_events(ours) == 2
    successor = Ledger(os.dup(ledger.fd))
    assert [(slot, event[0]) for slot, event in successor.inbox()] == [(0, EVENT_REMOVE), (1, EVENT_UNMAP)]
    successor.settle(0)
    assert list(ledger.inbox()) == [(1, (EVENT_UNMAP, 8192, 8192, 8192))]
    os.close(ours)
    os.close(theirs)
    successor.close()
    ledger.close()


def test_states_say_which_pages_are_missing() -> None:
    space = Plan(IMAGE, bytearray(24))
    space.mark(4, 2, ZERO)
    space.mark(3, 4, IN)
    assert list(space.missing_runs(0, 24)) == [(0, 3), (7, 17)]
    assert space.states[0] == MISSING
