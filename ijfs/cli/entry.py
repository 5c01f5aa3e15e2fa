"""The first module of the console script and of `python -m ijfs.cli`: what a signal does during the imports.

Python's own handler of Ctrl-C raises wherever it is, with a traceback, and SIGTERM would end it without a word. `main`
installs others, once it can say what happened.
"""

import os
import signal
from types import FrameType
from typing import NoReturn


def too_early(number: int, frame: FrameType | None) -> None:
    """Say that nothing was begun, and end by the signal."""
    os.write(2, b"ijfs: ended by a signal before anything was begun\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main() -> NoReturn:
    """Import the command line and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, too_early)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, too_early)
    from ijfs.cli.main import main as run

    run()
