"""What every IPython kernel in a sandbox is started with: an IPython extension (live/sandbox/sandbox.py names it)."""

from typing import Any

from ijfs.guest import copies, leaving


def load_ipython_extension(shell: Any) -> None:
    """Have copies draw random numbers of their own, and `exit` lose nothing. A second load changes nothing."""
    copies.watch(shell)
    leaving.watch(shell)
