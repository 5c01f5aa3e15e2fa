"""What a keeper knows of its instance stays true when a step fails; no program runs here, the repository is real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ijfs.live.checkpoint.restore import RestoreRequest
from ijfs.live.checkpoint.snapshot_io import LiveMeta
from ijfs.live.checkpoint.workspace import StatKey
from ijfs.live.keeper.state import InstanceState
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import RestoreArguments
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceSpec, Process
from ijfs.live.pager.account import AccountBook, create
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine import Repository, Snapshot, UnknownNameError
from ijfs_engine.errors import PreflightError, StorageError

OLDER = {"files/a": StatKey(1, 1, 0o100644, 1, 1)}
NEWER = {"files/a": StatKey(1, 2, 0o100644, 2, 2)}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[InstanceState]:
    Repository.init(tmp_path / "repo").close()
    paths = InstancePaths.of(tmp_path / "repo", "one")
    paths.root.mkdir(parents=True)

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {}

    state = InstanceState(paths.root, None, answer)
    try:
        yield state
    finally:
        state.close()


def snapshot_of(state: InstanceState, branch: str) -> Snapshot:
    with state.snapshots.repository.begin() as writer:
        writer.add_file("a", branch.encode())
        return writer.commit(branch=branch)


def test_a_save_that_nobody_can_pin_leaves_files_compared_with_the_parent(state: InstanceState) -> None:
    """Otherwise a file that changed since the parent would be stored as the parent has it."""
    parent, gone = snapshot_of(state, "parent"), snapshot_of(state, "gone")
    state.record_save(parent, OLDER)
    state.snapshots.repository.remove(gone.id)
    with pytest.raises(UnknownNameError):
        state.record_save(gone, NEWER)
    assert (state.snapshot, state.stat_cache, state.record.snapshot) == (parent, OLDER, parent.id.hex())


def test_a_sandbox_that_cannot_be_written_down_is_not_moved_into(state: InstanceState) -> None:
    parent, other = snapshot_of(state, "parent"), snapshot_of(state, "other")
    state.record_save(parent, OLDER)
    (state.paths.root / "instance.json.new").mkdir()
    restored = Sandbox(state.paths.sandbox(2), -1)
    with pytest.raises(StorageError):
        state.move_into(restored, snapshot=other, changes={"generation": 2})
    assert (state.sandbox, state.snapshot, state.record.generation) == (None, parent, 1)
    assert read_record(state.paths).snapshot == parent.id.hex()
    assert [pin.id for pin in state.snapshots.repository.pins()] == [parent.id]


def test_what_cannot_be_written_down_may_still_be_noted(state: InstanceState) -> None:
    (state.paths.root / "instance.json.new").mkdir()
    state.note(save_error="lost")
    assert state.record.save_error == "lost"


def test_memory_that_could_not_be_had_is_never_saved_and_stays_known(state: InstanceState) -> None:
    """What an earlier keeper's pager has left, which finished and could not read two pages."""
    workdir = state.paths.sandbox(1).criu
    workdir.mkdir(parents=True)
    book = AccountBook(create(workdir))
    state.note(pager=Process(os.getppid(), 0))
    book.note(complete=True, pages=10, arrived=10, poisoned=2)
    for _ in range(2):
        with pytest.raises(PreflightError, match="8 KiB of it could not be read"):
            trio.run(state.wait_for_memory)
    assert state.info().memory == 1.0
    assert read_record(state.paths).damage == "8 KiB of it could not be read from the repository"


def test_a_restore_request_has_all_that_the_verb_was_asked_for(state: InstanceState) -> None:
    with state.snapshots.repository.begin() as writer:
        meta = {"spec": {"name": "one", "argv": ["true"]}}
        snapshot = writer.commit(branch="main", meta=meta)
    paths = state.paths.sandbox(3)
    meta = LiveMeta(spec=InstanceSpec(name="one", argv=("true",)))
    for beside, same_random in ((True, False), (True, True), (False, False)):
        args = RestoreArguments(snapshot="main", gpus=("1",), siblings=4, same_random=same_random)
        assert RestoreRequest.of(args, state.snapshots, paths, beside=beside) == RestoreRequest(
            snapshot, meta, paths, siblings=4, gpus=("1",), beside=beside and not same_random
        )
