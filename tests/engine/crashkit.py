"""Runs one operation on a repository and dies at a chosen step: the child process of test_crash.py.

    crashkit.py REPOSITORY OPERATION STEP

STEP counts the writes, fsyncs, truncates, renames, unlinks and commits that go through `ijfs_engine.storage.disk`; at
that one the process kills itself with SIGKILL, a write half done. STEP 0 runs to the end and prints how many there are.
Before it ends it writes down, in REPOSITORY.unsynced, which files had bytes or names that were not synced.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

from criu_images import image_set
from storekit import put, put_against, save

from ijfs_engine import Repository, Snapshot
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import Entry, Tree, encode_tree
from ijfs_engine.maintenance import compact_journal
from ijfs_engine.storage import disk, session
from ijfs_engine.storage.session import Session

KEEP = {"kept": random.Random(1).randbytes(30_000), "also": random.Random(2).randbytes(5000)}
NEXT = {"kept": KEEP["kept"], "new": random.Random(3).randbytes(60_000)}
_MEMORY = random.Random(6).randbytes(300 * 4096)
BEFORE = image_set({7: {0x7F00_0000_0000: _MEMORY}})
AFTER = image_set(
    {7: {0x7F00_0000_0000: _MEMORY[:9000] + b"changed" + _MEMORY[9007:], 0x7F10_0000_0000: _MEMORY[:8192]}}
)
FILES = {"text": b"some text\n" * 900, "data": random.Random(8).randbytes(40_000), "empty": b""}


class Fuse:
    """Counts steps, remembers what is not durable, and burns through at one of them."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self.count = 0
        self.durable: dict[str, int] = {}
        self.unnamed: set[str] = set()
        self.died = ""

    def __call__(self, step: disk.Step) -> None:
        self.count += 1
        if self.count == self.step:
            self.died = f"{step.op} {Path(step.path).suffix or Path(step.path).name}"
            if step.op == "write" and step.data is not None and len(step.data) >= 8192:
                # Half of it: whole blocks, as O_DIRECT wants.
                os.pwrite(step.fd, step.data[: len(step.data) // 2 & ~4095], step.offset)
            self.tell()
            os.kill(os.getpid(), signal.SIGKILL)
        match step.op:
            case "create":
                self.durable[step.path] = 0
                self.unnamed.add(step.path)
            case "write":
                self.durable.setdefault(step.path, step.offset)
            case "fsync":
                self.durable[step.path] = os.fstat(step.fd).st_size
            case "rename":
                # `disk.write_file`: what was synced under the other name counts.
                self.durable[step.path] = self.durable[temporary_of(step.path)]
            case "fsync_dir":
                self.unnamed = {path for path in self.unnamed if os.path.dirname(path) != step.path}

    def tell(self) -> None:
        """Write down what is not durable."""
        state = {"durable": self.durable, "unnamed": sorted(self.unnamed), "died": self.died}
        self.path.with_suffix(".unsynced").write_text(json.dumps(state))


def lose_power(path: Path) -> None:
    """Cut every file back to what was synced, and drop names that were not."""
    state = json.loads(path.with_suffix(".unsynced").read_text())
    for name, size in state["durable"].items():
        if os.path.exists(name) and os.path.isfile(name) and os.path.getsize(name) > size:
            os.truncate(name, size)
    for name in state["unnamed"]:
        Path(name).unlink(missing_ok=True)


def temporary_of(path: str) -> str:
    """Where `disk.write_file` writes first."""
    whole = Path(path)
    return str(whole.with_name(f".{whole.name}.{os.getpid()}.new"))


def prepare(path: Path, operation: str) -> tuple[Snapshot, Snapshot]:
    """A repository with something to lose: two branches, garbage from a removed snapshot, a sparse pack; for an import
    its parent as well."""
    with Repository.init(path) as repository:
        first = save(repository, KEEP, branch="main", message="first")
        big = save(repository, {**KEEP, "big": random.Random(4).randbytes(200_000)}, branch="big")
        stay, go = random.Random(5).randbytes(9000), random.Random(9).randbytes(50_000)
        mixed = save(repository, {"b": stay, "go": go}, branch="mixed")
        second = save(repository, {"b": stay}, parents=[first.id], branch="side")
        repository.remove_many([big.id, mixed.id])
        if operation == "import":
            bring(repository, BEFORE, [], "before")
        if operation == "gc":
            make_heavy(repository)
        for _ in range(20) if operation == "compact" else ():
            repository.refs.set_tag("t", first.id)
            repository.refs.delete_tag("t")
    return first, second


def make_heavy(repository: Repository) -> None:
    """For gc: a pack of large frames that is half dead, a difference whose base only it needs, and text that packs
    better when it takes its time."""
    large = [random.Random(20 + number).randbytes(200_000) for number in range(4)]
    base, change = large[3], random.Random(30).randbytes(100_000)
    with repository.session() as session:
        ids = [put(session, one) for one in large]
        before = commit_chunks(session, ids, "heavy")
    with repository.session() as session:
        ids[3] = put_against(session, change + base[100_000:], base, ids[3])
        commit_chunks(session, ids[2:], "heavy")
    repository.remove(before.id)
    words = random.Random(40)
    text = b"".join(
        words.choice((b"import", b"return", b"self", b" ")) + b"%x" % words.getrandbits(8) for _ in range(30_000)
    )
    with repository.begin() as writer:
        writer.add_file("text", text)
        writer.commit(branch="text")


def commit_chunks(session: Session, ids: list[bytes], branch: str) -> Snapshot:
    """A snapshot of files that are a chunk of 200,000 bytes each."""
    entries = [Entry(b"%d" % at, "f", 0o644, 0, 0, 0, size=200_000, content=one) for at, one in enumerate(ids)]
    root = session.put_object(FrameKind.TREE, encode_tree(Tree(tuple(entries))))
    return session.commit_snapshot(root, branch=branch)


def bring(repository: Repository, images: dict[str, bytes], parents: list[bytes], message: str) -> Snapshot:
    """What import and save do: a process's images, against its parent's, and a directory of files."""
    # Beside the repository, where the parent that kills this process finds it.
    folder = repository.path.with_suffix(".folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with repository.begin(parents) as writer:
        for name, data in FILES.items() if parents else ():
            (folder / name).write_bytes(data)
        writer.add_images("images", images)
        writer.add_directory("files", folder)
        return writer.commit(message=message, branch="program")


def operate(repository: Repository, operation: str) -> None:
    """One operation that changes the repository."""
    match operation:
        case "import":
            bring(repository, AFTER, [repository.resolve("program")], "after")
        case "save":
            save(repository, NEXT, parents=[repository.resolve("main")], branch="main", message="next")
        case "rm":
            repository.remove(repository.resolve("side"))
        case "gc":
            repository.gc(recompress=True)
        case "tag":
            repository.refs.set_tag("v1", repository.resolve("main"))
        case "compact":
            compact_journal.SMALL, compact_journal.NEWEST = 0, 2
            compact_journal.compact_journal(repository)
        case "rebuild" | "mend":
            repository.fsck(repair=True)


def main(path: Path, operation: str, step: int) -> None:
    """See the module."""
    with Repository.open(path, damaged=operation == "rebuild") as repository:
        fuse = Fuse(path, step)
        # A save of this size would put its rows into the index at once.
        session._SLICE = 4
        disk.observer = fuse
        operate(repository, operation)
        disk.observer = None
        fuse.tell()
    print(fuse.count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
