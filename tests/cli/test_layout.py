"""The layout of the tree: what stands in which column, what is folded. Drawn without a terminal."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs.cli.picture import ASCII, FOLD, PictureNode, PictureRow, draw


def node(
    number: int, parent: int | None = None, *, labels: tuple[str, ...] = (), live: tuple[str, ...] = ()
) -> PictureNode:
    return PictureNode(_id(number), None if parent is None else _id(parent), number, labels, live)


def _id(number: int) -> bytes:
    return number.to_bytes(4, "big")


def drawn(*nodes: PictureNode, trunk: int | None = None, fold: bool = True) -> list[str]:
    rows = draw(nodes, trunk=None if trunk is None else _id(trunk), glyphs=ASCII, fold=fold)
    return [_shown(row) for row in rows]


def _shown(row: PictureRow) -> str:
    strokes = "".join(stroke for stroke, _ in row.strokes)
    behind = row.live or (str(int.from_bytes(row.node.id, "big")) if row.node else f"+{row.folded}")
    return f"{strokes} {behind}"


def test_a_straight_history_stays_in_one_column() -> None:
    assert drawn(node(1), node(2, 1), node(3, 2)) == ["* 1", "* 2", "* 3"]


def test_the_older_child_branches_off_and_the_newest_line_goes_straight_on() -> None:
    assert drawn(node(1), node(2, 1), node(3, 1), node(4, 3)) == ["* 1", "|-* 2", "* 3", "* 4"]


def test_the_trunk_stays_in_the_first_column_even_if_a_branch_is_newer() -> None:
    assert drawn(node(1), node(2, 1), node(3, 1), trunk=2) == ["* 1", "|-* 3", "* 2"]


def test_live_programs_hang_below_their_snapshot_and_the_last_turns_the_corner() -> None:
    assert drawn(node(1, live=("a", "b"))) == ["* 1", "|-> a", "`-> b"]
    assert drawn(node(1, live=("a",)), node(2, 1)) == ["* 1", "|-> a", "* 2"]


def test_a_branch_of_a_branch_keeps_the_lines_of_both() -> None:
    nodes = [node(1), node(2, 1), node(3, 2), node(4, 2), node(5, 1)]
    assert drawn(*nodes, trunk=5) == ["* 1", "|-* 2", "| |-* 3", "| * 4", "* 5"]


def test_a_snapshot_whose_parent_is_gone_begins_a_tree_of_its_own() -> None:
    assert drawn(node(2, 1), node(3)) == ["* 2", "* 3"]


def test_a_long_plain_stretch_is_folded_to_its_ends() -> None:
    chain = [node(1), *(node(i, i - 1) for i in range(2, 20))]
    assert drawn(*chain) == ["* 1", ": +17", "* 19"]
    assert len(drawn(*chain, fold=False)) == 19


def test_a_label_or_a_live_program_is_never_folded_away() -> None:
    chain = [node(1)] + [node(i, i - 1, labels=("here",) if i == 12 else ()) for i in range(2, 24)]
    assert "* 12" in drawn(*chain)


def test_a_stretch_that_is_not_long_is_drawn_whole() -> None:
    chain = [node(1), *(node(i, i - 1) for i in range(2, FOLD + 1))]
    assert len(drawn(*chain)) == FOLD


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=40), st.integers(0, 40))
def test_every_snapshot_and_live_program_is_drawn_once_or_counted_in_a_fold(parents: list[int], trunk: int) -> None:
    nodes = [
        node(i, p if p < i else None, live=(f"l{i}",) if i % 5 == 0 else ()) for i, p in enumerate(parents, start=1)
    ]
    rows = list(draw(nodes, trunk=_id(trunk)))
    shown = [row.node.id for row in rows if row.node]
    assert len(shown) == len(set(shown))
    assert len(shown) + sum(row.folded for row in rows) == len(nodes)
    assert sorted(row.live for row in rows if row.live) == sorted(name for n in nodes for name in n.live)
    assert len(list(draw(nodes, fold=False))) == len(nodes) + sum(len(n.live) for n in nodes)


def test_a_history_of_ten_thousand_is_drawn_without_recursion() -> None:
    chain = [node(1), *(node(i, i - 1) for i in range(2, 10_001))]
    assert len(drawn(*chain, fold=False)) == 10_000
    comb = [node(1)] + [node(i, i - (1 if i % 2 else 2)) for i in range(3, 8_001)]
    assert len(drawn(*comb, fold=False)) == len(comb)
