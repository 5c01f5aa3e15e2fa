"""The first moment of a program that was just started or restored: whether it ended in it, and with what last words.

Without a look, `ijfs run -- python wrong-name.py` says "runs" of a program that is gone. Called by the verbs `run` and
`restore`.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ijfs.cli.app import App

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo


class Look(NamedTuple):
    """How long a program is looked at, in seconds: in any case, and as long as it computes or waits for the disk."""

    always_s: float
    busy_s: float


RUN = Look(0.3, 1.0)
"""A Python that does not find its script ends after 0.03 s, one that fails at an import after 0.1 or 0.2. What still
computes then is coming up; what waits for something is up, so that a start that is fine does not take longer."""

RESTORE = Look(0.1, 0.1)
"""A program that its restore does not agree with ends at its first look at the world."""

# How often it is looked at.
SLICE_S = 0.1
# How long its keeper may take to write down how it ended: some 10 ms on a quiet machine.
WRITTEN_S = 5.0
# Of the log.
LAST_LINES, LAST_BYTES = 5, 4096

DIED = 13


def ended(app: App, info: InstanceInfo, look: Look) -> InstanceInfo | None:
    """The instance as it ended, where it did within that time; warns of it, with the end of its log. None: it runs."""
    from ijfs.live.client import api as client

    if info.status != "running" or info.pid is None or not ends(info.pid, look):
        return None
    deadline = time.monotonic() + WRITTEN_S
    while (now := client.describe(app.repository_path, info.name)).status != "exited":
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)
    how = f"with exit status {now.exit_status}" if now.exit_status is not None else "and nobody saw how"
    how += f": it {now.note}" if now.oom_kills and now.note else ""
    words = last_words(now.log)
    app.warn(f"`{info.name}` has ended already, {how}" + (f"; its last words: {words}" if words else ""))
    return now


def exit_code(found: InstanceInfo | None) -> int:
    """Of the verb: a program that ended well is none of its failures."""
    return DIED if found is not None and found.exit_status != 0 else 0


def ends(pid: int, look: Look) -> bool:
    """Whether a program ends while it is looked at."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return True
    began = time.monotonic()
    try:
        while (now := time.monotonic() - began) < look.always_s or (now < look.busy_s and _is_busy(pid)):
            if select.select([pidfd], [], [], SLICE_S)[0]:
                return True
        return False
    finally:
        os.close(pidfd)


def _is_busy(pid: int) -> bool:
    """Whether any process of the program computes, or waits for the disk."""
    from ijfs.live.process import procfs

    return any(procfs.state(member) in ("R", "D") for member in (pid, *procfs.descendants(pid)))


def last_words(log: str) -> str:
    """The last lines that a program wrote; "" where there are none."""
    with contextlib.suppress(OSError), Path(log).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = deque(file.read().decode(errors="replace").splitlines(), LAST_LINES)
        return "\n".join(lines).strip()
    return ""
