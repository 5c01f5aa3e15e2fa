"""A live program whose snapshot is damaged on disk is saved all the same: whole, without it, and with a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_env import LiveEnv, open_env
from waiting import eventually

from ijfs.live.client import api as client
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]

PROGRAM = """
import hashlib, os, time
noise = os.urandom(3_000_000)
with open("/tmp/kept", "wb") as file:
    file.write(noise[:400_000])
told = hashlib.sha256(noise).hexdigest()
while True:
    right = hashlib.sha256(noise).hexdigest() == told and open("/tmp/kept", "rb").read() == noise[:400_000]
    with open("/dev/shm/new", "w") as file:
        file.write(f"{time.time_ns()} {right}")
    os.rename("/dev/shm/new", "/dev/shm/told")
    time.sleep(0.02)
"""


def told(pid: int | None) -> list[str]:
    try:
        return Path(f"/proc/{pid}/root/dev/shm/told").read_text().split()
    except OSError:
        return []


@pytest.fixture(scope="module")
def env(live_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnv]:
    """A repository of this module's own, since it gets damaged."""
    with open_env(tmp_path_factory.mktemp("damaged")) as opened:
        yield opened


@pytest.fixture
def saved(env: LiveEnv) -> Iterator[str]:
    """A program that was saved twice, so that its file is taken from the snapshot before."""
    pid = env.python("program", PROGRAM).pid
    assert eventually(lambda: told(pid) != [])
    env.save("program")
    yield env.save("program").snapshot
    env.stop("program", timeout_s=0)
    client.remove(env.repo, "program")


def packs(env: LiveEnv) -> list[Path]:
    return sorted((env.repo / "packs").glob("*.pack"))


def check_saves(env: LiveEnv, before: str) -> None:
    """A save says what happened, comes back with its memory and its file, and the next one is as any other."""
    done = env.save("program")
    (said,) = [text for text in done.warnings if "stored whole" in text]
    assert before[:12] in said
    assert done.parent == before
    pid = env.restore(done.snapshot, "copy", eager=True).pid
    assert eventually(lambda: told(pid) != [])
    first = told(pid)
    assert eventually(lambda: told(pid)[:1] not in ([], first[:1]))
    assert told(pid)[1] == "True"
    env.stop("copy", timeout_s=0)
    client.remove(env.repo, "copy")
    later = env.save("program")
    assert not any("damaged" in text for text in later.warnings)
    assert later.stored_bytes is not None
    assert done.stored_bytes is not None
    assert later.stored_bytes < done.stored_bytes
    with Repository.open(env.repo) as repository:
        hurt = {ident.hex() for one in repository.fsck().damage for ident in one.snapshots}
    assert not hurt & {done.snapshot, later.snapshot}


def test_a_program_whose_packs_are_gone_is_saved_whole(env: LiveEnv, saved: str) -> None:
    for path in packs(env):
        path.unlink()
    check_saves(env, saved)


def test_a_program_whose_packs_are_zeros_is_saved_whole(env: LiveEnv, saved: str) -> None:
    for path in packs(env):
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(size - 4096))
    check_saves(env, saved)
