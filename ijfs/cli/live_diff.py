"""What a program did since its last snapshot, as `ijfs diff NAME` shows it: files, and a Python kernel's variables.

Its memory is not compared: that would be to stop it and read all of it, which is what a save does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ijfs.cli import patches
from ijfs.cli.bounded import bounded
from ijfs.history.comparison import FileChange
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.cli.app import App
    from ijfs.live.client.written import Written
    from ijfs_engine import Reader, Repository, Snapshot


_MOST_LOOKED_AT = 20_000
"""Files that nobody wants to wait for when a program is ended: a fifth of a second."""


class Unsaved(NamedTuple):
    """What no snapshot has of a program. `old`: what it stands on; `cut`: there are more files than are listed."""

    old: Snapshot | None
    live: bool
    files: list[FileChange]
    texts: dict[str, str]
    cut: bool


def is_program(app: App, name: str) -> bool:
    """Whether an instance, live or ended, has that name."""
    from ijfs.live.client.files import has_files

    return has_files(app.repository_path, name)


def unsaved(app: App, name: str, *, patched: bool) -> Unsaved:
    """The files of a program beside those of the snapshot that it stands on; nothing is said of a snapshot that is
    gone but that all files are new. NoInstanceError, OSError."""
    from ijfs.history import unsaved as now_and_then
    from ijfs.live.client.written import written

    repository = app.repository()
    reader = repository.reader()
    with written(app.repository_path, name) as now:
        old = _stands_on(repository, now)
        found = now_and_then.files(reader, old.root if old else None, now)
        files, cut = bounded(found, lambda change: change.path)
        texts = {change.path: _patch(reader, old, now, change) for change in files} if patched else {}
    files.sort(key=lambda change: change.path)
    return Unsaved(old, now.live, files, {path: patch for path, patch in texts.items() if patch is not None}, cut)


def has_written(app: App, name: str) -> bool:
    """Whether a live program has files that its snapshot has not; yes, where that cannot be told, or not soon."""
    from ijfs.history import unsaved as now_and_then
    from ijfs.live.client.written import written

    repository = app.repository()
    try:
        with written(app.repository_path, name) as now:
            old = _stands_on(repository, now)
            return now_and_then.any_file(repository.reader(), old.root if old else None, now, _MOST_LOOKED_AT)
    except (IjfsError, OSError):
        return True


def _stands_on(repository: Repository, now: Written) -> Snapshot | None:
    try:
        return repository.snapshot(repository.resolve(now.snapshot)) if now.snapshot else None
    except IjfsError:  # removed
        return None


def _patch(reader: Reader, old: Snapshot | None, now: Written, change: FileChange) -> str | None:
    """None for what is no regular file on either side."""
    from ijfs.history import unsaved as now_and_then

    most = patches.largest(change.path)
    before = patches.stored(reader, old.root, change.path) if old is not None else None
    after = now_and_then.content(now, change.path, most) if change.new_size is not None else None
    return patches.patch(change.path, before, after) if before is not None or after is not None else None


def variables(app: App, old: str | None, new: str) -> list[dict[str, Any]]:
    """A Python kernel's variables then and now; `new` is a live kernel or, with `old`, a snapshot. Snapshots are asked
    through copies that live for that moment. NotLiveError, CellTimeoutError."""
    from ijfs.jupyter import variables as asked

    repo = app.repository_path
    after = asked.of_program(repo, new) if is_program(app, new) else asked.of_snapshot(repo, new)
    before = asked.of_snapshot(repo, old) if old is not None else []
    return [pair for pair in asked.compared(before, after) if pair["change"] != "same"]
