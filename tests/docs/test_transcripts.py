"""What the pages have their readers type works, and prints what they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.transcripts import Reader, Step, new_reader, retyped, shape, shown, steps

ROOT = Path(__file__).resolve().parent.parent.parent
TYPED = [
    "README.md",
    "docs/guide.md",
    "docs/tutorials/notebook.md",
    "docs/tutorials/server.md",
    "docs/tutorials/agent.md",
    "docs/json.md",
    "docs/jupyter.md",
    "docs/remotes.md",
    "docs/security.md",
    *(f"docs/howto/{name}.md" for name in ("backup", "environments", "files", "retention", "uninstall")),
]
"""Pages that are typed from top to bottom, each in a home directory and a repository of its own."""

NOT_TYPED = {
    "CONTRIBUTING.md": "sets a checkout up, and runs the suites",
    "docs/gpu.md": "needs a GPU: tests/gpu",
    "docs/mcp.md": "a server for agents, which does not return: tests/mcp",
    "docs/places.md": "containers, and bases of whole machines: tests/places, tests/live/test_bases.py",
    "docs/serve.md": "a server that does not return: tests/serve",
    "docs/servers.md": "ports of this machine, which may be taken: tests/deployments",
    "docs/testing.md": "the suites themselves",
    "docs/howto/docker.md": "needs docker or podman: tests/places",
    "docs/howto/editors.md": "needs an editor; kernels as it starts them: tests/jupyter",
    "docs/howto/install.md": "installs: tests/places/test_wheels.py",
    "docs/howto/kubernetes.md": "needs a cluster; not tried, which it says",
    "docs/howto/systemd.md": "needs systemd as process 1; tried by hand",
}
"""Pages with commands, and why no test types them."""

COMMAND = re.compile(
    r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:sudo )?(?:ijfs|make|pip|docker|podman|kubectl|systemctl|git|\S*bin/\w+) "
)

PAGE = """\
<!-- file: ~/x.txt -->

    one
      two

Text.

    $ cat x.txt   # a comment
    one
      two
    $ echo 12.5 MB in 3 s, 0123456789ab
    1.1 kB in 44 s, cafe012345
    $ echo a; \\
    > echo b
    a
    b

<!-- run -->
    echo quiet
    false || true

More text.

<!-- typed: echo before -->

    not run: nobody says so
"""


def test_a_page_is_read_as_its_reader_reads_it(tmp_path: Path) -> None:
    found = list(steps(PAGE))
    assert found[0] == Step("file", "one\n  two\n", "~/x.txt")
    assert [step.text for step in found[1:]] == [
        "cat x.txt   # a comment",
        "echo 12.5 MB in 3 s, 0123456789ab",
        "echo a; \\\necho b",
        "echo quiet",
        "false || true",
        "echo before",
    ]
    reader = Reader(tmp_path, {})
    try:
        for step in found:
            printed = reader.do(step)
            assert step.output is None or shape(printed) == shape(step.output), printed
        with pytest.raises(AssertionError, match="exit code 1"):
            reader.do(Step("command", "false"))
    finally:
        reader.close()


def test_only_what_differs_from_run_to_run_is_no_matter() -> None:
    assert shape("lab runs in 12 ms  pid 7\n") == shape("lab runs in 1.5 s  pid 12345\n")
    assert shape("saved 3 files\n") != shape("saved 3 flies\n")
    assert shape("  50% of its memory is in, the rest follows (`ijfs ps`)\n") == []


def test_a_page_with_commands_is_typed_or_it_is_known_why_not() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    with_commands = {str(page.relative_to(ROOT)) for page in pages if any(map(COMMAND.match, shown(page.read_text())))}
    assert with_commands == {*TYPED, *NOT_TYPED}
    assert not set(TYPED) & set(NOT_TYPED)


@pytest.mark.root
@pytest.mark.criu
@pytest.mark.fuse
@pytest.mark.parametrize("page", TYPED)
def test_what_a_page_shows_can_be_typed(page: str) -> None:
    with new_reader() as reader:
        for step in steps((ROOT / page).read_text()):
            printed = reader.do(step)
            if step.output is not None:
                assert shape(printed) == shape(step.output), f"$ {step.text}\nprints now\n{printed}"


def test_a_page_is_typed_anew(tmp_path: Path) -> None:
    reader = Reader(tmp_path, {})
    try:
        assert retyped("Text.\n\n    $ echo one\n    two\n    $ echo 7\n    8\n\nMore.\n", reader) == (
            "Text.\n\n    $ echo one\n    one\n    $ echo 7\n    7\n\nMore.\n"
        )
    finally:
        reader.close()
