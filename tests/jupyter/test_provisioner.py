"""Real kernels in real sandboxes, driven by jupyter_client's own managers through the provisioner."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_env import ANSWER_TIMEOUT_S, KERNEL, Cells, JupyterEnv
from waiting import eventually, patient

from ijfs.jupyter import kernelspec
from ijfs.jupyter.livespecs import PREFIX, LiveKernelSpecManager, attached_manager
from ijfs.jupyter.provisioner import IjfsProvisioner
from ijfs.jupyter.unsaved_work import written_work
from ijfs.live.client import api as client
from ijfs.live.client.forgetting import forget_notebooks
from ijfs.live.model.paths import InstancePaths
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


@contextmanager
def started(manager: KernelManager, **options: Any) -> Iterator[Cells]:
    """A kernel that answers; shut down as its front end would when it is closed."""
    manager.start_kernel(**options)
    try:
        cells = Cells(manager)
        try:
            yield cells
        finally:
            cells.client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)


def test_save_go_back_and_interrupt_under_one_manager_and_client(jupyter_env: JupyterEnv) -> None:
    with started(KernelManager(kernel_name=KERNEL)) as cells:
        name = jupyter_env.the_instance()
        cells("x = 1")
        snapshot = jupyter_env.save(name, "x is one")
        assert cells("x += 1; print(x)") == "2"
        client.restore(jupyter_env.repo, snapshot, name, replace=True)
        assert cells.manager.is_alive()
        cells.client.wait_for_ready(timeout=ANSWER_TIMEOUT_S)
        assert cells("print(x)") == "1"
        assert cells.interrupted("import time; time.sleep(600)") == "KeyboardInterrupt"
        assert cells("print(x)") == "1"
    assert client.list_instances(jupyter_env.repo) == []


def test_a_sibling_under_a_second_manager_diverges_and_is_left_running(jupyter_env: JupyterEnv) -> None:
    with started(KernelManager(kernel_name=KERNEL)) as cells:
        name = jupyter_env.the_instance()
        cells("x = 'both'")
        (sibling,) = client.fork(jupyter_env.repo, name, ["sibling"])
        with started(attached_manager(jupyter_env.repo, sibling.name)) as other:
            assert other("print(x)") == "both"
            other("x = 'sibling'")
            cells("x = 'original'")
            assert (other("print(x)"), cells("print(x)")) == ("sibling", "original")
        assert sorted(jupyter_env.instances()) == sorted([name, "sibling"])
        assert cells("print(x)") == "original"
        with started(attached_manager(jupyter_env.repo, sibling.name)) as again:
            assert again("print(x)") == "sibling"
            assert again("exit") == "sibling runs on: `ijfs stop sibling` ends it"
            assert again("print(x)") == "sibling"
        joined = attached_manager(jupyter_env.repo, name)
        joined.start_kernel()
        polite = joined.client()
        polite.start_channels()
        for restart in (True, False):  # a message that ends a kernel is not this manager's to send
            polite.shutdown(restart=restart)
        polite.stop_channels()
        joined.shutdown_kernel()
        assert cells("print(x)") == "original"
    jupyter_env.stop("sibling")
    client.remove(jupyter_env.repo, "sibling")


def test_restarting_an_attached_sibling_goes_back_to_its_snapshot(jupyter_env: JupyterEnv) -> None:
    with started(KernelManager(kernel_name=KERNEL)) as cells:
        cells("x = 'saved'")
        (sibling,) = client.fork(jupyter_env.repo, jupyter_env.the_instance(), ["again"])
    with started(attached_manager(jupyter_env.repo, sibling.name)) as other:
        other("x = 'changed'")
        other.manager.restart_kernel()
        other.client.wait_for_ready(timeout=ANSWER_TIMEOUT_S)
        assert other("print(x)") == "saved"
    jupyter_env.stop(sibling.name)
    client.remove(jupyter_env.repo, sibling.name)


def test_death_is_noticed_and_a_restart_keeps_ports_key_and_files(
    jupyter_env: JupyterEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with started(KernelManager(kernel_name=KERNEL)) as cells:
        before = cells.manager.get_connection_info()
        cells("x = 1; open('written-by-the-kernel', 'w').write('kept')")
        cells.client.execute("import os; os._exit(3)")
        assert eventually(lambda: not cells.manager.is_alive())
        cells.manager.restart_kernel(now=True)
        assert cells.manager.get_connection_info() == before
        cells.client.wait_for_ready(timeout=ANSWER_TIMEOUT_S)
        assert cells("print(x)") == "NameError"
        assert cells("print(open('written-by-the-kernel').read())") == "kept"
        name = jupyter_env.the_instance()
    assert list(tmp_path.iterdir()) == []
    # What it was run for outlives the shutdown, though it was never saved.
    work = written_work(jupyter_env.repo, name)
    assert work is not None
    assert (work / "written-by-the-kernel").read_text() == "kept"
    record = InstancePaths.of(jupyter_env.repo, name).record
    os.utime(record, (0, 0))
    assert name in forget_notebooks(jupyter_env.repo).kept, "what it wrote is in no snapshot"
    client.save_ended(jupyter_env.repo, name)
    os.utime(record)
    assert forget_notebooks(jupyter_env.repo) == ([], {}), "it has just ended"
    os.utime(record, (0, 0))
    assert forget_notebooks(jupyter_env.repo) == ([name], {})


def test_a_kernel_writes_in_a_shared_folder_and_what_it_wrote_elsewhere_is_kept_at_its_end(
    jupyter_env: JupyterEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    kernelspec.install(name="ijfs-shared", share=["."])
    with started(KernelManager(kernel_name="ijfs-shared")) as cells:
        cells("open('out.csv', 'w').write('a,b'); import os; os.makedirs('/srv/ijfs-test')")
        assert (folder / "out.csv").read_text() == "a,b"
        name = jupyter_env.the_instance()
        saved = jupyter_env.save(name)
        cells("open('/srv/ijfs-test/result', 'w').write('lost'); open('/tmp/scratch', 'w').write('')")
        (folder / "out.csv").write_text("by hand")
        client.restore(jupyter_env.repo, saved, name, replace=True)
        cells.client.wait_for_ready(timeout=ANSWER_TIMEOUT_S)
        assert cells("print(open('out.csv').read(), os.path.exists('/srv/ijfs-test/result'))") == "by hand False"
        cells("open('/srv/ijfs-test/result', 'w').write('elsewhere')")
    assert client.list_instances(jupyter_env.repo) == []
    assert [path.name for path in folder.iterdir()] == ["out.csv"]
    with Repository.open(jupyter_env.repo) as repository:
        root = repository.snapshot(repository.resolve(f"{name}.ended")).root
        entry = repository.reader().lookup(root, "files/srv/ijfs-test/result")
        assert repository.reader().open(entry).read(0, 100) == b"elsewhere"


def test_a_polite_shutdown_lets_the_kernel_say_goodbye_and_leaves_nothing(jupyter_env: JupyterEnv) -> None:
    manager = KernelManager(kernel_name=KERNEL)
    manager.start_kernel()
    cells = Cells(manager)
    assert manager.has_kernel
    cells.client.stop_channels()
    begin = time.monotonic()
    manager.shutdown_kernel()
    assert time.monotonic() - begin < patient(5)
    assert not manager.has_kernel
    assert client.list_instances(jupyter_env.repo) == []
    assert jupyter_env.processes() == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # jupyter_client's own event loop bookkeeping
async def two_at_once(jupyter_env: JupyterEnv) -> list[str]:
    """Two kernels under async managers, each with its own variable; what each prints."""
    import asyncio

    async def one(text: str) -> str:
        manager = AsyncKernelManager(kernel_name=KERNEL)
        await manager.start_kernel()
        channel = manager.client()
        channel.start_channels()
        try:
            await channel.wait_for_ready(timeout=ANSWER_TIMEOUT_S)
            printed: list[str] = []
            await channel.execute_interactive(
                f"print({text!r})", output_hook=lambda m: printed.append(m["content"].get("text", ""))
            )
            return "".join(printed).strip()
        finally:
            channel.stop_channels()
            await manager.shutdown_kernel(now=True)

    return await asyncio.gather(one("first"), one("second"))


def test_async_managers_start_kernels_side_by_side(jupyter_env: JupyterEnv) -> None:
    import asyncio

    assert asyncio.run(two_at_once(jupyter_env)) == ["first", "second"]
    assert client.list_instances(jupyter_env.repo) == []


def test_a_kernel_spec_with_a_snapshot_starts_with_everything_loaded(jupyter_env: JupyterEnv) -> None:
    with started(KernelManager(kernel_name=KERNEL)) as cells:
        cells("warm = sum(range(1000))")
        snapshot = jupyter_env.save(jupyter_env.the_instance(), "warm")
    kernelspec.install(name="warm", snapshot=snapshot)
    with (
        started(KernelManager(kernel_name="warm")) as one,
        started(KernelManager(kernel_name="warm")) as two,
    ):
        one("warm = 0")
        assert (one("print(warm)"), two("print(warm)")) == ("0", "499500")
    kernelspec.remove("warm")


def test_live_kernels_are_listed_as_kernels_to_open(jupyter_env: JupyterEnv) -> None:
    specs = LiveKernelSpecManager(repo=str(jupyter_env.repo))
    with started(KernelManager(kernel_name=KERNEL)):
        name = jupyter_env.the_instance()
        live = specs.get_all_specs()[PREFIX + name]
        assert (live["spec"]["display_name"], live["spec"]["language"]) == (f"{name} (live)", "python")
        assert live["resource_dir"] == specs.get_all_specs()[KERNEL]["resource_dir"]
        # A spec that is attached to it would show it a second time.
        kernelspec.install(attach=name)
        assert PREFIX + name not in specs.find_kernel_specs()
        assert specs.get_kernel_spec(PREFIX + name).display_name == f"{name} (live)"
        kernelspec.remove(f"ijfs-{name}")
    assert PREFIX + name not in specs.find_kernel_specs()
    with pytest.raises(NoSuchKernel):
        specs.get_kernel_spec(PREFIX + name)


def test_another_process_can_take_a_kernel_over(jupyter_env: JupyterEnv) -> None:
    with started(KernelManager(kernel_name=KERNEL)) as cells:
        import asyncio

        provisioner = cells.manager.provisioner
        assert isinstance(provisioner, IjfsProvisioner)

        async def take_over() -> int | None:
            info = await provisioner.get_provisioner_info()
            second = IjfsProvisioner(kernel_spec=cells.manager.kernel_spec)
            await second.load_provisioner_info(info)
            assert await second.poll() is None
            await second.kill()
            return await second.wait()

        assert asyncio.run(take_over()) is not None
        assert not cells.manager.is_alive()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [({"attach": "nobody"}, "no program `nobody`"), ({"snapshot": "feedc0ffee"}, "feedc0ffee")],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    jupyter_env: JupyterEnv, config: dict[str, str], sentence: str
) -> None:
    kernelspec.install(name="broken", **config)
    manager = KernelManager(kernel_name="broken")
    with pytest.raises(IjfsError, match=sentence):
        manager.start_kernel()
    manager.shutdown_kernel(now=True)
    assert not manager.has_kernel
    assert client.list_instances(jupyter_env.repo) == []
    kernelspec.remove("broken")
