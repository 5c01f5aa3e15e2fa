"""What of a terminal's output is shown again, the modes that are undone, and the keys that leave it. Pure."""

from __future__ import annotations

import pytest

from ijfs.cli.detach_keys import DetachKeys, bytes_of
from ijfs.cli.screen import Modes, shown_again

QUESTIONS = (
    b"\x1b[6n\x1b[c\x1b[>c\x1b[>0q\x1b[?u\x1b[?2026$p\x1b]11;?\x07\x1b]4;1;?\x1b\\\x1bP+q544e\x1b\\\x1b[18t\x05\x1bZ"
)


def test_what_a_terminal_would_answer_is_not_asked_again() -> None:
    assert shown_again(b"a" + QUESTIONS + b"b", whole=True) == b"ab"


def test_what_is_no_question_is_shown_as_it_was() -> None:
    drawn = b"\x1b[2J\x1b[31mred\x1b[u\x1b[s\x1b]0;title\x07\x1b[?25l\x1b[1;5r\x1b[3;4H\x1b[8;24;80t"
    assert shown_again(drawn, whole=True) == drawn


def test_a_part_begins_with_a_line() -> None:
    assert shown_again(b"1mhalf\r\nwhole\r\n", whole=False) == b"whole\r\n"


@pytest.mark.parametrize("cut", range(1, 9))
def test_modes_are_undone_wherever_the_output_was_cut(cut: int) -> None:
    modes = Modes()
    sent = b"\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?2004l"
    for at in range(0, len(sent), cut):
        modes.feed(sent[at : at + cut])
    assert modes.is_full_screen
    assert modes.undo() == b"\x1b[?25h\x1b[?1049l\x1b[0m\x1b>"
    assert modes.undo() == b""


def test_keys_are_found_wherever_the_typing_was_cut() -> None:
    keys = DetachKeys(bytes_of("ctrl-p,ctrl-q"))
    assert keys.feed(b"ab\x10") == (b"ab", False)
    assert keys.feed(b"\x10x") == (b"\x10\x10x", False)
    assert keys.feed(b"c\x10") == (b"c", False)
    assert keys.feed(b"\x11rest") == (b"", True)


@pytest.mark.parametrize(
    ("text", "sent"), [("ctrl-],x", b"\x1dx"), ("ctrl-@", b"\x00"), ("CTRL-A", b"\x01"), ("~,.", b"~.")]
)
def test_keys_are_written_as_docker_writes_them(text: str, sent: bytes) -> None:
    assert bytes_of(text) == sent


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-1", "ab", "a,", "ctrl-p ctrl-q", "é"])
def test_what_is_no_list_of_keys_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no list of keys"):
        bytes_of(text)
