"""The first module of the console script and of `python -m ijfs.cli`: Ctrl-C during the imports ends it quietly.

Python's own handler raises wherever it is, with a traceback; `main` installs it again, once it can say what happened.
"""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Import the command line and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ijfs.cli.main import main as run

    run()
