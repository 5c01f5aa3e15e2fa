"""What a restored program is told of the Python packages and libraries that are others than when it was saved."""

from __future__ import annotations

import mmap
import os
import sysconfig
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.checkpoint import python_packages
from ijfs.live.client import api as client
from ijfs.live.errors import CriuError
from ijfs.live.model.protocol import Event, Notice
from ijfs_engine import CorruptError

MAPS = """
import mmap, time
file = open(LIBRARY, "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
open("/tmp/ready", "w").close()
time.sleep(600)
"""


@pytest.mark.root
@pytest.mark.criu
def test_what_is_not_as_it_was_is_said_package_by_package_and_file_by_file(live_env: LiveEnv) -> None:
    site = live_env.work / "lib/site-packages"
    for name in ("thing-1.0.dist-info", "other_one-2.5.dist-info", "same-3.dist-info"):
        (site / name).mkdir(parents=True)
    library = site / "library.so"
    library.write_bytes(bytes(range(256)) * 64)
    script = MAPS.replace("LIBRARY", repr(str(library)))
    live_env.python("first", script, cwd="/", bind=(str(live_env.work),))
    ready = Path(f"/proc/{client.describe(live_env.repo, 'first').pid}/root/tmp/ready")
    assert eventually(ready.exists, 20)
    saved = live_env.save("first").snapshot
    notes: list[str] = []

    def on_event(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Notice) else [])

    live_env.restore(saved, "second", on_event=on_event)
    assert [note for note in notes if "packages" in note] == []
    (site / "thing-1.0.dist-info").rename(site / "thing-1.1.dist-info")
    (site / "other_one-2.5.dist-info").rmdir()
    (site / "new-1.dist-info").mkdir()
    live_env.restore(saved, "third", on_event=on_event)
    (note,) = [note for note in notes if "packages" in note]
    assert f"{site} are not those" in note
    assert "other_one 2.5 is gone, thing 1.0 is 1.1;" in note


@pytest.mark.root
@pytest.mark.criu
def test_every_file_of_the_machine_that_is_another_is_named_with_the_remedy(live_env: LiveEnv) -> None:
    files = [live_env.work / name for name in ("one", "two")]
    for file in files:
        file.write_text("as it was")
    opened = f"files = [open(name) for name in {[str(file) for file in files]}]"
    script = f"{opened}; open('/tmp/ready', 'w').close(); import time; time.sleep(600)"
    live_env.python("first", script, cwd=str(live_env.work))
    ready = Path(f"/proc/{client.describe(live_env.repo, 'first').pid}/root/tmp/ready")
    assert eventually(ready.exists, 20)
    saved = live_env.save("first").snapshot
    files[0].unlink()
    files[1].write_text("longer than it was")
    with pytest.raises(CriuError) as refused:
        live_env.restore(saved, "second")
    assert f"{files[0]} is gone; {files[1]} has 18 bytes and had 9" in str(refused.value)
    assert "--base" in (refused.value.hint or "")


def test_packages_are_found_by_what_a_process_maps() -> None:
    library = next(Path(sysconfig.get_path("platlib")).rglob("*.so"))
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        found = python_packages.of_processes([os.getpid(), 2**22])
    directory = next(path for path in found if str(library).startswith(path))
    assert found[directory]["pytest"] == pytest.__version__
    encoded = python_packages.encode(found)
    assert list(python_packages.differences(encoded, Path)) == []
    gone = list(python_packages.differences(encoded, lambda path: Path("/nowhere")))
    assert len(gone) == len(found)
    with pytest.raises(CorruptError):
        list(python_packages.differences(b"[]", Path))
