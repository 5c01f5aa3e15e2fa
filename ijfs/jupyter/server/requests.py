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
