"""What `ijfs top` asks, in the middle of the screen."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label

_STYLE = """
{name} {{ align: center middle; }}
{name} Vertical {{ width: 70%; max-width: 72; height: auto; padding: 1 2; border: round $accent; }}
{name} Vertical {{ background: $surface; }}
"""


class Ask(ModalScreen[str | None]):
    """A line of text; Escape gives up."""

    CSS = _STYLE.format(name="Ask")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, question: str, *, needed: bool) -> None:
        super().__init__()
        self._question = question
        self._needed = needed

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._question, markup=False)
            yield Input()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter: that is the answer, unless there has to be one."""
        if event.value or not self._needed:
            self.dismiss(event.value)


class Confirm(ModalScreen[bool]):
    """Yes or no; anything but `y` is no."""

    CSS = _STYLE.format(name="Confirm")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape,enter,q", "dismiss(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._question, markup=False)
            yield Label("y yes · n no")
