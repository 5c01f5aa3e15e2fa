"""What people read says "program" for what the code calls an instance, in messages, help and the pages for users."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ijfs.cli.main import VERBS, cli

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = sorted(path for room in ("ijfs", "engine") for path in (ROOT / room).rglob("*.py"))
NOT_A_SENTENCE = re.compile(r"[^\s`]*")
INSTANCE = re.compile(r"\binstances?\b(?!\.json)")
PAGES = [ROOT / "README.md", ROOT / "docs/faq.md", *(ROOT / "docs/tutorials").glob("*.md")]
PAGES += [*(ROOT / "docs/howto").glob("*.md"), *(ROOT / "docs" / f"{name}.md" for name in ("guide", "gpu", "places"))]


def sentences(module: Path) -> Iterator[str]:
    """Strings of a module that are no docstrings, names or keys; of an f-string, what stands between its values."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    bodies = [node.body for node in nodes if isinstance(getattr(node, "body", None), list)]  # type: ignore[attr-defined]
    notes = {id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr)}
    for node in nodes:
        said = node.value if isinstance(node, ast.Constant) and id(node) not in notes else None
        if isinstance(said, str) and not NOT_A_SENTENCE.fullmatch(said):
            yield said


@pytest.mark.parametrize("room", ["ijfs", "engine"])
def test_messages_speak_of_programs(room: str) -> None:
    found = [(str(m), said) for m in MODULES if m.is_relative_to(ROOT / room) for said in sentences(m)]
    assert len(found) > 100
    assert [(m, said) for m, said in found if INSTANCE.search(said)] == []


def helps(command: click.Command, context: click.Context) -> Iterator[str]:
    """The help of a verb and of the verbs below it."""
    yield command.get_help(context)
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        below = command.get_command(context, name)
        assert below is not None
        yield from helps(below, click.Context(below, info_name=name, parent=context))


def test_help_speaks_of_programs() -> None:
    found = list(helps(cli, click.Context(cli, info_name="ijfs")))
    assert len(found) > len(VERBS)
    assert [line for said in found for line in said.splitlines() if INSTANCE.search(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_for_users_speak_of_programs(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if INSTANCE.search(line)] == []
