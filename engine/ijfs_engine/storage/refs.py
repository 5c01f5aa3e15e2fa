"""Refs: branches and tags, names that point at snapshots, and the log of who moved them when and why.

`Repository.refs` is one; sessions and rm move branches through `move_ref` inside their own transactions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, NamedTuple, TypeVar

from ijfs_engine.errors import ConflictError, IjfsError, UnknownNameError
from ijfs_engine.format.records import ObjectId
from ijfs_engine.format.row import RowStruct, misshapen
from ijfs_engine.storage.index import REFLOG, REFS, SNAPSHOTS, Index, Update
from ijfs_engine.storage.journal import Journal, Record, RefMoved, Transaction, decode_record, encode_record

T = TypeVar("T")

NOT_HERE: Final = "`ijfs log` lists snapshots; what a remote alone has `ijfs pull` brings here"
_LOG_KEY: Final = RowStruct(">QH")
_MAX_NAME: Final = 200
_PUNCTUATION: Final = "._-+@="


class _Any:
    """The type of `ANY`."""


ANY: Final = _Any()
"""As `expect`: wherever the ref is, and whether or not it exists."""


class RefChange(NamedTuple):
    """One line of the log. `name` is `branch/NAME` or `tag/NAME`; `old` is None when made, `new` when deleted."""

    sequence: int
    time_ns: int
    name: str
    old: ObjectId | None
    new: ObjectId | None
    why: str
    who: str


def set_aside_why(branch: str) -> str:
    """What the log says of a branch that `Refs.set_aside` made."""
    return f"{branch} went back"


class Refs:
    """The branches and tags of one repository."""

    def __init__(self, index: Index, journal: Journal) -> None:
        self._index = index
        self._journal = journal

    def branches(self) -> dict[str, ObjectId]:
        """Every branch and its head, by name."""
        return self._named("branch/")

    def tags(self) -> dict[str, ObjectId]:
        """Every tag and its snapshot, by name."""
        return self._named("tag/")

    def set_branch(self, name: str, ident: ObjectId, *, expect: ObjectId | _Any | None = ANY, why: str = "") -> None:
        """Point a branch at a snapshot, if it is at `expect` (None: absent). ConflictError, UnknownNameError."""
        self._move(branch_key(name), ident, expect, why or "branch")

    def set_tag(self, name: str, ident: ObjectId, *, expect: ObjectId | _Any | None = None, why: str = "") -> None:
        """The same for a tag, which by default must be new: tags are promises."""
        self._move(tag_key(name), ident, expect, why or "tag")

    def delete_branch(self, name: str, *, expect: ObjectId | _Any = ANY, why: str = "") -> None:
        """Drop a branch; gc then frees what only it reached. UnknownNameError, ConflictError."""
        self._move(branch_key(name), None, expect, why or "delete")

    def delete_tag(self, name: str, *, expect: ObjectId | _Any = ANY, why: str = "") -> None:
        """Drop a tag. UnknownNameError, ConflictError."""
        self._move(tag_key(name), None, expect, why or "delete")

    def set_aside(self, branch: str, head: ObjectId) -> str:
        """Give what a branch leaves behind a branch of its own, whose name nobody chose: `NAME.1`, `NAME.2`, …; that
        name. ConflictError, UnknownNameError."""
        names = self.branches()
        number = next(n for n in range(1, len(names) + 2) if f"{branch}.{n}" not in names)
        self.set_branch(f"{branch}.{number}", head, expect=None, why=set_aside_why(branch))
        return f"{branch}.{number}"

    def log(self, name: str | None = None) -> list[RefChange]:
        """Every change, newest first; of one `branch/NAME` or `tag/NAME`, or of a bare name of either kind."""
        with self._index.read() as view:
            rows = list(view.items(REFLOG))
        changes = [change for change in map(_change, rows) if change is not None]
        wanted = {name, f"branch/{name}", f"tag/{name}"}
        return [change for change in reversed(changes) if name is None or change.name in wanted]

    def _named(self, prefix: str) -> dict[str, ObjectId]:
        with self._index.read() as view:
            rows = list(view.prefixed(REFS, prefix.encode()))
        return {ref_name(key)[len(prefix) :]: value for key, value in rows}

    def _move(self, key: bytes, new: ObjectId | None, expect: ObjectId | _Any | None, why: str) -> None:
        def change(update: Update) -> None:
            old = update.get(REFS, key)
            _check_expected(key, old, expect)
            if new is None and old is None:
                raise UnknownNameError(f"there is no {_shown(key)}")
            if new is not None and update.get(SNAPSHOTS, new) is None:
                raise UnknownNameError(f"there is no snapshot {new.hex()[:12]}", hint=NOT_HERE)
            if new != old:
                log_records(update, self._journal, [move_ref(update, key, old, new, why)])

        write_logged(self._index, self._journal, change)


def branch_key(name: str) -> bytes:
    """The REFS key of a branch; IjfsError for a name that cannot be one."""
    return b"branch/" + _checked(name, "branch")


def tag_key(name: str) -> bytes:
    """The REFS key of a tag; IjfsError for a name that cannot be one."""
    return b"tag/" + _checked(name, "tag")


def ref_name(key: bytes) -> str:
    """A REFS key as text. CorruptError."""
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise misshapen() from error


def is_ref_key(key: bytes) -> bool:
    """Whether the bytes can be a REFS key."""
    kind, _, name = key.partition(b"/")
    try:
        return kind in (b"branch", b"tag") and _checked(name.decode(), "name") == name
    except (UnicodeDecodeError, IjfsError):
        return False


def move_ref(update: Update, key: bytes, old: ObjectId | None, new: ObjectId | None, why: str) -> RefMoved:
    """Change the row; the record for the journal."""
    if new is None:
        update.delete(REFS, key)
    else:
        update.put(REFS, key, new)
    return RefMoved(ref_name(key), old, new, why, whoami())


def log_records(update: Update, journal: Journal, records: Sequence[Record]) -> None:
    """Write records to the journal, and those about refs to the log as well."""
    log_transaction(update, journal.append(update, records))


def write_logged(index: Index, journal: Journal, change: Callable[[Update], T]) -> T:
    """`Index.write` for a change that logs records. If it fails, as on a full disk, its line goes from the journal at
    once: who writes next would take it for what a crash left, and do what was said not to have been done."""
    try:
        return index.write(change)
    except BaseException:
        with contextlib.suppress(IjfsError, OSError):
            index.write(journal.settle)
        raise


def log_transaction(update: Update, transaction: Transaction) -> None:
    """Put a journal transaction's ref records into the log."""
    for position, record in enumerate(transaction.records):
        if isinstance(record, RefMoved):
            key = _LOG_KEY.pack(transaction.sequence, position)
            update.put(REFLOG, key, encode_record(transaction.time_ns, record))


@cache
def whoami() -> str:
    """user@host, for the log."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.geteuid())
    return f"{user}@{os.uname().nodename}"


def _change(row: tuple[bytes, bytes]) -> RefChange | None:
    sequence, _ = _LOG_KEY.unpack(row[0])
    time_ns, record = decode_record(row[1])
    if not isinstance(record, RefMoved):
        return None
    return RefChange(sequence, time_ns, record.name, record.old, record.new, record.why, record.who)


def _check_expected(key: bytes, old: ObjectId | None, expect: ObjectId | _Any | None) -> None:
    if isinstance(expect, _Any) or old == expect:
        return
    if expect is None and old is not None:
        raise ConflictError(f"{_shown(key)} exists already, at {old.hex()[:12]}")
    where = f"at {old.hex()[:12]}" if old is not None else "gone"
    raise ConflictError(f"{_shown(key)} is {where}, not where it was expected")


def _shown(key: bytes) -> str:
    kind, _, name = ref_name(key).partition("/")
    return f"{kind} {name}"


def _checked(name: str, what: str) -> bytes:
    """Names are file names in a mount and words on a command line: no slash, blank, `~` or control character."""
    encoded = name.encode(errors="replace")
    looks_like_id = len(name) == 64 and all(digit in "0123456789abcdef" for digit in name)
    sound = name and (name[0].isalnum() or name[0] == "_")
    if not sound or len(encoded) > _MAX_NAME or not all(c.isalnum() or c in _PUNCTUATION for c in name):
        hint = (
            f"use letters, digits and {_PUNCTUATION}, beginning with a letter, a digit or _, at most {_MAX_NAME} bytes"
        )
        raise IjfsError(f"{name!r} cannot be the name of a {what}", hint=hint)
    if name == "latest" or looks_like_id:
        raise IjfsError(f"{name!r} cannot be the name of a {what}: it means something already")
    return encoded
