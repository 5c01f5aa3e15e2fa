"""The screen of `ijfs top`: live programs above, the tree of their snapshots below, and keys."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, OptionList, Static
from textual.widgets.option_list import Option

from ijfs.cli import text, unsaved
from ijfs.cli.output import Span
from ijfs.cli.top import actions
from ijfs.cli.top.dialogs import Ask, Confirm
from ijfs.cli.top.samples import COLUMNS, Program, Sampler
from ijfs.cli.verbs.tree import STYLES
from ijfs.drawing import tree as drawing
from ijfs.drawing.tree import Drawn
from ijfs.history.scene import Scene
from ijfs.live.client.api import list_instances
from ijfs.live.client.watch import RepositoryWatch
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError

QUIET_S = 0.3
"""After something happened the tree waits so long for what happens next, and is read once."""


class TopScreen(App[None]):
    """Looks every so many seconds; the tree is read when something happened in the repository."""

    TITLE = "ijfs top"
    CSS = """
    #total { height: 1; padding: 0 1; }
    DataTable { height: auto; max-height: 50%; }
    OptionList { height: 1fr; border: none; border-top: solid $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "save", "Save"),
        Binding("z", "undo", "Undo"),
        Binding("f", "fork", "Fork"),
        Binding("x", "stop", "Stop"),
        Binding("t", "tag", "Tag"),
        Binding("tab", "app.focus_next", "Programs/tree"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, repository: Path, every: float) -> None:
        super().__init__()
        self._repository = repository
        self._every = every
        self._sampler = Sampler(repository)
        self._programs: list[Program] = []
        self._lines: list[Drawn] = []
        self._over = Event()
        self._watch: RepositoryWatch | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="total", markup=False)
        programs: DataTable[Text] = DataTable(cursor_type="row", id="programs")
        programs.add_columns(*(column.title for column in COLUMNS))
        yield programs
        tree = OptionList(id="tree")
        tree.border_title = "Snapshots: Enter goes back to one, f forks it, t tags it"
        yield tree
        yield Footer()

    def on_mount(self) -> None:
        """Look at once, then now and then; hear what happens."""
        self.run_worker(self._look_on, thread=True, group="looking")
        self.run_worker(self._listen, thread=True, group="listening")

    def on_unmount(self) -> None:
        """Let the threads end."""
        self._over.set()
        if self._watch is not None:
            self._watch.stop()

    # -- what is shown ----------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._over.is_set():
            self._told(self._show_programs, self._sampler.look())
            self._over.wait(self._every)

    def _listen(self) -> None:
        self._read_tree()
        with contextlib.suppress(IjfsError), RepositoryWatch(self._repository) as self._watch:
            for _ in self._watch:
                if self._over.wait(QUIET_S):
                    return
                self._read_tree()

    def _read_tree(self) -> None:
        live = [info for info in list_instances(self._repository) if info.status != "exited"]
        with contextlib.suppress(IjfsError), Repository.open(self._repository) as store:
            lines = drawing.picture_rows(Scene.of(store, live).drawn(), width=max(40, self.size.width - 4))
            self._told(self._show_tree, lines)

    def _told(self, show: Callable[..., None], *what: object) -> None:
        """From a thread: show it, unless the screen is gone."""
        if not self._over.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self.call_from_thread(show, *what)

    def _show_programs(self, programs: list[Program]) -> None:
        table = self._table
        chosen = self._chosen_program()
        self._programs = programs
        table.clear()
        for program in programs:
            table.add_row(*(_cell(span, column.right) for span, column in zip(program.row(), COLUMNS, strict=True)))
        if chosen is not None:
            names = [program.info.name for program in programs]
            table.move_cursor(row=names.index(chosen.info.name) if chosen.info.name in names else 0)
        self.query_one("#total", Static).update(_total(programs))

    def _show_tree(self, lines: list[Drawn]) -> None:
        tree = self._tree
        chosen = self._chosen_snapshot()
        self._lines = lines
        tree.clear_options()
        tree.add_options([Option(_line(drawn.line), disabled=drawn.snapshot is None) for drawn in lines])
        at = next((n for n, drawn in enumerate(lines) if drawn.snapshot and drawn.snapshot == chosen), None)
        tree.highlighted = at if at is not None else next((n for n, d in enumerate(lines) if d.snapshot), None)

    # -- what is chosen ---------------------------------------------------------------------------------------------

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#programs", DataTable)

    @property
    def _tree(self) -> OptionList:
        return self.query_one("#tree", OptionList)

    def _chosen_program(self) -> Program | None:
        at = self._table.cursor_row
        return self._programs[at] if at < len(self._programs) else None

    def _chosen_snapshot(self) -> str | None:
        at = self._tree.highlighted
        return self._lines[at].snapshot if at is not None and at < len(self._lines) else None

    # -- keys -------------------------------------------------------------------------------------------------------

    def action_save(self) -> None:
        """Save the chosen program."""
        program = self._chosen_program()
        if program is None:
            return
        name = program.info.name

        def answered(message: str | None) -> None:
            if message is not None:
                self._do(f"saving {name}", partial(actions.save, self._repository, name, message))

        self.push_screen(Ask(f"Save {name} with the message (may be empty):", needed=False), answered)

    def action_undo(self) -> None:
        """The chosen program goes back to its snapshot."""
        program = self._chosen_program()
        if program is not None:
            name = program.info.name
            self._do(f"{name} goes back", partial(actions.undo, self._repository, name))

    def action_fork(self) -> None:
        """A copy of the chosen program, or, in the tree, of the chosen snapshot."""
        program, snapshot = self._chosen_program(), self._chosen_snapshot()
        if self._tree.has_focus and snapshot is not None:
            self._do("forking", partial(self._fork_of, snapshot))
        elif program is not None:
            name = program.info.name
            self._do(f"forking {name}", partial(actions.fork, self._repository, name, name))

    def _fork_of(self, snapshot: str) -> str:
        return actions.fork(self._repository, snapshot, actions.program_in(self._repository, snapshot))

    def action_stop(self) -> None:
        """The chosen program ends, once that is confirmed."""
        program = self._chosen_program()
        if program is None:
            return
        name = program.info.name

        def answered(yes: bool | None) -> None:
            if yes:
                self._do(f"{name} ends", partial(actions.stop, self._repository, name))

        self.push_screen(Confirm(unsaved.question([program.info])), answered)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter, or a click, on a snapshot."""
        snapshot = self._lines[event.option_index].snapshot
        if snapshot is None:
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._do("going back", partial(self._go_back, snapshot))

        shown = snapshot[: text.SHORT_ID]
        self.push_screen(Confirm(f"Go back to {shown}? What its program is now is saved first."), answered)

    def _go_back(self, snapshot: str) -> str:
        return actions.go_back(self._repository, snapshot, actions.program_in(self._repository, snapshot))

    def action_tag(self) -> None:
        """Name the chosen snapshot."""
        snapshot = self._chosen_snapshot()
        if snapshot is None:
            return

        def answered(name: str | None) -> None:
            if name:
                self._do("tagging", partial(actions.tag, self._repository, snapshot, name))

        self.push_screen(Ask(f"A tag for {snapshot[: text.SHORT_ID]}:", needed=True), answered)

    def _do(self, going_on: str, act: Callable[[], str]) -> None:
        """In a thread, one thing at a time for each key; what became of it is said in the corner."""
        self.notify(f"{going_on} …")

        def work() -> None:
            try:
                self._told(partial(self.notify, act(), markup=False))
            except IjfsError as error:
                said = f"{error}{f' ({error.hint})' if error.hint else ''}"
                self._told(partial(self.notify, said, severity="error", markup=False))

        self.run_worker(work, thread=True, group="acting")


def _cell(span: Span, right: bool) -> Text:
    content, style = (span, "") if isinstance(span, str) else span
    return Text(content, style=style, justify="right" if right else "left")


def _line(pieces: Sequence[tuple[str, str]]) -> Text:
    return Text.assemble(*((content, STYLES.get(style, "")) for content, style in pieces), no_wrap=True)


def _total(programs: Sequence[Program]) -> str:
    """One line about all of them."""
    memory = sum(program.memory for program in programs)
    shares = [program.processor for program in programs if program.processor is not None]
    cpu = f", {100 * sum(shares):.0f}% of a processor" if shares else ""
    return f"{text.count(len(programs), 'live program')}: {text.size(memory)} of memory{cpu}"
