"""What a program may say to ijfs about itself: `ijfs.save()`, hooks, `%load_ext ijfs`.

Meant for programs and notebooks that run in a sandbox (`ijfs run`, a kernel installed by `ijfs kernel
install`). Imports the standard library only, and that lazily: every `ijfs` command line passes here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ijfs.guest import GuestError, SaveResult, after_restore, barrier, before_save, in_sandbox, save

__all__ = [
    "GuestError",
    "SaveResult",
    "after_restore",
    "barrier",
    "before_save",
    "in_sandbox",
    "load_ipython_extension",
    "save",
    "unload_ipython_extension",
]


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext ijfs` calls: adds the `%ijfs` magic to an IPython shell."""
    from ijfs.guest.magics import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """What `%unload_ext ijfs` calls: takes the `%ijfs` magic away again."""
    from ijfs.guest.magics import unload

    unload(shell)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ijfs' has no attribute {name!r}")
    import ijfs.guest

    return getattr(ijfs.guest, name)


def __dir__() -> list[str]:
    return sorted(__all__)
