"""Draws the repository's snapshots as plain text for a notebook cell. Called by magics.py."""

from __future__ import annotations

from typing import Any

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def draw_log(answer: dict[str, Any], *, now_ns: int) -> str:
    """One line a snapshot in the order given; `answer` is what the keeper says to "log"."""
    lines = [_line(snapshot, answer, now_ns) for snapshot in answer["snapshots"]]
    return "\n".join(lines) or "no snapshots yet: `%ijfs save` makes one"


def draw_tree(answer: dict[str, Any], *, now_ns: int) -> str:
    """Children below their first parent, oldest first; a snapshot whose parent was removed is a root."""
    snapshots = list(reversed(answer["snapshots"]))
    known = {snapshot["id"] for snapshot in snapshots}
    children: dict[str | None, list[dict[str, Any]]] = {}
    for snapshot in snapshots:
        parent = next((p for p in snapshot.get("parents", ()) if p in known), None)
        children.setdefault(parent, []).append(snapshot)
    # A stack of our own: histories are longer than Python's recursion limit.
    lines = []
    stack = [(root, "", "") for root in reversed(children.get(None, []))]
    while stack:
        snapshot, prefix, below = stack.pop()
        lines.append(prefix + _line(snapshot, answer, now_ns))
        stack.extend(reversed(_branches(children.get(snapshot["id"], []), below)))
    return "\n".join(lines) or "no snapshots yet: `%ijfs save` makes one"


def _branches(children: list[dict[str, Any]], below: str) -> list[tuple[dict[str, Any], str, str]]:
    """Each child with what stands before its line and before its own children's; an only child stays in its column."""
    if len(children) == 1:
        return [(children[0], below, below)]
    rows = [(child, below + "├─ ", below + "│  ") for child in children[:-1]]
    return rows + [(child, below + "└─ ", below + "   ") for child in children[-1:]]


def _line(snapshot: dict[str, Any], answer: dict[str, Any], now_ns: int) -> str:
    mark = "*" if snapshot["id"] == answer.get("here") else "o"
    names = sorted(
        name
        for refs in (answer.get("branches", {}), answer.get("tags", {}))
        for name, target in refs.items()
        if target == snapshot["id"]
    )
    label = f" ({', '.join(names)})" if names else ""
    message = " ".join(str(snapshot.get("message", "")).split())
    return f"{mark} {snapshot['id'][:12]}  {_age(snapshot, now_ns):>9}{label}  {message}".rstrip()


def _age(snapshot: dict[str, Any], now_ns: int) -> str:
    seconds = max(0, (now_ns - int(snapshot.get("created_ns", now_ns))) // 10**9)
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "just now"
