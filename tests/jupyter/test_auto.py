"""Saving after cells, on a real kernel whose spec says so: when it is worth it, in nobody's way, thinned out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager
from jupyter_env import Cells, JupyterEnv
from waiting import eventually, patient

from ijfs.jupyter import kernelspec
from ijfs.live.keeper import autosave, dirty_sample
from ijfs_engine import PrunePolicy, Repository, Snapshot

pytestmark = [pytest.mark.root, pytest.mark.criu]


@pytest.fixture
def cells(jupyter_env: JupyterEnv) -> Iterator[Cells]:
    """A kernel of a spec that was installed with `--auto`: nothing is typed into the notebook."""
    kernelspec.install(name="ijfs-auto", auto="on --changed 20 --every 3600")
    manager = KernelManager(kernel_name="ijfs-auto")
    manager.start_kernel()
    cells = Cells(manager)
    yield cells
    cells.close()


def saves(jupyter_env: JupyterEnv) -> list[Snapshot]:
    """All snapshots, oldest first."""
    with Repository.open(jupyter_env.repo) as repository:
        return sorted(repository.snapshots(), key=lambda one: one.created_ns)


def test_cells_that_change_enough_are_saved_and_others_are_not(jupyter_env: JupyterEnv, cells: Cells) -> None:
    cells("import os; data = bytearray(os.urandom(100 << 20))")
    assert eventually(lambda: len(saves(jupyter_env)) == 1), "the first: there was nothing to go back to"
    first = saves(jupyter_env)[0]
    assert (first.meta["auto"], first.message[:14]) == (True, "auto: after In")
    for _ in range(3):
        cells("x = 1")
    # The same memory, written in place: no page is new and no page fault tells of it.
    begin = time.monotonic()
    cells("data[:] = os.urandom(len(data))")
    took = time.monotonic() - begin
    assert eventually(lambda: len(saves(jupyter_env)) == 2)
    time.sleep(0.5)
    cells("y = 1")
    assert len(saves(jupyter_env)) == 2, "one save for each change"
    second = saves(jupyter_env)[1]
    assert second.parents == (first.id,)
    assert took < patient(15)
    name = jupyter_env.the_instance()
    jupyter_env.save(name, "by hand")
    assert [one.meta["auto"] for one in saves(jupyter_env)] == [True, True, False]


def test_auto_is_turned_on_with_other_rules_and_off_and_says_what_it_cannot_do(
    jupyter_env: JupyterEnv, cells: Cells
) -> None:
    before = len(saves(jupyter_env))
    cells("x = 1")
    assert eventually(lambda: len(saves(jupyter_env)) == before + 1)
    assert cells("%ijfs auto off") == "auto: off"
    assert cells("%ijfs auto on --changed 200") == "UsageError"
    assert cells("%ijfs auto on --every 0") == "auto: on --every 0"
    cells("x = 2")
    assert eventually(lambda: len(saves(jupyter_env)) >= before + 2)
    cells("%ijfs auto on --every 0 --limit 0.000001")
    assert eventually(lambda: "would stand still" in cells("x = 3"))
    so_far = len(saves(jupyter_env))
    cells("x = 4")
    time.sleep(0.5)
    assert len(saves(jupyter_env)) == so_far


def test_only_saves_after_cells_of_this_program_are_thinned_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autosave, "THINNED", PrunePolicy(last=2))
    with Repository.init(tmp_path / "repo") as repository:

        def made(message: str, parents: list[bytes], *, name: str = "lab", by_itself: bool = True) -> bytes:
            with repository.begin(parents) as writer:
                meta = {"spec": {"name": name}, "auto": by_itself}
                return writer.commit(message=message, branch="lab", meta=meta).id

        line: list[bytes] = []
        for number in range(8):
            parents = line[-1:]
            by_itself = number != 3
            name = "other" if number == 2 else "lab"
            line.append(made(str(number), parents, name=name, by_itself=by_itself))
        repository.refs.set_tag("good", line[1])
        autosave.thin(repository, "lab")
        left = sorted(snapshot.message for snapshot in repository.snapshots())
    assert left == ["1", "2", "3", "6", "7"]


HOLDER = """if True:
    import os
    data = bytearray(os.urandom(256 << 20))
    print("full"), input()
    data[: 96 << 20] = bytes(96 << 20)
    print("changed"), input()
    del data
    print("freed"), input()
"""


def test_a_sample_tells_the_share_of_memory_that_changed() -> None:
    """A part of what a program holds is written anew, in place."""
    with subprocess.Popen(
        [sys.executable, "-uc", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None

        def goes_on(answer: str) -> bool:
            print(file=program.stdin, flush=True)
            return program.stdout is not None and program.stdout.readline() == answer

        assert program.stdout.readline() == "full\n"
        before = dirty_sample.take([program.pid])
        unchanged = dirty_sample.changed_share(before, [program.pid])
        assert unchanged is not None
        assert unchanged < 0.02
        assert goes_on("changed\n")
        share = dirty_sample.changed_share(before, [program.pid])
        assert share is not None
        assert abs(share - (96 << 20) / before.resident) < 0.06
        assert goes_on("freed\n")
        freed = dirty_sample.changed_share(before, [program.pid])
        assert freed is not None
        assert freed > 0.5
        program.stdin.close()
