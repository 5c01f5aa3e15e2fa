"""The program's side of the guest port: how a program inside a sandbox speaks to its keeper.

Called by programs through `import ijfs` and by the `%ijfs` magics; docs/architecture.md has the protocol.
Standard library only and of ijfs only the drawing: it runs in whatever Python the program brought, from 3.9 on.
"""

from __future__ import annotations

import os

from ijfs.guest.acts import Forked, fork, undo
from ijfs.guest.hooks import after_restore, barrier, before_save
from ijfs.guest.port import ENVIRONMENT_VARIABLE, GUEST_PORT, GuestError, in_sandbox
from ijfs.guest.saving import SaveResult, save
from ijfs.guest.secrets import Secret, secret

PYTHON_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "path")
"""The directory the keeper puts in front of a program's PYTHONPATH, so that `import ijfs` works there."""

TORCH_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_path")
"""The same for GPU programs, so that torch gives cached blocks back before a save without a line of code."""

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "GUEST_PORT",
    "PYTHON_PATH",
    "TORCH_PATH",
    "Forked",
    "GuestError",
    "SaveResult",
    "Secret",
    "after_restore",
    "barrier",
    "before_save",
    "fork",
    "in_sandbox",
    "save",
    "secret",
    "undo",
]
