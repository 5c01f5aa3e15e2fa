"""One sector that the disk does not give: what lies in it is lost, and nothing else, for readers and for a repair.

The reads fail in the C library of a child process (bad_sector.c), for Python and the compiled loops alike.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ijfs_engine import Repository
from ijfs_engine.storage.index import CHUNKS
from ijfs_engine.storage.index_file import newest_meta
from ijfs_engine.storage.index_pages import Pages, read_head

CHILD = """
import json, sys
from fuzz_seeds import contents_of
from ijfs_engine import Repository
path, repair = sys.argv[1], sys.argv[2] == "repair"
with Repository.open(path, damaged=repair) as repository:
    report = repository.fsck(repair=repair)
    found = contents_of(repository, [one.id.hex() for one in repository.snapshots()])
print(json.dumps({"damage": [one.what for one in report.damage], "found": found}))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("shim") / "bad_sector.so"
    source = Path(__file__).with_name("bad_sector.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"], check=True)
    return made


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    rng = random.Random(3)
    with Repository.init(tmp_path / "repo") as repository, repository.begin() as writer:
        writer.add_file("files/big", rng.randbytes(3_000_000))
        for number in range(20):
            writer.add_file(f"files/small{number}", rng.randbytes(20_000))
        writer.commit(branch="main")
    return tmp_path / "repo"


def run(shim: Path, path: Path, what: str, file: int = 0, at: int = 0) -> dict[str, dict[str, dict[str, str]]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    if file:
        environment |= {"LD_PRELOAD": str(shim), "BAD_INODE": str(file), "BAD_AT": str(at)}
    command = [sys.executable, "-c", CHILD, str(path), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("at", [0, 5 * 4096, 200 * 4096, 760 * 4096])
def test_a_bad_sector_costs_what_lies_in_it(shim: Path, stored: Path, at: int) -> None:
    whole = run(shim, stored, "check")["found"]
    (pack,) = (stored / "packs").iterdir()
    for what in ("check", "repair", "check"):
        answer = run(shim, stored, what, pack.stat().st_ino, at)
        assert answer["damage"]
        (found,), (expected,) = answer["found"].values(), whole.values()
        assert found.items() <= expected.items()
        lost = expected.keys() - found.keys()
        assert 1 <= len(lost) <= 2, "a sector has parts of two files at most"


def test_an_index_with_a_bad_sector_is_built_anew(shim: Path, stored: Path) -> None:
    whole = run(shim, stored, "check")["found"]
    index = stored / "index" / "data.mdb"
    with index.open("rb", buffering=0) as data:
        meta = newest_meta(read_head(data.fileno()))
        assert meta is not None
        root = Pages(data.fileno(), meta).tables()[CHUNKS].root
    assert root is not None
    answer = run(shim, stored, "repair", index.stat().st_ino, root * meta.page_size)
    assert "index" in answer["damage"]
    assert answer["found"] == whole
