"""`ijfs.save()` from inside, with the real keeper on the other side: it returns twice."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager
from jupyter_env import KERNEL, Cells, JupyterEnv
from waiting import eventually, patient

from ijfs.jupyter.cells import run_cell
from ijfs.jupyter.repository import ensure_repository
from ijfs.live.client import api as client
from ijfs.live.client.api import InstanceSpec

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


@pytest.fixture
def cells(jupyter_env: JupyterEnv) -> Cells:
    manager = KernelManager(kernel_name=KERNEL)
    manager.start_kernel()
    cells = Cells(manager)
    yield cells
    cells.close()


def test_save_returns_the_snapshot_here_and_resumed_in_every_sibling(jupyter_env: JupyterEnv, cells: Cells) -> None:
    name = jupyter_env.the_instance()
    shown = cells("import ijfs; r = ijfs.save('from inside'); print(r.resumed, r.instance, r.id)")
    resumed, instance, snapshot = shown.split()
    assert (resumed, instance) == ("False", name)
    siblings = client.fork(jupyter_env.repo, snapshot, ["left", "right"])
    try:
        for sibling in siblings:
            assert sibling.connection_file is not None
            # The sibling is in the middle of the cell: ours waits behind it in its queue.
            result = run_cell(sibling.connection_file, "print(r.resumed, r.instance, r.id)", 60)
            assert result.stdout.split() == ["True", sibling.name, snapshot]
        assert cells("print(r.resumed)") == "False"
    finally:
        for sibling in siblings:
            jupyter_env.stop(sibling.name)


def test_a_save_that_is_not_waited_for_resumes_in_the_sibling_too(jupyter_env: JupyterEnv, cells: Cells) -> None:
    name = jupyter_env.the_instance()
    assert cells("import ijfs; r = ijfs.save('quick', wait=False); print(r)") == f"saving {name}"
    with client.connect(jupyter_env.repo, name) as keeper:
        snapshot = keeper.wait_save(keeper.save("after it").number).parent
    assert snapshot is not None
    (sibling,) = client.fork(jupyter_env.repo, snapshot, ["later"])
    try:
        assert sibling.connection_file is not None
        assert (
            run_cell(sibling.connection_file, "print(r)", 60).stdout.strip() == f"resumed from {snapshot[:12]} as later"
        )
    finally:
        jupyter_env.stop("later")


def test_the_magics_speak_with_the_keeper(jupyter_env: JupyterEnv, cells: Cells) -> None:
    name = jupyter_env.the_instance()
    cells("%load_ext ijfs")
    assert cells("%ijfs save -m 'the first' --verify").endswith("; it can be restored")
    cells("x = 1")
    cells("%ijfs save -m 'the second'")
    tree = cells("%ijfs tree").splitlines()
    assert [line[0] for line in tree[-2:]] == ["●", "@"]
    assert [line.split("  ")[1] for line in tree[-2:]] == ["the first", "the second"]
    assert tree[-1].split("  ")[2] == f"[{name}] ▶"
    assert "1 live" in tree[1]
    assert f"program     {name}" in cells("%ijfs status")


def test_going_back_in_place_to_a_save_from_inside_resumes(jupyter_env: JupyterEnv, cells: Cells) -> None:
    name = jupyter_env.the_instance()
    cells("import ijfs; count = 0")
    cells("r = ijfs.save(); count += 1")
    snapshot = cells("print(r.id)")
    cells("count += 100")
    client.restore(jupyter_env.repo, snapshot, name, replace=True)
    cells.client.wait_for_ready(timeout=60)
    assert cells("print(r.resumed, count)") == "True 1"


def test_hooks_run_around_a_save_that_comes_from_outside(jupyter_env: JupyterEnv, cells: Cells) -> None:
    name = jupyter_env.the_instance()
    cells("import ijfs; seen = []")
    cells("_ = ijfs.after_restore(lambda: __import__('time').sleep(0.5))")
    cells("_ = ijfs.before_save(lambda: seen.append('before')); _ = ijfs.after_restore(lambda: seen.append('after'))")
    jupyter_env.save(name)
    begin = time.monotonic()
    assert cells("with ijfs.barrier(): print(seen)") == "['before']"
    assert time.monotonic() - begin < patient(5)  # the keeper said that the save is over
    snapshot = cells("r = ijfs.save(); now = list(seen); print(r.id)")
    client.restore(jupyter_env.repo, snapshot, name, replace=True)
    cells.client.wait_for_ready(timeout=60)
    # The hooks of the child were done when ijfs.save() returned in it.
    assert cells("print(r.resumed, now)") == "True ['before', 'before', 'after']"


PROGRAM = """
import sys, time
import ijfs
result = ijfs.save("a plain program")
print(f"resumed={result.resumed} instance={result.instance}", flush=True)
time.sleep(600)
"""


def test_a_plain_program_of_another_environment_saves_itself(jupyter_env: JupyterEnv) -> None:
    ensure_repository(jupyter_env.repo)
    # The interpreter outside the virtual environment: it has neither ijfs nor anything ijfs needs.
    spec = InstanceSpec(name="plain", argv=(os.path.realpath(sys.executable), "-c", PROGRAM), cwd="/")
    info = client.start(jupyter_env.repo, spec)
    assert said(info.log, "resumed=False instance=plain")
    snapshot = client.describe(jupyter_env.repo, "plain").snapshot
    assert snapshot is not None
    child = client.restore(jupyter_env.repo, snapshot, "child")
    assert said(child.log, "resumed=True instance=child")
    for name in ("plain", "child"):
        jupyter_env.stop(name)


def said(log: str, line: str, within_s: float = 30.0) -> bool:
    return eventually(lambda: line in Path(log).read_text().splitlines(), within_s)
