"""What a pager and its keeper tell each other over `channel`; each is a JSON object, some come with descriptors."""

from __future__ import annotations

from typing import Literal

import msgspec


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    pass


# -- pager → keeper


class Hello(_Message, frozen=True, kw_only=True):
    """First, from a pager that another process forked."""

    pid: int


class Hold(_Message, frozen=True, kw_only=True):
    """With descriptors: keep these until `Release`, hand them to a replacement."""

    id: int
    kind: Literal["space", "criu"]


class Release(_Message, frozen=True, kw_only=True):
    """Let go of what is held under this number."""

    id: int


class Resumed(_Message, frozen=True, kw_only=True):
    """CRIU says that the restore is complete: the program runs."""


class Progress(_Message, frozen=True, kw_only=True):
    """How far it is; `api.PagerStatus` says what the numbers are."""

    pages: int
    pages_in: int
    zero: int
    poisoned: int
    faults: int
    spaces: int
    seconds: float


class Complete(Progress, frozen=True, kw_only=True):
    """Everything is in; let go of what is held."""


class Poisoned(_Message, frozen=True, kw_only=True):
    """Pages that cannot be had."""

    pid: int
    vaddr: int
    pages: int
    reason: str


class Stalled(_Message, frozen=True, kw_only=True):
    """A place that should give bytes does not answer; it is tried again."""

    reason: str


class Lost(_Message, frozen=True, kw_only=True):
    """The userfaultfd of a child that `pid` forked went down with supervisor and worker."""

    pid: int


class Failed(_Message, frozen=True, kw_only=True):
    """The pager gives up before the restore is complete."""

    message: str


ToKeeper = Hello | Hold | Release | Resumed | Progress | Complete | Poisoned | Stalled | Lost | Failed


# -- keeper → pager


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bytes are, a directory of CRIU `images` or a `snapshot` (hex) of a `repo`, and how they come in."""

    images: str | None = None
    repo: str | None = None
    snapshot: str | None = None
    order: str | None = None
    """A file with a working set to replay. None: the repository's."""
    keep_in: str | None = None
    """A file to keep the working set in. None: the repository."""
    bulk: bool = False
    """All memory is wanted before anything else: a GPU's driver is about to read the whole of it."""
    rest_after_s: float = 0.0
    """Seconds, from the resume, in which only what faults and what is in the working set is brought in."""
    on_demand: bool = False
    """Memory that nobody touches comes when the keeper hurries, or is gone."""
    present: str | None = None
    """The file of `present`, which is there by the time CRIU hands its processes over, where there is any."""
    delay_s: float | None = None
    """Seconds to wait before each fetch (tests and benchmarks)."""


class Begin(_Message, frozen=True, kw_only=True):
    """What to do; with the listening lazy-pages.socket where CRIU has not connected yet."""

    source: Source
    account: str
    """The file of `account`, which is there already."""
    adopt: bool
    """This is a replacement: the things held follow."""


class Adopt(_Message, frozen=True, kw_only=True):
    """With the descriptors of one thing held, to a replacement."""

    id: int
    kind: Literal["space", "criu"]


class Adopted(_Message, frozen=True, kw_only=True):
    """That was all of them."""

    resumed: bool


class Hurry(_Message, frozen=True, kw_only=True):
    """All memory is wanted now, also where it was to come on demand."""


class Released(_Message, frozen=True, kw_only=True):
    """The answer to `Complete`."""


ToPager = Begin | Adopt | Adopted | Hurry | Released
Message = ToKeeper | ToPager
