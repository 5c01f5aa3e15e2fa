"""Copies that leave nothing behind at their ends."""

from __future__ import annotations

from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client
from ijfs_engine import Repository


def names(env: LiveEnv) -> set[str]:
    return {path.name for path in (env.repo / "live").iterdir() if not path.name.startswith(".")}


def test_an_ephemeral_copy_leaves_no_directory_and_no_branch(live_env: LiveEnv) -> None:
    live_env.command("origin", "exec sleep 1000")
    first = live_env.save("origin").snapshot
    with Repository.open(live_env.repo) as repository:
        repository.refs.set_branch("older", bytes.fromhex(first))
    client.fork(live_env.repo, first, ["short", "older"], ephemeral=True)
    client.fork(live_env.repo, first, ["stays"])
    for name in ("short", "older", "stays"):
        live_env.save(name, "in the copy")
    child = client.fork(live_env.repo, "short", ["grandchild"])[0]
    for name in ("short", "older", "stays"):
        live_env.stop(name)
    assert eventually(lambda: names(live_env) == {"origin", "stays", "grandchild"})
    with Repository.open(live_env.repo) as repository:
        branches = repository.refs.branches()
        assert set(branches) == {"origin", "older", "stays"}
        assert repository.snapshot(branches["older"]).message == "in the copy"
        assert child.snapshot is not None
        assert repository.parents(bytes.fromhex(child.snapshot)) != []
    assert live_env.save("grandchild").snapshot
