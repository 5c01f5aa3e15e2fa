"""A real ipykernel: saved, restored, forked, taken back in place, three generations deep, eight siblings at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from live_env import Kernel, LiveEnv
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]


@pytest.fixture(scope="module")
def kernel(shared_env: LiveEnv) -> Kernel:
    kernel = shared_env.kernel("base")
    kernel.run("import os, time, threading; generation = 0; data = list(range(1000))")
    return kernel


@pytest.fixture
def saved(shared_env: LiveEnv, kernel: Kernel) -> str:
    kernel.run("generation = 0; open('/tmp/mine', 'w').write('base')")
    return shared_env.save("base", "a start").snapshot


def test_a_restored_kernel_has_the_memory_and_the_files_of_the_snapshot_and_the_original_goes_on(
    shared_env: LiveEnv, kernel: Kernel, saved: str
) -> None:
    kernel.run("generation = 7; open('/tmp/mine', 'w').write('changed')")
    info = shared_env.restore(saved, "copy")
    copy = shared_env.talk(info)
    assert copy.run("print(generation, sum(data), open('/tmp/mine').read(), os.getpid())") == "0 499500 base " + (
        kernel.run("print(os.getpid())")
    )
    copy.run("generation = 8; open('/tmp/mine', 'w').write('copy')")
    assert kernel.run("print(generation, open('/tmp/mine').read())") == "7 changed"
    assert copy.run("print(generation, open('/tmp/mine').read())") == "8 copy"
    assert info.snapshot == saved
    shared_env.stop("copy")


def test_eager_and_lazy_restores_hold_the_same(shared_env: LiveEnv, kernel: Kernel, saved: str) -> None:
    kernel.run("import hashlib; blob = os.urandom(8 << 20); digest = hashlib.sha256(blob).hexdigest()")
    snapshot = shared_env.save("base").snapshot
    for eager in (True, False):
        info = shared_env.restore(snapshot, f"eager-{eager}".lower(), eager=eager)
        restored = shared_env.talk(info)
        assert restored.run("print(hashlib.sha256(blob).hexdigest() == digest)") == "True"
        shared_env.stop(info.name)


def test_going_back_in_place_keeps_the_client_and_its_ports(shared_env: LiveEnv, kernel: Kernel, saved: str) -> None:
    kernel.run("generation = 99")
    before = client.describe(shared_env.repo, "base")
    info = shared_env.restore(saved, "base", replace=True)
    assert info.relay == before.relay
    assert info.pid != before.pid
    assert kernel.run("print(generation)") == "0"
    assert not Path(f"/proc/{before.pid}").exists()


def test_what_was_saved_after_the_point_gone_back_to_stays_on_a_branch(
    shared_env: LiveEnv, kernel: Kernel, saved: str
) -> None:
    later = shared_env.save("base", "later").snapshot
    shared_env.restore(saved, "base", replace=True)
    result = shared_env.save("base", "another way")
    assert result.parent == saved
    assert any("went back" in warning for warning in result.warnings)
    with Repository.open(shared_env.repo) as repository:
        branches = {name: ident.hex() for name, ident in repository.refs.branches().items()}
    assert branches["base"] == result.snapshot
    assert later in branches.values()


def test_three_generations_deep(shared_env: LiveEnv, kernel: Kernel, saved: str) -> None:
    snapshot = saved
    for number in range(1, 4):
        info = shared_env.restore(snapshot, f"generation-{number}")
        child = shared_env.talk(info)
        assert child.run(f"generation += 1; data.append({number}); print(generation, len(data))") == (
            f"{number} {1000 + number}"
        )
        result = shared_env.save(info.name)
        assert result.parent == snapshot
        snapshot = result.snapshot
        shared_env.stop(info.name)


def test_eight_siblings_at_once_answer_and_differ(shared_env: LiveEnv, kernel: Kernel, saved: str) -> None:
    siblings = client.fork(shared_env.repo, saved, [f"sibling-{number}" for number in range(8)])
    kernels = [shared_env.talk(info) for info in siblings]
    for number, sibling in enumerate(kernels):
        sibling.run(f"generation = {number}")
    assert [sibling.run("print(generation)") for sibling in kernels] == [str(number) for number in range(8)]
    assert len({port.host for info in siblings for port in info.relay}) == 40
    for sibling in kernels:
        shared_env.stop(sibling.info.name, timeout_s=0)


def test_fork_of_a_live_instance_saves_it_first(shared_env: LiveEnv, kernel: Kernel) -> None:
    kernel.run("generation = 'forked'")
    (info,) = client.fork(shared_env.repo, "base", count=1)
    assert info.name == "base-1"
    assert shared_env.talk(info).run("print(generation)") == "forked"
    shared_env.stop("base-1")


def test_a_cell_can_be_interrupted(shared_env: LiveEnv, kernel: Kernel) -> None:
    message = kernel.client.execute("print('in it', flush=True); time.sleep(600)")
    while kernel.client.get_iopub_msg(timeout=patient(30))["content"].get("text") != "in it\n":
        pass
    with client.connect(shared_env.repo, "base") as keeper:
        keeper.signal(signal.SIGINT)
    reply = kernel.client.get_shell_msg(timeout=patient(30))
    while reply["parent_header"].get("msg_id") != message:
        reply = kernel.client.get_shell_msg(timeout=patient(30))
    assert reply["content"]["ename"] == "KeyboardInterrupt"


def test_the_program_saves_itself_and_returns_twice(shared_env: LiveEnv, kernel: Kernel) -> None:
    code = "import ijfs; result = ijfs.save('from inside'); print(result.resumed, result.instance, result.id)"
    resumed, instance, snapshot = kernel.run(code).split()
    assert (resumed, instance) == ("False", "base")
    info = shared_env.restore(snapshot, "inside")
    inside = shared_env.talk(info)
    assert eventually(lambda: "True inside" in inside.run("print(result.resumed, result.instance)"))
    with Repository.open(shared_env.repo) as repository:
        assert repository.snapshot(bytes.fromhex(snapshot)).message == "from inside"
    shared_env.stop("inside")


def test_the_notebook_is_in_the_snapshot(shared_env: LiveEnv, kernel: Kernel) -> None:
    notebook = b'{"cells": [], "nbformat": 4}'
    snapshot = shared_env.save("base", notebook=notebook).snapshot
    with Repository.open(shared_env.repo) as repository:
        reader = repository.reader()
        entry = reader.lookup(repository.snapshot(bytes.fromhex(snapshot)).root, "notebook.ipynb")
        assert reader.open(entry).read(0, entry.size) == notebook


def test_save_and_stop_ends_the_program_with_nothing_lost(shared_env: LiveEnv, kernel: Kernel, saved: str) -> None:
    info = shared_env.restore(saved, "stopping")
    stopping = shared_env.talk(info)
    stopping.run("generation = 'last'")
    result = shared_env.save("stopping", stop=True)
    assert result.stopped
    assert eventually(lambda: not Path(f"/proc/{info.pid}").exists())
    ended = client.describe(shared_env.repo, "stopping")
    assert (ended.status, ended.snapshot) == ("exited", result.snapshot)
    client.remove(shared_env.repo, "stopping")
    again = shared_env.talk(shared_env.restore(result.snapshot, "stopping"))
    assert again.run("print(generation)") == "last"
    shared_env.stop("stopping")


def test_memory_of_a_lazily_restored_kernel_comes_in_by_itself(shared_env: LiveEnv, kernel: Kernel, saved: str) -> None:
    info = shared_env.restore(saved, "waiting")
    with client.connect(shared_env.repo, "waiting") as keeper:
        assert keeper.wait_memory().memory == 1.0
    shared_env.stop(info.name)
    assert os.path.exists(info.log)
