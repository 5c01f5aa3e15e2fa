"""The first module of the console script and of `python -m ijfs.cli`: what a signal does during the imports.

Python's own handler of Ctrl-C raises wherever it is, with a traceback, and SIGTERM would end it without a word. `main`
installs others, once it can say what happened.
"""

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from ijfs import __version__

YOUNG = 50_000
"""Objects until the collector looks for circles: a short command makes fewer, and Python's 700 cost it 6 ms."""


def version_line() -> str:
    """What `ijfs --version` prints."""
    return f"ijfs {__version__}"


def too_early(number: int, frame: FrameType | None) -> None:
    """Say that nothing was begun, and end by the signal."""
    os.write(2, b"ijfs: ended by a signal before anything was begun\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main() -> NoReturn:
    """Import the command line and run it; `--version` alone is answered before that."""
    gc.set_threshold(YOUNG)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, too_early)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, too_early)
    if sys.argv[1:] == ["--version"] and _said(version_line()):
        sys.exit(0)
    from ijfs.cli.main import main as run

    run()


def _said(line: str) -> bool:
    """Whether standard output took a line. (Where it does not, the command line says why.)"""
    try:
        return sys.stdout is not None and os.write(sys.stdout.fileno(), f"{line}\n".encode()) > len(line)
    except OSError:
        return False
