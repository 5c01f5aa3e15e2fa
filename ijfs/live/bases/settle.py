"""Which base a program starts on: what was asked for, what this place needs, what there is; made where it is missing.

Called by client/api.py before a start, so that whoever waits sees the progress and an interrupt is an interrupt. Where
`/` is an overlay (in a container) the default is the base of this machine's own root: imported by itself the first
time, and kept up to date: small changes are copied into the new program's writable layer (delta.py), large ones are
imported.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ijfs.drawing.words import count
from ijfs.live.bases.records import DEFAULT, NONE
from ijfs.live.model.protocol import BytesDone, Event, Notice, PhaseBegan
from ijfs.live.model.records import Base
from ijfs.live.sandbox.volumes import is_layered, kind_at
from ijfs_engine.errors import PreflightError

OnEvent = Callable[[Event], None]

ROOT = Path("/")


class Settled(NamedTuple):
    """What a start is asked for: the base (None: this machine's files), and what of it is not as the machine is now."""

    base: Base | None
    delta: dict[str, list[str]] | None = None


@contextlib.contextmanager
def settled(
    repo: Path, wish: str, cwd: str, on_event: OnEvent | None, *, before: Base | None = None
) -> Iterator[Settled]:
    """The base for a start; it is not swept while the context is open, and afterwards the instance's record names it.
    `before` is what an ended instance stood on that begins anew: it stays on that, but for this machine's own root.

    UnknownNameError for a name that no base has; PreflightError where no base can be had and one is needed.
    """
    needed = is_layered(kind_at(ROOT))
    kept = before is not None and not (needed and before.name == DEFAULT)
    if not kept and (wish == NONE or not (wish or needed)):
        yield Settled(None)
        return
    _require_volume(repo)
    from ijfs.live.bases import cache
    from ijfs_engine import Repository

    with cache.in_use(repo), Repository.open(repo) as repository:
        chosen = _Chooser(repository, on_event)
        if before is not None and kept:
            found = chosen.kept(before)
        else:
            found = chosen.named(wish) if wish else chosen.of_this_machine(Path(cwd))
        repository.close()
        yield found


def _require_volume(repo: Path) -> None:
    kind = kind_at(repo)
    if is_layered(kind):
        raise PreflightError(
            f"refused before anything was touched: the repository {repo} lies on {kind}, on which no sandbox can stand",
            hint="give the container a volume (`-v` of docker and podman, an emptyDir in Kubernetes) and keep the "
            "repository there (-r, or IJFS_REPO); docs/places.md",
        )


class _Chooser:
    """One choice."""

    def __init__(self, repository: Any, on_event: OnEvent | None) -> None:
        self._repository = repository
        self._on_event = on_event or (lambda event: None)

    def kept(self, base: Base) -> Settled:
        """A base by its snapshot."""
        from ijfs.live.bases import cache

        snapshot = self._repository.snapshot(bytes.fromhex(base.snapshot))
        found, _ = cache.materialised(self._repository, snapshot, base.name, self._progress)
        return Settled(found)

    def named(self, name: str) -> Settled:
        """A base as it was imported."""
        from ijfs.live.bases import cache
        from ijfs.live.bases.versions import newest

        snapshot = newest(self._repository, name)
        base, _ = cache.materialised(self._repository, snapshot, name, self._progress)
        return Settled(base)

    def of_this_machine(self, cwd: Path) -> Settled:
        """This machine's root, as it is now."""
        from ijfs.live.bases import cache
        from ijfs.live.bases.records import head_tag

        ident = self._repository.refs.tags().get(head_tag(DEFAULT))
        found = self._with_delta(ident, cwd) if ident is not None else None
        if found is not None:
            return found
        with cache.importing(self._repository.path):
            ident = self._repository.refs.tags().get(head_tag(DEFAULT))
            found = self._with_delta(ident, cwd) if ident is not None else None
            return found or self._imported()

    def _with_delta(self, ident: bytes, cwd: Path) -> Settled | None:
        """The newest version and what is different; None where it should be imported (again)."""
        from ijfs.live.bases import cache, delta

        table = cache.read_table(self._repository.path, ident.hex())
        if table is None or table.root != str(ROOT):
            return None
        try:
            found = delta.look(table, [cwd, Path("/etc")])
        except delta.TooDifferent:
            return None
        base, _ = cache.materialised(self._repository, self._repository.snapshot(ident), DEFAULT, self._progress)
        return Settled(base, delta.packed(found) if found else None)

    def _imported(self) -> Settled:
        from ijfs.live.bases import cache
        from ijfs.live.bases.importing import import_base

        self._on_event(PhaseBegan("import base"))
        imported = import_base(self._repository, ROOT, DEFAULT, progress=self._progress)
        began = time.monotonic()
        base, _ = cache.materialised(self._repository, imported.snapshot, DEFAULT, self._progress)
        laid_out_s = time.monotonic() - began
        size = imported.snapshot.size or 0
        text = (
            f"`/` is an overlay here, so programs stand on a copy of it, the base `{DEFAULT}`: "
            f"{count(imported.files, 'file')}, {size / 1e6:.0f} MB, imported in {imported.seconds:.1f} s and laid "
            f"out in {laid_out_s:.1f} s ({imported.stored_bytes / 1e6:.0f} MB stored)"
        )
        self._on_event(Notice(text))
        return Settled(base)

    def _progress(self, phase: str, done: int, total: int) -> None:
        self._on_event(BytesDone(phase, done, total))
