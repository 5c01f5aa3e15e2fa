"""Encrypted repositories for tests: with keys that are cheap to open. Run as a program it rotates the key of one, and
is killed at each step in turn."""

from __future__ import annotations

import os
import random
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storekit import contents, save

from ijfs_engine import Repository, wrap_for_passphrase
from ijfs_engine.storage import disk, key_files, unlocking

PASSPHRASE = "correct horse"
MARKER = b"MARKER-of-plain-bytes"
FILES = {
    "MARKER-name": MARKER * 900,
    "noise": random.Random(1).randbytes(20_000),
    "zeros": bytes(30_000),
    "small": MARKER,
}
MOST_STEPS = 200


@contextmanager
def given(passphrase: str | None) -> Iterator[None]:
    """What the environment says while the block runs; nothing is remembered from before."""
    known = {name: os.environ.pop(name, None) for name in (*unlocking.SECRET_VARIABLES, unlocking.KEEP_VARIABLE)}
    os.environ[unlocking.KEEP_VARIABLE] = "0"
    if passphrase is not None:
        os.environ[unlocking.PASSPHRASE_VARIABLE] = passphrase
    unlocking._rings.clear()
    try:
        yield
    finally:
        for name, value in known.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def cheap() -> None:
    """Passphrases that are derived in a millisecond, for this process."""
    key_files.MEMORY_KIB, key_files._PASSES = 64, 1  # type: ignore[misc]


def make(path: Path, passphrase: str = PASSPHRASE) -> Repository:
    """An empty one."""
    return Repository.init(path, way_in=lambda ring: wrap_for_passphrase(ring, "main", passphrase))


def rotate_killed(template: Path, work: Path, step: int) -> bool:
    """Rotate in a copy, whose process dies at a step; whether it did. What must hold then, holds."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(template, work)
    pid = os.fork()
    if pid == 0:
        _rotate_and_die(work, step)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9), code
    unlocking._rings.clear()
    with Repository.open(work) as repository:
        _check(repository, "killed")
        save(repository, {"after": MARKER}, branch="after")
        repository.keyring().rotate(PASSPHRASE, keep_old=False)
        assert len(repository.keyring()._crypt.ring.sealing) == 1
        _check(repository, "finished")
        assert repository.fsck().clean, repository.fsck().damage
    return code == 9


def _rotate_and_die(work: Path, step: int) -> None:
    left = step

    def observe(_: disk.Step) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)

    try:
        with Repository.open(work) as repository:
            disk.observer = observe
            repository.keyring().rotate(PASSPHRASE, keep_old=False)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _check(repository: Repository, when: str) -> None:
    assert contents(repository, repository.resolve("main")) == FILES, when
    assert [change.why for change in repository.refs.log("main")], when


def main() -> None:
    cheap()
    template, work = Path(sys.argv[1]), Path(sys.argv[2])
    with given(PASSPHRASE):
        steps = next(step for step in range(MOST_STEPS) if not rotate_killed(template, work, step))
    print(steps)


if __name__ == "__main__":
    main()
