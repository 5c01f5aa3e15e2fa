"""The layout of the tree: what stands in which column, what is folded. Drawn without a terminal."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs.drawing.layout import ASCII, FAN, FOLD, PictureNode, PictureRow, draw


def node(
    number: int,
    parent: int | None = None,
    *,
    labels: tuple[str, ...] = (),
    live: tuple[str, ...] = (),
    program: str = "",
) -> PictureNode:
    return PictureNode(_id(number), None if parent is None else _id(parent), number, labels, live, program)


def _id(number: int) -> str:
    return f"{number:08x}"


def drawn(*nodes: PictureNode, trunk: int | None = None, fold: bool = True) -> list[str]:
    rows = draw(nodes, trunk=None if trunk is None else _id(trunk), glyphs=ASCII, fold=fold)
    return [_shown(row) for row in rows]


def _shown(row: PictureRow) -> str:
    strokes = "".join(stroke for stroke, _ in row.strokes)
    if row.fan:
        return f"{strokes} {len(row.fan)}"
    behind = str(int(row.node.id, 16)) if row.node else f"+{len(row.folded)}" if row.folded else ""
    return f"{strokes} {behind}".rstrip()


def test_a_straight_history_stays_in_one_column() -> None:
    assert drawn(node(1), node(2, 1), node(3, 2)) == ["* 1", "* 2", "* 3"]


def test_the_older_child_branches_off_and_the_newest_line_goes_straight_on() -> None:
    assert drawn(node(1), node(2, 1), node(3, 1), node(4, 3)) == ["* 1", "|-* 2", "* 3", "* 4"]


def test_the_trunk_stays_in_the_first_column_even_if_a_branch_is_newer() -> None:
    assert drawn(node(1), node(2, 1), node(3, 1), trunk=2) == ["* 1", "|-* 3", "* 2"]


def test_the_line_of_the_program_goes_straight_on_and_what_was_forked_of_it_branches_off() -> None:
    lab = [node(i, i - 1 or None, program="lab") for i in (1, 2)]
    forks = [node(3, 2, program="left"), node(4, 2, program="right"), node(6, 4, program="right")]
    assert drawn(*lab, *forks, node(5, 2, program="lab")) == ["* 1", "* 2", "|-* 3", "|-* 4", "| * 6", "* 5"]


def test_no_fork_takes_the_place_of_a_program_that_was_not_saved_since() -> None:
    head = node(1, program="lab", labels=("lab",), live=("lab",))
    assert drawn(head, node(2, 1, program="left"), node(3, 1, program="right"), node(4, 3, program="right")) == [
        "* 1",
        "|-* 2",
        "`-* 3",
        "  * 4",
    ]


def test_a_line_that_goes_on_under_another_name_goes_straight_on() -> None:
    assert drawn(node(1, program="a"), node(2, 1, program="again")) == ["* 1", "* 2"]


def test_siblings_of_one_name_stand_in_the_order_of_their_numbers() -> None:
    saved = [("agent-10", 2), ("other", 3), ("agent-2", 4)]
    nodes = [node(number, 1, labels=(name,), program=name) for name, number in saved]
    assert drawn(node(1, program="agent", labels=("agent",)), *nodes) == ["* 1", "|-* 4", "|-* 2", "`-* 3"]


def test_a_fan_of_many_is_one_line_and_a_branch_that_goes_on_is_not_in_it() -> None:
    many = [node(10 + i, 1, labels=(f"agent-{i}",), program=f"agent-{i}") for i in range(1, FAN + 4)]
    further = node(40, 12, program="agent-2")
    root = node(1, program="agent", labels=("agent",))
    assert drawn(root, *many, further) == ["* 1", "|-* 11", "|-* 12", "| * 40", f"`-: {FAN + 1}"]
    assert len(drawn(root, *many, further, fold=False)) == len(many) + 2
    assert drawn(root, *many[:FAN]) == ["* 1", *[f"|-* {10 + i}" for i in range(1, FAN)], f"`-* {10 + FAN}"]


def test_a_branch_of_a_branch_keeps_the_lines_of_both() -> None:
    nodes = [node(1), node(2, 1), node(3, 2), node(4, 2), node(5, 1)]
    assert drawn(*nodes, trunk=5) == ["* 1", "|-* 2", "| |-* 3", "| * 4", "* 5"]


def test_a_snapshot_whose_parent_is_gone_begins_a_tree_of_its_own() -> None:
    assert drawn(node(2, 1), node(3), node(4, 3)) == ["* 2", "", "* 3", "* 4"], "a root is no child of the line above"


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
def test_every_snapshot_is_drawn_once_or_counted_in_a_fold(parents: list[int], trunk: int) -> None:
    nodes = [
        node(i, p or None if p < i else None, live=(f"l{i}",) if i % 5 == 0 else (), program=f"p-{i % 7}")
        for i, p in enumerate(parents, start=1)
    ]
    rows = list(draw(nodes, trunk=_id(trunk)))
    shown = [row.node.id for row in rows if row.node]
    assert len(shown) == len(set(shown))
    assert len(shown) + sum(len(row.folded) + len(row.fan) for row in rows) == len(nodes)
    apart = sum(n.parent is None for n in nodes) - 1 if nodes else 0
    assert len(list(draw(nodes, fold=False))) == len(nodes) + apart
    for row in rows:
        assert row.node is None or row.node.id in shown


def test_a_history_of_ten_thousand_is_drawn_without_recursion() -> None:
    chain = [node(1), *(node(i, i - 1) for i in range(2, 10_001))]
    assert len(drawn(*chain, fold=False)) == 10_000
    comb = [node(1)] + [node(i, i - (1 if i % 2 else 2)) for i in range(3, 8_001)]
    assert len([row for row in drawn(*comb, fold=False) if row]) == len(comb)
