"""Values that a program is told and no snapshot holds; and what `ijfs scan` finds of keys that were not kept so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

import ijfs
from ijfs.history import key_scan
from ijfs.live.client import api as client
from ijfs.live.errors import CommandError
from ijfs_engine import Entry, Repository
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.frames import FrameKind, chunk_id
from ijfs_engine.format.records import Tree, encode_tree

GIVEN, OTHER, LONGER = "sk-ant-" + "G" * 40, "sk-ant-" + "O" * 40, "sk-ant-" + "L" * 50
CARELESS = "ghp_" + "c" * 36

# Holds the value, and says by sums what it holds: a text that was made of it would be left behind in memory.
PROGRAM = """
import json, os, sys, threading, time
import ijfs

def total(text):
    return sum(ord(c) * n for n, c in enumerate(text, 1))

secret = ijfs.secret("KEY")
held = secret.value
child = os.fork()
name = "child" if child == 0 else "parent"
if child and os.path.exists("/tmp/careless"):
    careless = "".join(["ghp", "_", "c" * 36])
while True:
    try:
        now = total(secret.value)
    except ijfs.GuestError:
        now = None
    said = {"held": total(held), "now": now, "environment": "KEY" in os.environ}
    with open(f"/tmp/{name}.new", "w") as file:
        json.dump(said, file)
    os.rename(f"/tmp/{name}.new", f"/tmp/{name}")
    time.sleep(0.02)
"""


def total(text: str) -> int:
    return sum(ord(c) * n for n, c in enumerate(text, 1))


def says(env: LiveEnv, name: str, held: str | None, now: str | None) -> bool:
    """Whether both of its processes come to say that."""
    wanted = {"held": total(held) if held is not None else 0, "now": total(now) if now is not None else None}

    def said() -> bool:
        root = Path(f"/proc/{client.describe(env.repo, name).pid}/root/tmp")
        found = [json.loads((root / who).read_text()) for who in ("parent", "child") if (root / who).exists()]
        return len(found) == 2 and all(one == {**wanted, "environment": False} for one in found)

    return eventually(said)


@pytest.fixture(scope="module")
def saved(shared_env: LiveEnv) -> str:
    """A snapshot of the program, which has a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY", GIVEN)  # as `--secret KEY` takes it
        (shared_env.work / "careless").touch()
        spec = client.InstanceSpec(
            name="keyed", argv=("/bin/sh", "-c", 'touch /tmp/careless; exec "$0" -c "$1"', *argv()), cwd="/"
        )
        client.start(shared_env.repo, spec, secrets={"KEY": GIVEN})
    assert says(shared_env, "keyed", GIVEN, GIVEN)
    return shared_env.save("keyed").snapshot


def argv() -> tuple[str, str]:
    import sys

    return sys.executable, PROGRAM


def found(env: LiveEnv, snapshot: str, *patterns: str) -> list[key_scan.Finding]:
    with Repository.open(env.repo) as repository:
        record = repository.snapshot(bytes.fromhex(snapshot))
        return list(key_scan.scan(repository.reader(), record, patterns))


def test_no_snapshot_holds_a_secret_and_the_program_goes_on_with_it(shared_env: LiveEnv, saved: str) -> None:
    assert says(shared_env, "keyed", GIVEN, GIVEN)
    in_memory = found(shared_env, saved, GIVEN, "G{20,}")
    assert [one.kind for one in in_memory if "Anthropic" in one.kind or "G" in one.kind.removeprefix("GitHub")] == []
    with Repository.open(shared_env.repo) as repository:
        assert GIVEN not in repr(repository.snapshot(bytes.fromhex(saved)).meta)


def test_copies_have_what_their_own_caller_gives(shared_env: LiveEnv, saved: str) -> None:
    snapshot = ijfs.Snapshot(shared_env.repo, saved)
    other = snapshot.restore("other", secrets={"KEY": OTHER})
    client.restore(shared_env.repo, saved, "longer", secrets={"KEY": LONGER})
    client.restore(shared_env.repo, saved, "without")
    assert says(shared_env, "other", OTHER, OTHER)
    assert says(shared_env, "longer", "\0" * len(GIVEN), LONGER)
    assert says(shared_env, "without", "\0" * len(GIVEN), None)
    client.restore(shared_env.repo, saved, "keyed", replace=True)  # in place it has them still
    assert says(shared_env, "keyed", GIVEN, GIVEN)
    ijfs.Box(shared_env.repo, "keyed").restore(saved, secrets={"KEY": OTHER})  # or others, where they are given
    assert says(shared_env, "keyed", OTHER, OTHER)
    other.park(disk=True)
    other.wake(secrets={"KEY": GIVEN})
    assert says(shared_env, "other", GIVEN, GIVEN)


def test_a_scan_names_keys_with_their_process_and_shows_none_whole(shared_env: LiveEnv, saved: str) -> None:
    tokens = [one for one in found(shared_env, saved) if one.kind == "GitHub token" and one.in_memory]
    assert tokens
    assert all(one.where.startswith("process ") for one in tokens)
    assert CARELESS not in repr(tokens)
    assert "ghp_cc… (40 bytes)" in {one.shown for one in tokens}


def test_a_scan_finds_what_crosses_two_blocks_of_a_file(shared_env: LiveEnv, tmp_path: Path) -> None:
    from ijfs_engine import import_directory

    (tmp_path / "sub").mkdir()
    at = key_scan.BLOCK - key_scan.OVERLAP - 10
    (tmp_path / "sub/large").write_bytes(b"\n" * at + b"AKIA" + b"Z" * 16 + b"\n" * key_scan.BLOCK)
    with Repository.open(shared_env.repo) as repository:
        record = import_directory(repository, tmp_path)
        (one,) = key_scan.scan(repository.reader(), record)
    assert (one.kind, one.where, one.at) == ("AWS access key", "/sub/large", at)


@pytest.mark.parametrize("value", ["", "x", "käse", "x" * 40_000])
def test_a_value_that_no_program_could_be_told_is_refused(shared_env: LiveEnv, value: str) -> None:
    with pytest.raises(CommandError, match="the secret KEY is not"):
        client.start(shared_env.repo, client.InstanceSpec(name="no", argv=("true",)), secrets={"KEY": value})


def test_a_scan_of_a_strangers_trees_ends(tmp_path: Path) -> None:
    """20^10 paths in some kilobytes, and one key below all of them."""
    with Repository.init(tmp_path / "repo") as repository:
        with repository.session() as session:
            key = b"AKIA" + b"Z" * 16
            session.put_chunks([chunk_codec.encode(memoryview(key), chunk_id(key))])
            file = Entry(b"key", "f", 0o644, 0, 0, 0, len(key), content=chunk_id(key))
            tree = session.put_object(FrameKind.TREE, encode_tree(Tree((file,))))
            for _ in range(10):
                entries = tuple(Entry(b"%02d" % n, "d", 0o755, 0, 0, 0, content=tree) for n in range(20))
                tree = session.put_object(FrameKind.TREE, encode_tree(Tree(entries)))
            root = encode_tree(Tree((Entry(b"files", "d", 0o755, 0, 0, 0, content=tree),)))
            made = session.commit_snapshot(session.put_object(FrameKind.TREE, root), branch="bomb")
        (one,) = key_scan.scan(repository.reader(), made)
    assert one.where.endswith("/key")
