"""What the pages have their readers type works, and prints what they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.transcripts import Reader, Step, new_reader, retyped, shape, steps

ROOT = Path(__file__).resolve().parent.parent.parent
TYPED = [
    "README.md",
    "docs/guide.md",
    "docs/tutorials/notebook.md",
    "docs/tutorials/server.md",
    "docs/tutorials/agent.md",
    "docs/json.md",
    "docs/jupyter.md",
    *(f"docs/howto/{name}.md" for name in ("backup", "files", "retention", "uninstall")),
]
"""Pages that are typed from top to bottom, each in a home directory and a repository of its own."""

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
