"""One damaged repository and all that is done with it, by a process that may die of it (fuzz_worker.py)."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from blake3 import blake3
from fuzz_seeds import Seed, contents_of, exported, names_of
from fuzz_worker import Note
from storekit import save

from ijfs_engine import IjfsError, Repository

VERBS: Final = (
    ("log",), ("tree",), ("branch",), ("stats",), ("show", "main"), ("ls", "-lR", "main"), ("du",), ("fsck", "--quick"),
    ("--json", "fsck"), ("diff", "main~1", "main"), ("gc", "--dry-run"), ("show", "v1"),
)  # fmt: skip
_CODES: Final = (0, 1, 2, 3, 10, 11)
_LOCKS: Final = "lock.mdb"
"""LMDB's: whoever reads writes his number there."""


class Ways(NamedTuple):
    """What a case does beside what every case does."""

    verbs: bool = False
    """The command line, before the repair."""
    export: bool = False
    """Every snapshot onto a disk, as an export and a restore do, before the repair and after it."""
    mount: Path | None = None
    """Every file by the kernel."""
    save: bool = True
    """A save, gc and another look also where the repair changed nothing."""
    collect: bool = True
    """gc after that save."""
    all_again: bool = False
    """Each look by itself, also where nothing was written since."""


class Outcome(NamedTuple):
    """How a case ended: the steps' answers, and how the process did if it did not end by itself."""

    steps: dict[str, Any]
    died: str | None


class Case:
    """Read, check, repair, read again, save, gc, read again."""

    def __init__(self, seed: Seed, path: Path, ways: Ways, note: Note) -> None:
        self._seed = seed
        self._path = path
        self._ways = ways
        self._note = note
        self._steps: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """What came of each step."""
        _forget_peak()
        before = len(os.listdir("/proc/self/fd"))
        self._look("names", "read")
        self._look_otherwise()
        if self._ways.all_again:
            self._step("fsck", lambda: self._fsck(repair=False))
        changed = self._repair()
        if changed or self._ways.save:
            self._save_and_collect()
        if self._ways.export:
            self._step("export at last", self._export)
        self._steps |= {"memory": _peak_mb(), "left open": len(os.listdir("/proc/self/fd")) - before}
        return self._steps

    def _repair(self) -> bool:
        """Whether it changed a byte. What was seen before would be seen again, if not."""
        before = _digest_of(self._path)
        self._step("repair", lambda: self._fsck(repair=True))
        self._steps.setdefault("fsck", self._steps["repair"])  # what it says was wrong before
        changed = _digest_of(self._path) != before
        if changed or self._ways.all_again:
            self._look("names after", "read after")
            self._step("fsck after", lambda: self._fsck(repair=False))
        else:
            for name, again in (("names after", "names"), ("read after", "read"), ("fsck after", "fsck")):
                self._steps[name] = self._steps[again]
        return changed

    def _save_and_collect(self) -> None:
        self._step("save", self._save)
        if self._ways.collect:
            self._step("gc", self._gc)
        self._look("names at last", "read at last")

    def _look_otherwise(self) -> None:
        for argv in VERBS if self._ways.verbs else ():
            self._step("verb " + " ".join(argv), lambda argv=argv: self._verb(argv))  # type: ignore[misc]
        if self._ways.export:
            self._step("export", self._export)
        where = self._ways.mount
        if where is not None:
            self._step("mount", lambda: self._mount(where))

    def _step(self, name: str, do: Callable[[], object]) -> None:
        self._note(name)
        try:
            self._steps[name] = do()
        except IjfsError as error:
            self._steps[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
        except Exception as error:
            where = [f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)]
            self._steps[name] = {"internal": f"{type(error).__name__}: {error}"[:200], "where": where[-4:]}

    def _look(self, names: str, read: str) -> None:
        """All names, and all that can be read, in one go."""
        repository: list[Repository] = []

        def opened() -> object:
            repository.append(Repository.open(self._path))
            return names_of(repository[0])

        self._step(names, opened)
        if repository:
            with repository[0]:
                self._step(read, lambda: contents_of(repository[0], sorted(self._seed.contents)))
        else:
            self._steps[read] = self._steps[names]

    def _fsck(self, *, repair: bool) -> object:
        with Repository.open(self._path, damaged=repair) as repository:
            report = repository.fsck(repair=repair)
        return {"damage": [f"{one.what}: {one.message}" for one in report.damage], "repaired": report.repaired}

    def _save(self) -> object:
        with Repository.open(self._path) as repository:
            save(repository, {"new": b"after the repair" * 1000}, branch="after")
            return repository.fsck(data=self._ways.all_again).clean

    def _gc(self) -> object:
        with Repository.open(self._path) as repository:
            return repository.gc().freed

    def _export(self) -> object:
        """By snapshot: what an export of it left on the disk, and whether it came to its end."""
        target = self._path.with_suffix(".export")
        with Repository.open(self._path) as repository:
            return {ident: exported(repository, ident, target) for ident in sorted(self._seed.contents)}

    def _verb(self, argv: tuple[str, ...]) -> object:
        from ijfs.cli.main import invoke

        out, errors = io.StringIO(), io.StringIO()
        kept = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = out, errors
        try:
            code = invoke(["-r", str(self._path), *argv])
        finally:
            sys.stdout, sys.stderr = kept
        said = out.getvalue() + errors.getvalue()
        if code not in _CODES or "Traceback" in said or "unexpected" in said or "InternalError" in said:
            return {"internal": f"exit code {code}: {said[-200:]}", "where": [" ".join(argv)]}
        return code

    def _mount(self, where: Path) -> object:
        """Every file by the kernel, as far as it can be read."""
        from ijfs.fs.mountpoint import mount, umount

        where.mkdir(exist_ok=True)
        mount(self._path, where)
        try:
            found: dict[str, dict[str, str]] = {}
            for ident in self._seed.contents:
                top = where / "snapshots" / ident
                found[ident] = {}
                for folder, _, files in os.walk(top):
                    for name in files:
                        path = Path(folder, name)
                        if path.is_file() and not path.is_symlink():
                            try:
                                found[ident][f"/{path.relative_to(top)}"] = _digest(path)
                            except OSError:
                                continue
            return found
        finally:
            umount(where)


def _digest(path: Path) -> str:
    data = path.read_bytes()
    return f"{len(data)} {blake3(data).hexdigest(16)}"


def _digest_of(folder: Path) -> bytes:
    """Of every name and byte below a directory."""
    whole = blake3()
    for here, directories, files in os.walk(folder):
        directories.sort()
        for name in sorted(files):
            if name != _LOCKS:
                data = Path(here, name).read_bytes()
                whole.update(f"{here}/{name} {len(data)} ".encode() + data)
    return whole.digest()


def _forget_peak() -> None:
    """Have the kernel begin anew with this process's greatest size."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak_mb() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM:"))
