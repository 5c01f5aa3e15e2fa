"""One damaged repository and all that is done with it, in a child process that may die of it.

`run_case` forks; the child notes what it does in a file, so that one that ends by a signal says at what.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_seeds import Seed, contents_of, names_of
from storekit import save

from ijfs_engine import IjfsError, Repository, export_tree

LIMIT_S = 60.0
_MEMORY = 6 << 30
_FILE = 200 << 20
VERBS = (
    ("log",), ("tree",), ("branch",), ("stats",), ("show", "main"), ("ls", "-lR", "main"), ("du",), ("fsck", "--quick"),
    ("--json", "fsck"), ("diff", "main~1", "main"), ("gc", "--dry-run"), ("show", "v1"),
)  # fmt: skip
_CODES = (0, 1, 2, 3, 10, 11)


class Outcome(NamedTuple):
    """How a case ended: the steps' answers, and how the process did if it did not end by itself."""

    steps: dict[str, Any]
    died: str | None


def run_case(seed: Seed, path: Path, *, verbs: bool, mount: Path | None) -> Outcome:
    """Read, check, repair, read again, save, gc, read again; with `verbs` also the command line, before the repair."""
    notes = path.with_suffix(".notes")
    notes.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _limit(path)
            _Case(seed, path, notes).run(verbs=verbs, mount=mount)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    died = _wait(child)
    steps = json.loads(notes.read_text()) if notes.exists() else {}
    return Outcome(steps, died)


def _wait(child: int) -> str | None:
    end = time.monotonic() + LIMIT_S * float(os.environ.get("IJFS_TEST_PATIENCE", "1"))
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hung"
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return None if os.WEXITSTATUS(status) == 0 else f"exit code {os.WEXITSTATUS(status)}"


def _limit(path: Path) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
    errors = os.open(path.with_suffix(".stderr"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 2)


class _Case:
    """The child's side."""

    def __init__(self, seed: Seed, path: Path, notes: Path) -> None:
        self._seed = seed
        self._path = path
        self._notes = notes
        self._steps: dict[str, Any] = {}

    def run(self, *, verbs: bool, mount: Path | None) -> None:
        self._step("names", self._names)
        self._step("read", self._read)
        if verbs:
            for argv in VERBS:
                self._step("verb " + " ".join(argv), lambda argv=argv: self._verb(argv))  # type: ignore[misc]
            self._step("restore", self._restore)
        if mount is not None:
            self._step("mount", lambda: self._mount(mount))
        self._step("fsck", lambda: self._fsck(repair=False))
        self._step("repair", lambda: self._fsck(repair=True))
        self._step("names after", self._names)
        self._step("read after", self._read)
        self._step("fsck after", lambda: self._fsck(repair=False))
        self._step("save", self._save)
        self._step("gc", self._gc)
        self._step("read at last", self._read)
        self._note("end")

    def _step(self, name: str, do: Callable[[], object]) -> None:
        self._note(name)
        try:
            self._steps[name] = do()
        except IjfsError as error:
            self._steps[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
        except Exception as error:
            where = [f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)][
                -4:
            ]
            self._steps[name] = {"internal": f"{type(error).__name__}: {error}"[:200], "where": where}

    def _note(self, at: str) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        self._notes.write_text(json.dumps({**self._steps, "at": at, "memory": memory}))

    def _names(self) -> object:
        with Repository.open(self._path) as repository:
            return names_of(repository)

    def _read(self) -> object:
        with Repository.open(self._path) as repository:
            return contents_of(repository, sorted(self._seed.contents))

    def _fsck(self, *, repair: bool) -> object:
        with Repository.open(self._path, damaged=repair) as repository:
            report = repository.fsck(repair=repair)
        return {"damage": [f"{one.what}: {one.message}" for one in report.damage], "repaired": report.repaired}

    def _save(self) -> object:
        with Repository.open(self._path) as repository:
            save(repository, {"new": b"after the repair" * 1000}, branch="after")
            return repository.fsck().clean

    def _gc(self) -> object:
        with Repository.open(self._path) as repository:
            return repository.gc().freed

    def _restore(self) -> object:
        """What a restore does with files: the workspace of a snapshot onto a disk."""
        target = self._path.with_suffix(".export")
        shutil.rmtree(target, ignore_errors=True)
        with Repository.open(self._path) as repository:
            reader = repository.reader()
            root = repository.snapshot(repository.resolve("main")).root
            export_tree(reader, reader.lookup(root, "files").content or b"", target)
        return {str(path.relative_to(target)): _line(path) for path in sorted(target.rglob("*"))}

    def _verb(self, argv: tuple[str, ...]) -> object:
        from ijfs.cli.main import invoke

        out, errors = io.StringIO(), io.StringIO()
        sys.stdout, sys.stderr = out, errors
        try:
            code = invoke(["-r", str(self._path), *argv])
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        said = out.getvalue() + errors.getvalue()
        if code not in _CODES or "Traceback" in said or "unexpected" in said or "InternalError" in said:
            return {"internal": f"exit code {code}: {said[-200:]}", "where": [" ".join(argv)]}
        return code

    def _mount(self, where: Path) -> object:
        """Every file by the kernel, as far as it can be read."""
        from ijfs.fs.mountpoint import mount, umount

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


def _line(path: Path) -> str:
    return _digest(path) if path.is_file() and not path.is_symlink() else "other"


def _digest(path: Path) -> str:
    import hashlib

    data = path.read_bytes()
    return f"{len(data)} {hashlib.blake2b(data, digest_size=16).hexdigest()}"
