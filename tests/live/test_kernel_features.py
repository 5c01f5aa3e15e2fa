"""What CRIU finds out about the kernel is kept where CRIU would not keep it; with a /run of its own, on disk."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.criu]

# In a mount namespace of its own: /run is a directory of the test's disk, so CRIU finds no tmpfs there.
SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from ijfs.live.criu import command as criu_command
from ijfs.live.criu import kernel_features
from ijfs.live.sandbox import namespaces
namespaces.private_mounts()
namespaces.bind(sys.argv[1], "/run")
if kernel_features._is_tmpfs(Path("/run")):
    sys.exit("a tmpfs")
def log():
    subprocess.run([criu_command.find(), "check", "-v4", "-o", sys.argv[2]], capture_output=True)
    return Path(sys.argv[2]).read_text()
assert kernel_features.needs_cache()
kernel_features.mount_cache()
assert "Loaded kdat cache" not in log()
if os.fork() == 0:
    kernel_features.build_cache()
    os._exit(0)
assert os.wait()[1] == 0
assert not kernel_features.needs_cache()
kernel_features.mount_cache()
assert "Loaded kdat cache" in log()
before = len(Path("/proc/self/mountinfo").read_text().splitlines())
kernel_features.mount_cache()
assert len(Path("/proc/self/mountinfo").read_text().splitlines()) == before, "mounted twice"
namespaces.umount("/run/criu.kdat")
os.unlink("/run/criu.kdat")  # as a CRIU outside does
kernel_features.mount_cache()
assert "Loaded kdat cache" in log()
"""


def test_probes_are_kept_and_shown_to_every_criu(live_machine: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(run), str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "a tmpfs" in done.stderr:
        pytest.skip("the test's directory is on a tmpfs")
    assert done.returncode == 0, done.stderr
