"""Repositories written by earlier versions stay readable: one per format, made once and never made again.

`golden/v1` was written by the first version of format 1 (packs, journal, format and secret; no index: that is built).
It holds every kind of frame the store knew then; `golden/v1-numbers` has the codec that came after, and
`golden/v2-encrypted` is the first that was encrypted. If a test here
fails, the format has changed: give it a new version.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptkit import given
from storekit import contents, put, put_against, save

from ijfs_engine import Repository, wrap_for_passphrase
from ijfs_engine.format.frames import Codec, chunk_id
from ijfs_engine.format.place import Place
from ijfs_engine.storage import key_files, refs
from ijfs_engine.storage.index import CHUNKS, OBJECTS, SIDECARS

GOLDEN = Path(__file__).parent / "golden" / "v1"
NUMBERS = GOLDEN.with_name("v1-numbers")
ENCRYPTED = GOLDEN.with_name("v2-encrypted")

BASE = random.Random(1).randbytes(4096)
NEAR = BASE[:500] + b"changed" + BASE[507:]
TEXT = b"the same words again and again, " * 128
FLOATS = b"".join(struct.pack("<f", 1.0 + random.Random(number).random() / 8) for number in range(1024))
FILES = {
    "empty": b"",
    "raw": BASE,
    "text": TEXT,
    "floats": FLOATS,
    "large": BASE + bytes(8192) + TEXT + FLOATS + TEXT[:100],
}


PRICES = {
    "doubles": b"".join(struct.pack("<d", random.Random(number).randrange(100_000) / 100) for number in range(2048)),
    "counts": b"".join(struct.pack("<q", random.Random(number).randrange(100)) for number in range(2048)),
}


def make_numbers(path: Path) -> None:
    """How the second one was made."""
    refs.whoami = lambda: "somebody@somewhere"  # type: ignore[assignment]
    with Repository.init(path) as repository:
        save(repository, PRICES, branch="main", message="prices")
    shutil.rmtree(path / "index")


def make_encrypted(path: Path) -> None:
    """How that of version 2 was made."""
    refs.whoami = lambda: "somebody@somewhere"  # type: ignore[assignment]
    key_files.MEMORY_KIB, key_files._PASSES = 64, 1  # type: ignore[misc]
    with Repository.init(path, way_in=lambda ring: wrap_for_passphrase(ring, "main", "golden")) as repository:
        first = save(repository, FILES, branch="main", message="first")
        with repository.session() as session:
            put_against(session, NEAR, BASE, put(session, BASE))
            save(repository, {"near": NEAR}, parents=[first.id], branch="main", message="second", session=session)
        repository.refs.set_tag("v1", first.id, why="golden")
    shutil.rmtree(path / "index")


def make(path: Path) -> None:
    """How the golden repository was made."""
    refs.whoami = lambda: "somebody@somewhere"  # type: ignore[assignment]
    with Repository.init(path) as repository:
        first = save(repository, FILES, branch="main", message="first")
        with repository.session() as session:
            put_against(session, NEAR, BASE, put(session, BASE))
            session.put_sidecar(session.put_object(2, bytes(8)), b"fingerprints")
            second = save(
                repository, {"near": NEAR}, parents=[first.id], branch="main", message="second", session=session
            )
        third = save(repository, {"gone": b"gone"}, parents=[second.id], branch="side", message="third")
        repository.refs.set_tag("v1", first.id, why="golden")
        repository.remove(third.id)
    shutil.rmtree(path / "index")


@contextmanager
def mended(golden: Path, path: Path) -> Iterator[Repository]:
    """A copy of what is kept, with the index that packs and journal make."""
    shutil.copytree(golden, path)
    with Repository.open(path, damaged=True) as repository:
        repository.fsck(repair=True)
        assert repository.fsck().clean
        yield repository


def test_format_1_stays_readable(tmp_path: Path) -> None:
    with mended(GOLDEN, tmp_path / "repo") as repository:
        heads = repository.refs.branches()
        assert heads["main"] == heads["side"] == repository.resolve("main")
        assert contents(repository, repository.resolve("v1")) == FILES
        assert contents(repository, repository.resolve("main")) == {"near": NEAR}
        assert repository.resolve("main~1") == repository.resolve("v1")
        assert [one.message for one in repository.snapshots()] == ["second", "first"]
        assert {one.who for one in repository.refs.log()} == {"somebody@somewhere"}
        with repository.index.read() as view:
            codecs = {Place.decode(row).tag for _, row in view.items(CHUNKS)}
            kinds = {Place.decode(row).tag for _, row in view.items(OBJECTS)}
            assert view.count(SIDECARS) == 1
        assert codecs >= {Codec.RAW, Codec.ZSTD, Codec.PLANES}
        assert kinds >= {2, 3, 5, 6}
        assert repository.store.chunk_info([chunk_id(NEAR)])[0].depth == 1  # type: ignore[union-attr]
        save(repository, {"more": TEXT}, branch="main")
        repository.gc()
        assert repository.fsck().clean


def test_numbers_stay_readable(tmp_path: Path) -> None:
    with mended(NUMBERS, tmp_path / "repo") as repository:
        assert contents(repository, repository.resolve("main")) == PRICES
        with repository.index.read() as view:
            codecs = {Place.decode(row).tag for _, row in view.items(CHUNKS)}
        assert codecs == {Codec.NUMBERS}


def test_encrypted_ones_stay_readable(tmp_path: Path) -> None:
    with given("golden"), mended(ENCRYPTED, tmp_path / "repo") as repository:
        assert contents(repository, repository.resolve("v1")) == FILES
        assert contents(repository, repository.resolve("main")) == {"near": NEAR}
        assert [one.message for one in repository.snapshots()] == ["second", "first"]
        assert {one.who for one in repository.refs.log()} == {"somebody@somewhere"}
        assert repository.stats().format_version == 2
        save(repository, {"more": TEXT}, branch="main")
        repository.gc()
        assert repository.fsck().clean
