"""What the panel may ask: each request a class, its fields what comes in a query or in a body of JSON.

A field that is missing has its default, one that is not known is ignored. `kernel`: a kernel's id in this server.
`path`: a notebook's, as the contents API has it. `repository`: where it is not that of the kernel.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is about."""

    kernel: str = ""
    path: str = ""
    repository: str = ""


class Info(Request, frozen=True):
    """What the extension is."""


class Tree(Request, frozen=True):
    """The picture of a repository; `notebook`: the trees alone that this kernel's program or notebook made."""

    scope: Literal["all", "notebook"] = "all"
    fold: bool = False


class Status(Request, frozen=True):
    """How a kernel stands."""


Document = dict[str, Any]
"""A notebook, as nbformat's JSON."""


class Save(Request, frozen=True):
    """Save a kernel's program, with the notebook as the browser has it. Without `wait` the answer comes at the thaw."""

    message: str = ""
    document: Document | None = None
    wait: bool = True
    verify: bool = False


class Give(Request, frozen=True):
    """The notebook as the browser has it, which a `document` event asked for; `ticket` is the event's text."""

    ticket: str
    document: Document


class Input(Request, frozen=True):
    """What somebody types for a cell that waits for it."""

    value: str


Busy = Literal["refuse", "interrupt", "force"]
"""What becomes of a cell that runs when its kernel goes back: nothing, and neither does the kernel; it is interrupted;
it is left behind."""


class Restore(Request, frozen=True):
    """Have a kernel go back in place. `save_first`: what it leaves is saved, with `document`."""

    snapshot: str
    save_first: bool = True
    document: Document | None = None
    busy: Busy = "refuse"


class Undo(Request, frozen=True):
    """Have a kernel go back to before its last cell. What it leaves is saved, with `document`."""

    document: Document | None = None
    busy: Busy = "refuse"


class Tag(Request, frozen=True):
    """Give a snapshot a tag; `force` takes it from another."""

    snapshot: str
    name: str
    force: bool = False


class Untag(Request, frozen=True):
    """Remove a tag."""

    name: str


class Rename(Request, frozen=True):
    """Give a branch another name, or a snapshot without a branch one."""

    name: str
    branch: str = ""
    snapshot: str = ""


class Delete(Request, frozen=True):
    """Remove snapshots; `dry_run` says only what would come back."""

    snapshots: tuple[str, ...]
    dry_run: bool = False


class Adopt(Request, frozen=True):
    """Take home the files that a snapshot's program wrote. `choice`: what counts where both have changed."""

    snapshot: str
    paths: tuple[str, ...] = ()
    dry_run: bool = False
    choice: Literal["", "ours", "theirs"] = ""


class DocumentOf(Request, frozen=True):
    """The notebook that was stored with a snapshot."""

    snapshot: str


class Compare(Request, frozen=True):
    """What differs between two snapshots. `new` may be `live`: the kernel as it is now, with `document`, the notebook
    as the browser has it. `parts`: of cells, files and variables, those that are asked for, with commas."""

    old: str
    new: str = "latest"
    parts: str = "cells,files"
    document: Document | None = None


class Fork(Request, frozen=True):
    """A copy of a kernel, or of a snapshot, as the kernel of a copy of the notebook at `path`. `document`: the notebook
    as the browser has it. `name`: what the copy is for."""

    snapshot: str = ""
    document: Document | None = None
    name: str = ""
    message: str = ""


class Offer(Request, frozen=True):
    """What a reopened notebook can go on with."""


class Resume(Request, frozen=True):
    """Go on with a snapshot, or with a live program."""

    snapshot: str = ""
    instance: str = ""
