"""A child forked after CUDA was initialised lets go of the GPU's files: tried in a /dev of its own, with plain files
under the devices' names, as the at-fork hook of every GPU program does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ijfs.guest import PYTHON_PATH, TORCH_PATH
from ijfs.guest.forked import device_ranges

SETUP = """
mount -t tmpfs ijfs-test /dev
mknod -m 666 /dev/null c 1 3
for name in nvidia0 nvidiactl {more}; do head -c 8192 /proc/kallsyms >/dev/$name; done
exec "$@"
"""

PROGRAM = """
import json, mmap, os, subprocess, sys

def held():
    descriptors = ["/proc/self/fd/" + number for number in os.listdir("/proc/self/fd")]
    files = [os.readlink(path) for path in descriptors if os.path.exists(path)]
    maps = [line.split()[5] for line in open("/proc/self/maps") if "/dev/nvidia" in line]
    return [len([f for f in files if "/dev/nvidia" in f]), len(maps)]

names = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
files = [os.open("/dev/" + name, os.O_RDWR) for name in names]
maps = [mmap.mmap(file, 8192) for file in files]  # each has a descriptor of its own beside it
plain = mmap.mmap(-1, 4096)
plain[:5] = b"plain"
first = maps[0][:4]
read, write = os.pipe()
if os.fork() == 0:
    maps[0][:4] = b"....."[:4]  # the driver's library may still write there when the child ends
    still = os.fstat(files[0]).st_rdev == os.stat("/dev/null").st_rdev
    os.write(write, json.dumps([held(), still, plain[:5].decode()]).encode())
    os._exit(0)
os.wait()
child = json.loads(os.read(read, 1000))
status = subprocess.run(["true"], preexec_fn=os.setpgrp).returncode
print(json.dumps({"child": child, "parent": held(), "same": maps[0][:4] == first, "status": status}))
"""


def run(more: str) -> dict[str, object]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHON_PATH, TORCH_PATH])}
    shell = ["unshare", "--mount", "sh", "-ec", SETUP.format(more=more), "sh"]
    command = [*shell, sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.root
def test_a_child_of_a_cuda_program_holds_none_of_the_gpus_files_and_its_parent_all() -> None:
    answer = run("nvidia-uvm")
    assert answer == {"child": [[0, 0], True, "plain"], "parent": [6, 3], "same": True, "status": 0}


@pytest.mark.root
def test_without_cuda_initialised_a_child_keeps_them_for_it_may_use_the_gpu_itself() -> None:
    answer = run("")
    assert answer["child"] == [[4, 2], False, "plain"]


def test_mappings_of_devices_are_told_from_others() -> None:
    lines = [
        "200600000-200800000 rw-s 00000000 00:06 7 /dev/nvidia0",
        "204a00000-204c00000 rw-s 204a00000 00:06 9 /dev/nvidia-uvm",
        "7f00000000-7f00001000 r-xp 00000000 fe:00 1 /opt/lib/libnvidia-ml.so",
        "7f00002000-7f00003000 rw-p 00000000 00:00 0 ",
    ]
    assert list(device_ranges(lines)) == [(0x200600000, 0x200000), (0x204A00000, 0x200000)]
