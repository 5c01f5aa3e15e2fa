"""The compiled tables of ids against sets and dicts."""

from __future__ import annotations

import random
from array import array

import pytest

from ijfs_engine._native.idset import ChunkTable, IdSet
from ijfs_engine._native.pack_rows import PackRows
from ijfs_engine._native.usage_graph import UsageGraph
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ZERO_RUN

RNG = random.Random(7)


def noise(size: int) -> bytes:
    return RNG.randbytes(size)


def test_an_id_set_agrees_with_a_set() -> None:
    ids = [noise(32) for _ in range(20_000)]
    table, twin = IdSet(), set()
    for _ in range(40):
        batch = RNG.choices(ids, k=1000)
        expected = []
        for ident in batch:
            expected.append(ident not in twin)
            twin.add(ident)
        assert list(table.add(b"".join(batch))) == [int(new) for new in expected]
    assert len(table) == len(twin)
    assert list(table.has(b"".join(ids))) == [int(ident in twin) for ident in ids]
    assert table.has(b"") == b""
    assert table.add(bytes(32)) == b"\1"
    assert table.has(bytes(32)) == b"\1"
    with pytest.raises(ValueError, match="32 bytes"):
        table.add(b"short")


def row(span: int, pack: int = 1, offset: int = 64, plain: int = 0) -> bytes:
    return Place(pack, offset, span, plain, 0, 0).encode()


def test_a_stock_agrees_with_a_dict() -> None:
    ids = [noise(32) for _ in range(20_000)]
    sizes = {ident: RNG.randrange(1, 1 << 18) for ident in ids[:15_000]}
    stock, needed = ChunkTable(10), set()
    for at in range(0, len(sizes), 1500):
        part = ids[at : at + 1500]
        stock.add(b"".join(part), b"".join(row(64, plain=sizes[ident]) for ident in part))
    assert len(stock) == len(sizes)
    for _ in range(20):
        batch = RNG.choices(ids, k=500)
        needed.update(ident for ident in batch if ident in sizes)
        assert list(stock.need(b"".join(batch))) == [int(ident in sizes) for ident in batch]
        assert stock.needed == len(needed)
    assert list(stock.is_needed(b"".join(ids))) == [int(ident in needed) for ident in ids]


def test_a_stock_says_whether_extents_lie_in_their_chunks() -> None:
    ids = [noise(32) for _ in range(3)]
    stock = ChunkTable(2)
    stock.add(b"".join(ids[:2]), row(64, plain=100) + row(64, plain=0xFFFFFFFF))

    def fits(*extents: tuple[int, int, int]) -> bool:
        index, offset, length = (array("I", column) for column in zip(*extents, strict=True))
        return stock.fits(b"".join(ids), index, offset, length)

    assert fits((0, 0, 100), (ZERO_RUN, 0, 1 << 20), (1, 4, (256 << 10) - 4), (2, 1, 1 << 30))
    assert not fits((0, 0, 100), (0, 1, 100))
    assert not fits((0, 0xFFFFFFFF, 100))
    assert not fits((1, 4, 256 << 10))
    with pytest.raises(ValueError, match="no chunk"):
        fits((3, 0, 1))
    with pytest.raises(ValueError, match="equally long"):
        stock.fits(b"", array("I"), array("I", [1]), array("I"))
    with pytest.raises(ValueError, match="one row"):
        stock.add(bytes(64), row(1))
    with pytest.raises(ValueError, match="32 bytes"):
        stock.need(b"short")


def test_a_usage_graph_agrees_with_counting_by_hand() -> None:
    """A graph whose nodes point only at later ones, walked from eight roots."""
    ids = [noise(32) for _ in range(5000)]
    spans = {ident: RNG.randrange(1, 1 << 20) for ident in ids}
    below = {ident: RNG.choices(ids[at + 1 :], k=RNG.randrange(9)) for at, ident in enumerate(ids[:1500])}
    graph, known = UsageGraph(), set()
    for ident, children in below.items():
        fresh = []
        known.add(ident)
        for child in children:
            fresh.append(child not in known)
            known.add(child)
        assert list(graph.add_edges(ident, b"".join(children))) == fresh
    assert len(graph) == len(known)
    everything = [*ids, *(noise(32) for _ in range(100))]
    graph.set_sizes(b"".join(everything), b"".join(row(spans.get(ident, 77)) for ident in everything))
    roots = ids[:8]

    def reached(root: bytes) -> set[bytes]:
        found, edge = set(), [root]
        while edge:
            ident = edge.pop()
            if ident not in found:
                found.add(ident)
                edge += below.get(ident, [])
        return found

    sets = [reached(root) for root in roots]
    total, sizes = graph.count(b"".join(roots))
    assert total == weight(set().union(*sets), spans)
    for number, (stored, alone) in enumerate(sizes):
        others = set().union(*(one for at, one in enumerate(sets) if at != number))
        assert stored == weight(sets[number], spans)
        assert alone == weight(sets[number] - others, spans)


def weight(ids: set[bytes], spans: dict[bytes, int]) -> int:
    return sum(spans[ident] + -spans[ident] % 8 for ident in ids)


def test_a_usage_graph_refuses_what_makes_no_sense() -> None:
    graph = UsageGraph()
    graph.add(bytes(32))
    assert graph.add_edges(bytes(32), b"") == b""
    with pytest.raises(ValueError, match="32 bytes"):
        graph.add_edges(bytes(32), b"short")
    with pytest.raises(ValueError, match="one id"):
        graph.add_edges(bytes(64), bytes(32))
    with pytest.raises(ValueError, match="one row"):
        graph.set_sizes(bytes(64), row(1))
    with pytest.raises(ValueError, match="root"):
        graph.count(noise(32))
    assert graph.count(bytes(32)) == (0, [(0, 0)])
    with pytest.raises(ValueError, match="was counted"):
        graph.add(bytes(32))


def test_pack_rows_agree_with_a_dict() -> None:
    packs = sorted(RNG.sample(range(1, 1000), 40))
    rows = [(RNG.choice([*packs, 5000, 0]), number * 8 + 64, RNG.randrange(64, 1 << 18)) for number in range(20_000)]
    RNG.shuffle(rows)
    table = PackRows(packs)
    for at in range(0, len(rows), 3000):
        part = b"".join(row(span, pack, offset) for pack, offset, span in rows[at : at + 3000])
        assert table.weigh(part) == sum(pack not in packs for pack, _, _ in rows[at : at + 3000])
        table.collect(part)
    assert table.weights() == [sum(span + -span % 8 for pack, _, span in rows if pack == number) for number in packs]
    assert len(table) == sum(pack in packs for pack, _, _ in rows)
    for number in packs:
        assert table.offsets(number) == sorted(offset for pack, offset, _ in rows if pack == number)
    with pytest.raises(KeyError):
        table.offsets(5000)
    with pytest.raises(ValueError, match="18 bytes"):
        table.weigh(b"short")
    with pytest.raises(ValueError, match="ascend"):
        PackRows([2, 1])
    assert PackRows([]).weights() == []
