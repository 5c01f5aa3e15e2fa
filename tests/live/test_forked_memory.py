"""Memory that forked processes share: found in the images, laid out for CRIU, and shared again in a real program."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import MM_MAGIC, PSTREE_MAGIC, image_file, message, pagemap
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.criu import forked_memory, lending
from ijfs.live.criu.forked_memory import Span
from ijfs.live.criu.image_format import PE_LAZY, PE_PARENT, PE_PRESENT
from ijfs.live.process import procfs

PAGE = 4096
PRIVATE_ANONYMOUS = 0x22
LAZY = PE_LAZY | PE_PRESENT


class Piece(NamedTuple):
    id: bytes | None
    offset: int
    length: int


class FakeFile:
    """A stored pages file of chunks of so many pages; page 0 is zeros."""

    def __init__(self, pages: Sequence[int], together: int = 1) -> None:
        self.pages, self.together = pages, together

    def slices(self, offset: int, length: int) -> Iterator[Piece]:
        at, end = offset // PAGE, (offset + length) // PAGE
        while at < end:
            first = at - at % self.together
            chunk = self.pages[first : first + self.together]
            count = min(first + len(chunk), end) - at
            yield Piece(repr(chunk).encode() if any(chunk) else None, (at - first) * PAGE, count * PAGE)
            at += count

    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> int:
        read = 0
        for offset, view in wanted:
            pages = self.pages[offset // PAGE : (offset + len(view)) // PAGE]
            view[:] = b"".join(page.to_bytes(4, "big") * (PAGE // 4) for page in pages)
            read += len(view)
        return read


class Family:
    """Processes made by hand: each has all pages of one mapping, as a list of what is in them (by number)."""

    def __init__(
        self,
        parents: dict[int, int],
        memory: dict[int, list[int]],
        mapping: dict[int, int] | None = None,
        together: int = 1,
    ):
        self.parents, self.memory, self.together = parents, memory, together
        self.entries = {pid: [(PAGE, len(pages), LAZY)] for pid, pages in memory.items()}
        self.images = {"pstree.img": image_file(PSTREE_MAGIC, [message((1, p), (2, q)) for p, q in parents.items()])}
        for pid, pages in memory.items():
            end = PAGE * (1 + (mapping or {}).get(pid, len(pages)))
            area = message((1, PAGE), (2, end), (3, 0), (4, 0), (5, 3), (6, PRIVATE_ANONYMOUS), (7, 1))
            self.images[f"mm-{pid}.img"] = image_file(MM_MAGIC, [message((14, area))])
            self.images[f"pagemap-{pid}.img"] = pagemap(self.entries[pid], pages_id=pid)

    def find(self, *, lazy: bool = True, far: bool = False) -> dict[int, list[Span]]:
        def opened(name: str) -> FakeFile:
            return FakeFile(self.memory[int(name[6:-4])], self.together)

        return forked_memory.find(self.images, opened, lazy=lazy, far=far)


@pytest.fixture(autouse=True)
def small_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_memory, "WORTH_BYTES", PAGE)
    monkeypatch.setattr(forked_memory, "SHORTEST_BYTES", PAGE)


def pages(first: int, last: int) -> Span:
    """The addresses of pages [first, last) of the mapping."""
    return Span(PAGE * (1 + first), PAGE * (1 + last))


def test_pages_that_neither_has_written_are_shared_and_zeros_are_the_pagers() -> None:
    family = Family({1: 0, 2: 1}, {1: [0, 1, 2, 3, 4, 5], 2: [0, 1, 9, 3, 4, 5]})
    assert family.find() == {2: [pages(1, 2), pages(3, 6)]}
    assert family.find(lazy=False) == {2: [pages(0, 2), pages(3, 6)]}


def test_pages_between_those_that_were_written_are_shared_where_most_is() -> None:
    """Written pages make other chunks of those that lie beside them; zeros stay the pager's."""
    parent = [*range(1, 13), 0, 14, 15, 16]
    some = Family({1: 0, 2: 1}, {1: parent, 2: [*range(1, 9), 9, 99, 11, 12, 0, 14, 15, 16]}, together=4)
    assert some.find() == {2: [pages(0, 9), pages(10, 16)]}
    last = Family({1: 0, 2: 1}, {1: parent, 2: [*range(1, 13), 0, 99, 15, 16]}, together=4)
    assert last.find() == {2: [pages(0, 12), pages(14, 16)]}
    written = [99 if page % 4 == 1 else page for page in range(1, 21)]
    most = Family({1: 0, 2: 1}, {1: list(range(1, 25)), 2: [*written, *range(21, 25)]}, together=4)
    assert most.find() == {2: [pages(20, 24)]}, "where little is in the same chunks nothing is read"
    assert some.find(lazy=False) == {2: [pages(0, 8), pages(12, 16)]}, "CRIU compares by itself"
    assert some.find(far=True) == some.find(lazy=False), "nor is it where that is done over a network"


def test_mappings_that_differ_are_not_shared_by_criu_either() -> None:
    grown = Family({1: 0, 2: 1}, {1: [1, 2, 3], 2: [1, 2, 3]}, mapping={1: 3, 2: 4})
    assert grown.find() == {}


def test_a_program_that_has_not_forked_is_not_looked_into() -> None:
    assert forked_memory.find(Family({1: 0}, {1: [1, 2]}).images, lambda name: pytest.fail(name), lazy=True) == {}
    assert Family({1: 0, 2: 1}, {1: [1, 2], 2: [3, 4]}).find() == {}


def test_a_child_borrows_from_whoever_lends_it_most_and_has_the_rest_of_its_own() -> None:
    found = lending.arrange({2: [pages(0, 6)], 3: [pages(0, 4)], 4: [pages(2, 8)]}, {1: 0, 2: 1, 3: 2, 4: 2})
    assert found.held == {1: [pages(0, 6)]}
    assert found.parts[1] == lending.Part(1, [pages(0, 6)], [pages(0, 6)])
    assert found.parts[2] == lending.Part(1, [pages(0, 6)], [pages(6, 8)])  # what 4 has of it is read before the fork
    assert found.parts[3] == lending.Part(1, [pages(0, 4)], [])
    assert found.parts[4] == lending.Part(1, [pages(2, 6)], [pages(6, 8)])


@st.composite
def families(draw: st.DrawFn) -> Family:
    """A tree of processes; each begins with its parent's pages and has written some since, as the parent has."""
    count, size = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    parents = {pid: draw(st.integers(1, pid - 1)) if pid > 1 else 0 for pid in range(1, count + 1)}
    memory = {1: [draw(st.integers(0, 3)) for _ in range(size)]}
    for pid in range(2, count + 1):
        memory[pid] = [draw(st.sampled_from((page, 100 * pid))) for page in memory[parents[pid]]]
    return Family(parents, memory, together=draw(st.integers(1, 4)))


@settings(deadline=None, max_examples=150)
@given(families(), st.booleans())
def test_every_process_reads_the_pages_it_had_and_none_is_left_to_nobody(family: Family, lazy: bool) -> None:
    """What CRIU does: an entry's bytes come from the parent image or the process's own file, in order."""
    found = lending.arrange(family.find(lazy=lazy), family.parents)
    above = {}
    for lender, spans in found.held.items():
        entries, copies, _ = lending.parent_image(family.entries[lender], spans)
        above[lender] = dict(zip(addresses(entries), laid_out(family.memory[lender], copies), strict=True))
    for pid, part in found.parts.items():
        entries, copies, size = lending.pagemap_of(family.entries[pid], part, lazy=lazy)
        own = laid_out(family.memory[pid], copies, size)
        read, at = {}, 0
        for vaddr, count, flags in entries:
            for address in range(vaddr, vaddr + count * PAGE, PAGE):
                if flags & PE_PARENT:
                    read[address] = above[part.lender][address]
                    continue
                if not lazy or not flags & PE_LAZY:
                    read[address] = own[at]
                at += 1
        whole = dict(zip(addresses(family.entries[pid]), family.memory[pid], strict=True))
        assert read == ({a: whole[a] for span in part.present for a in range(*span, PAGE)} if lazy else whole)
    assert all(set(found.parts) >= {pid, family.parents[pid]} for pid, spans in family.find(lazy=lazy).items() if spans)


def addresses(entries: Sequence[tuple[int, int, int]]) -> list[int]:
    return [a for vaddr, count, _ in entries for a in range(vaddr, vaddr + count * PAGE, PAGE)]


def laid_out(stored: list[int], copies: Sequence[lending.Copy], size: int | None = None) -> list[int]:
    """A pages file as it is staged; -1 where nothing was copied."""
    end = size if size is not None else max((copy.at + copy.end - copy.start for copy in copies), default=0)
    out = [-1] * (end // PAGE)
    for start, stop, at in copies:
        out[at // PAGE : (at + stop - start) // PAGE] = stored[start // PAGE : stop // PAGE]
    return out


# A parent with 48 MB, of which each child has written 4 at a place of its own and one page in 64 everywhere; a child
# has a child that has, too.
FAMILY = """
import hashlib, os, random, sys, time
size = 48 << 20
block = bytearray(random.Random(1).randbytes(size))
own = {own!r}
def written(number):
    for at in range(number * (12 << 20), number * (12 << 20) + (4 << 20), 4096): block[at] ^= 1
    for at in range(number * 4096, size, 64 * 4096): block[at] ^= 1
def work(name):
    total = hashlib.blake2b(block).hexdigest()
    while True:
        if os.path.exists("/tmp/look") and not os.path.exists(f"/tmp/seen-{{name}}"):
            good = hashlib.blake2b(block).hexdigest() == total
            with open(f"/tmp/seen-{{name}}.part", "w") as file: file.write("same" if good else "other")
            os.rename(f"/tmp/seen-{{name}}.part", f"/tmp/seen-{{name}}")
        if not os.path.exists(f"/tmp/up-{{name}}"): open(f"/tmp/up-{{name}}", "w").close()
        time.sleep(0.02)
for number in (1, 2):
    if os.fork() == 0:
        written(number)
        if number == 2 and os.fork() == 0:
            written(3)
            work(3)
        work(number)
work(0)
"""


def seen(env: LiveEnv, name: str) -> list[str]:
    found = [env.upper(name) / f"tmp/seen-{number}" for number in range(4)]
    return [path.read_text() for path in found if path.exists()]


def memory_of(pid: int) -> int:
    """What a program's processes take together, what they share counted once."""
    members = procfs.processes_in("pid", procfs.namespace_id(pid, "pid"))
    return sum(procfs.memory_in_smaps(member).get("Pss_Anon", 0) for member in members)


@pytest.mark.root
@pytest.mark.criu
def test_a_family_takes_no_more_memory_than_before_and_finds_its_pages(live_env: LiveEnv) -> None:
    live_env.python("family", FAMILY.format(own=random.random()))
    assert eventually(lambda: all((live_env.upper("family") / f"tmp/up-{n}").exists() for n in range(4)))
    pid = client.describe(live_env.repo, "family").pid
    assert pid is not None
    before = memory_of(pid)
    snapshot = live_env.save("family").snapshot
    for eager in (False, True):
        name = f"again{eager}"
        info = live_env.restore(snapshot, name, eager=eager)
        assert eager or info.read_ahead["forked"] >= 3 * (32 << 20)
        assert live_env.exec(name, "touch", "/tmp/look") == 0
        assert eventually(lambda: len(seen(live_env, name)) == 4)  # noqa: B023
        assert seen(live_env, name) == ["same"] * 4
        with client.connect(live_env.repo, name) as keeper:
            keeper.wait_memory()
        assert info.pid is not None
        assert memory_of(info.pid) < before * 1.15
        if not eager:  # what is saved from there is whole again, and its pages are shared as before
            again = live_env.restore(live_env.save(name).snapshot, f"{name}-2")
            with client.connect(live_env.repo, again.name) as keeper:
                keeper.wait_memory()
            assert again.pid is not None
            assert memory_of(again.pid) < before * 1.15
