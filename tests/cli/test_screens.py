"""What the eye sees: the screens that people look at most, at three widths, against files that show them.

`IJFS_WRITE_SCREENS=1 pytest tests/cli/test_screens.py` writes the files anew; look at the difference before it is
committed. Colours are left out here: what they mean is in ijfs.drawing, and that HTML can be read on light and dark
pages is computed below.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import time
from pathlib import Path

import pytest

import ijfs
from ijfs.cli import instances
from ijfs.cli.app import App
from ijfs.cli.main import cli
from ijfs.cli.output import Answer, Printer
from ijfs.drawing import tree
from ijfs.drawing.layout import FAN
from ijfs.drawing.render import _COLOURS, as_html, as_text
from ijfs.drawing.tree import LiveProgram, Scene, Snap
from ijfs.live.model.records import InstanceInfo, RelayPort

SCREENS = Path(__file__).parent / "screens"
NOW = 1_800_000_000 * 10**9


def same_as_the_file(name: str, shown: str) -> None:
    """Compare a screen with its file, or write it."""
    path = SCREENS / f"{name}.txt"
    if os.environ.get("IJFS_WRITE_SCREENS"):
        path.write_text(shown + "\n")
    assert path.read_text() == shown + "\n", name


def snap(number: int, parent: int | None, ago_s: int, message: str, program: str, **more: object) -> Snap:
    """A snapshot whose id is the number, written out."""
    parents = (ident(parent),) if parent else ()
    sizes = {"size": 196_000_000 + number * 7_000_000, "added": 84_000_000 if parent is None else 300_000 * number}
    return Snap(ident(number), parents, NOW - ago_s * 10**9, message, program, **{**sizes, **more})  # type: ignore[arg-type]


def ident(number: int) -> str:
    return f"{number * 0x1D3F5B79A1:016x}"[-10:] + "0" * 54


def two_ideas() -> Scene:
    """The guide's repository: an original with two forks, and an import that has nothing to do with them."""
    snapshots = [
        snap(9, None, 1, "what criu wrote, byte for byte", "", size=44_900_000, branches=("plain-criu",)),
        snap(7, 3, 2, "linear baseline", "lab", branches=("lab",)),
        snap(6, 3, 3, "boosting, depth 6, with a message that says more than a narrow terminal has room for", "boost"),
        snap(5, 4, 5, "forest, 400 trees", "forest", branches=("forest",)),
        snap(4, 3, 8, "forest, 200 trees", "forest"),
        snap(3, 2, 60, "two ideas", "lab"),
        snap(2, 1, 200, "outliers capped", "lab", tags=("clean",)),
        snap(1, None, 7200, "four million rides loaded", "lab"),
    ]
    live = [LiveProgram("lab", ident(7)), LiveProgram("forest", ident(5), 0.11), LiveProgram("new")]
    return Scene("~/.local/share/ijfs", snapshots, live, 91_000_000)


def attempts(count: int = 16) -> Scene:
    """An agent and its attempts, most of them live."""
    made = [
        snap(10 + i, 1, 100 - i, f"attempt {i}", f"agent-{i}", branches=(f"agent-{i}",)) for i in range(1, count + 1)
    ]
    root = snap(1, None, 3600, "fork of agent", "agent", branches=("agent",))
    live = [LiveProgram("agent", ident(1)), *(LiveProgram(f"agent-{i}", ident(10 + i)) for i in range(1, count + 1))]
    return Scene("/srv/agents", [*reversed(made), root], live, 40_000_000)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tree_fits_the_terminal(width: int) -> None:
    lines = tree.picture(two_ideas(), width=width, now_ns=NOW)
    same_as_the_file(f"tree-{width}", as_text(lines))
    assert max(len(line) for line in as_text(lines).splitlines()) <= width


def test_the_tree_in_a_pipe_cuts_nothing() -> None:
    same_as_the_file("tree-pipe", as_text(tree.picture(two_ideas(), now_ns=NOW)))


def test_the_tree_in_ascii_has_nothing_else() -> None:
    shown = as_text(tree.picture(two_ideas(), unicode=False, now_ns=NOW))
    same_as_the_file("tree-ascii", shown)
    assert shown.isascii()


def test_sixteen_attempts_are_one_line_until_all_are_asked_for() -> None:
    same_as_the_file("tree-fan", as_text(tree.picture(attempts(), width=80, now_ns=NOW)))
    assert (
        len(tree.picture(attempts(), width=80, fold=False, now_ns=NOW))
        == len(tree.picture(attempts(), now_ns=NOW)) + 15
    )
    assert FAN < 16


def test_where_am_i_is_marked_and_in_a_page_nothing_is_executed() -> None:
    scene = Scene("/r", [snap(1, None, 5, "<script>alert(1)</script>\x1b[2J", "lab")], here=ident(1))
    lines = tree.picture(scene, now_ns=NOW)
    assert as_text(lines).splitlines()[-1].startswith("@ ")
    page = as_html(lines)
    assert "<script" not in page
    assert "\x1b" not in page + as_text(lines)
    same_as_the_file("tree-html", page)


def info(name: str, ago_s: int, **more: object) -> InstanceInfo:
    """A running program that began so long ago."""
    fields = {
        "name": name,
        "kind": "command",
        "status": "running",
        "argv": ("python", "serve.py"),
        "cwd": "/",
        "pid": 540,
    }
    created = time.time_ns() - ago_s * 10**9
    return InstanceInfo(**{**fields, "created_ns": created, "snapshot": ident(ago_s % 90 + 1), **more})  # type: ignore[arg-type]


def programs() -> list[InstanceInfo]:
    """Some of each kind, none of them so young that its age changes while it is looked at."""
    hour = 3600
    long = (
        "python",
        "-m",
        "uvicorn",
        "service.app:application",
        "--host",
        "127.0.0.1",
        "--port",
        "8000",
        "--workers",
        "1",
    )
    return instances.by_name(
        [
            info("agent-10", 5 * hour + 60),
            info("agent-2", 7 * hour + 60, memory=0.11),
            info("lab", 9 * hour + 60, kind="kernel", connection={"kernel_name": "python3"}, pid=29051),
            info("serve", 30 * hour + 60, argv=long, relay=(RelayPort("tcp8000", 8000, 39453),), pid=1234567),
            info("job", 31 * hour + 60, status="exited", exit_status=1, pid=None),
        ]
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_ps_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    instances.table(Printer(stream), programs())
    stream.seek(0)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.read())
    lines = [line.rstrip() for line in shown.splitlines()]
    same_as_the_file(f"ps-{width}", "\n".join(lines))
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [20, 60, 80, 120])
def test_facts_in_a_row_fit_the_terminal_and_are_one_line_in_a_pipe(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = ["frozen 62 ms", "saved in 351 ms", "196 MB of memory, 928 B of files", "84.0 MB stored"]

    def lines() -> list[str]:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        Printer(stream).facts(facts)
        stream.seek(0)
        return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in stream.read().splitlines()]

    assert lines() == ["  " + " · ".join(facts)]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    assert " · ".join(line.strip() for line in lines()) == " · ".join(facts)
    assert max(map(len, lines())) <= max(width, len("  196 MB of memory, 928 B of files"))
    assert len(lines()) == {20: 4, 60: 2, 80: 2, 120: 1}[width]


def on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    """What a verb shows at that width, ids and ages made alike."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    answers: list[Answer] = []
    app = App(listener=answers.append)
    with app.closing, cli.make_context("ijfs", list(argv), obj=app) as context:
        cli.invoke(context)
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        assert answers[0].show is not None
        answers[0].show(Printer(stream))
    stream.seek(0)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.read())
    shown = re.sub(r"[0-9a-f]{64}", "0123456789" * 6 + "0123", shown)
    shown = re.sub(r"\b[0-9a-f]{10}\b", "0123456789", shown)
    shown = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}  \(.*\)", "2026-01-31 14:05:09 +0000  (now)", shown)
    return "\n".join(line.rstrip() for line in shown.splitlines())


@pytest.fixture
def three(repo: Path) -> Path:
    """Three snapshots of a program's files, each with something that only it has."""
    from ijfs_engine import Repository

    meta = {
        "spec": {"name": "lab", "kind": "kernel", "kernel_name": "python3", "argv": ["python"], "cwd": "/root/rides"}
    }
    with Repository.open(repo) as repository:
        parents: list[bytes] = []
        for number, message in enumerate(
            ("loaded", "outliers capped", "linear baseline, and what follows from it all")
        ):
            with repository.begin(parents) as writer:
                noise = hashlib.shake_256(b"%d" % number).digest(70_000 * (number + 1))
                writer.add_file("files/root/rides/data", hashlib.shake_256(b"all").digest(300_000) + noise)
                parents = [writer.commit(message=message, branch="lab", meta=meta).id]
        repository.refs.set_tag("clean", repository.resolve("lab~1"))
    return repo


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("verb", ["du", "show"])
def test_what_a_verb_shows_fits_the_terminal(
    three: Path, monkeypatch: pytest.MonkeyPatch, verb: str, width: int
) -> None:
    shown = on_a_terminal(width, monkeypatch, verb)
    # What frames take differs by a few bytes with the ids in them.
    same_as_the_file(f"{verb}-{width}", re.sub(r" *\b\d[\d.]* (k|M)?B\b", " SIZE", shown))
    assert max(len(line) for line in shown.splitlines() if not line.startswith("snapshot ")) <= width


@pytest.mark.parametrize("room", ["drawing", "guest"])
def test_what_runs_inside_programs_is_written_for_their_python(room: str) -> None:
    for path in (Path(ijfs.__file__).parent / room).rglob("*.py"):
        ast.parse(path.read_text(), filename=str(path), feature_version=(3, 9))


def test_every_phase_has_words_of_the_users() -> None:
    from ijfs.cli.progress import Reporter

    save, load = Reporter("save lab", visible=False), Reporter("import", visible=False)
    assert save.words("ingest") == "runs again; storing"
    assert load.words("ingest") == "reading and storing"
    assert Reporter("fsck", visible=False).words("fsck: packs") == "reading every byte"
    assert save.words("of another version") == "of another version"


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("style", sorted(name for name, css in _COLOURS.items() if "#" in css))
def test_colours_of_a_page_can_be_read_on_white_and_on_black(style: str) -> None:
    own = _luminance(re.search(r"#[0-9a-f]{6}", _COLOURS[style])[0])  # type: ignore[index]
    on_white, on_black = 1.05 / (own + 0.05), (own + 0.05) / 0.05
    assert min(on_white, on_black) >= 2.9, (on_white, on_black)
