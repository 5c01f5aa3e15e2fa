"""Repositories written by earlier versions stay readable: one per format, made once and never made again.

`golden/v1` was written by the first version of format 1 (packs, journal, format and secret; no index: that is built).
It holds every kind of frame the store knows. If this test fails, the format has changed: give it a new version.
"""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

from storekit import contents, put, put_against, save

from ijfs_engine import Repository, refs
from ijfs_engine.frames import Codec, chunk_id
from ijfs_engine.index import CHUNKS, OBJECTS, SIDECARS, Place

GOLDEN = Path(__file__).parent / "golden" / "v1"

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


def test_format_1_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    shutil.copytree(GOLDEN, path)
    with Repository.open(path, damaged=True) as repository:
        repository.fsck(repair=True)
        assert repository.fsck().clean
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
