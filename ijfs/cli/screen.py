"""What a terminal's user sees of another one: bytes that are shown again, and the modes that have to be undone after.

Pure; called by `ijfs.cli.attached`.
"""

from __future__ import annotations

import re

# A terminal answers these. What was asked in the past must not be answered again: the answer would be typed.
_QUESTIONS = re.compile(
    rb"\x05|\x1bZ"  # ENQ, DECID
    rb"|\x1b\[[?>=!]?[\d;]*(?:\$p|[cnu])(?<!\x1b\[u)"  # device attributes, status reports, modes; not restore-cursor
    rb"|\x1b\[>\d*q|\x1b\[(?:1[1-9]|2[01])t"  # its version, the window's state
    rb"|\x1b\](?:\d+;)+\?(?:\x07|\x1b\\)"  # colours
    rb"|\x1bP[+$]q[^\x1b]*\x1b\\"  # capabilities, settings
)

_MODE = re.compile(rb"\x1b\[\?([\d;]+)([hl])")
_UNFINISHED = re.compile(rb"\x1b(?:\[[?\d;]*)?\Z")

# DEC private modes that a terminal has set when nothing is said.
_WRAPS, _CURSOR = 7, 25
_ALTERNATE = {47, 1047, 1049}


def shown_again(before: bytes, *, whole: bool) -> bytes:
    """What a terminal was sent, to be sent to another one; of a part, what follows its first line."""
    if not whole:
        before = before[before.find(b"\n") + 1 :]
    return _QUESTIONS.sub(b"", before)


class Modes:
    """Follows what is sent to a terminal, for what it has to be set back to when the one who sends it is left."""

    def __init__(self) -> None:
        self._set: dict[int, bool] = {}
        self._unfinished = b""

    @property
    def is_full_screen(self) -> bool:
        """Whether it shows the alternate screen, as editors do: the program has to draw that itself."""
        return any(self._set.get(mode) for mode in _ALTERNATE)

    def feed(self, data: bytes) -> None:
        """What was sent."""
        data = self._unfinished + data
        for match in _MODE.finditer(data):
            for number in match[1].split(b";"):
                if number:
                    self._set[int(number)] = match[2] == b"h"
        unfinished = _UNFINISHED.search(data)
        self._unfinished = unfinished[0] if unfinished else b""

    def undo(self) -> bytes:
        """What sets it back: modes, colours, the keypad; the alternate screen last, which brings the cursor back."""
        changed = [mode for mode, is_set in self._set.items() if is_set != (mode in (_WRAPS, _CURSOR))]
        changed.sort(key=lambda mode: mode in _ALTERNATE)
        back = b"".join(b"\x1b[?%d%c" % (mode, b"h" if mode in (_WRAPS, _CURSOR) else b"l") for mode in changed)
        self._set.clear()
        return back + b"\x1b[0m\x1b>" if back else b""
