#!/usr/bin/env python3
"""A real object store for tests: Ceph's RADOS Gateway (S3) with one monitor and one OSD, on loopback, without root.

    tools/rgw.py start       bring it up (the first time: fetch Debian's packages and unpack them, 200 MB); prints how
                             to reach it, as lines NAME=value for the environment
    tools/rgw.py kill        SIGKILL the gateway alone: what it had accepted stays with the OSD
    tools/rgw.py stop        end all of it; what it held is gone, because the OSD keeps its objects in memory

Everything lies in $IJFS_RGW (default: .cache/rgw of the checkout). Nothing is installed: the programs are started from
the unpacked packages. Ports are free ones, drawn at the first start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(os.environ.get("IJFS_RGW", Path(__file__).resolve().parents[1] / ".cache/rgw")).resolve()
PACKAGES, RUN, LOGS, CONF = ROOT / "packages", ROOT / "run", ROOT / "log", ROOT / "ceph.conf"
LIBRARIES = PACKAGES / "usr/lib/x86_64-linux-gnu"
KEY, SECRET, BUCKET = "ijfs-test-key", "ijfs-test-secret", "ijfs"
DAEMONS = ("rgw", "osd", "mon")
START_S = 120


def main(verb: str) -> None:
    """One of the verbs above."""
    if verb == "start":
        start()
    elif verb == "kill":
        end("rgw", signal.SIGKILL)
    elif verb == "stop":
        stop()
    else:
        sys.exit(__doc__)


def start() -> None:
    """Bring up what does not run."""
    RUN.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(exist_ok=True)
    if not (PACKAGES / "usr/bin/radosgw").exists():
        unpack()
    if not all(alive(name) for name in ("mon", "osd")):
        stop()
        RUN.mkdir(parents=True, exist_ok=True)
        make_cluster()
    ports = json.loads((RUN / "ports").read_text())
    if not alive("rgw"):
        spawn("rgw", "radosgw", "-n", "client.rgw")
    wait_for(lambda: answers(ports["rgw"]), "the gateway")
    call("radosgw-admin", "user", "create", "--uid=ijfs", "--display-name=ijfs", f"--access-key={KEY}",
         f"--secret-key={SECRET}", check=False)  # fmt: skip
    print(f"AWS_ENDPOINT_URL=http://127.0.0.1:{ports['rgw']}\nAWS_ALLOW_HTTP=true\nAWS_REGION=us-east-1")
    print(f"AWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={SECRET}")


def unpack() -> None:
    """Debian's packages with what they need and this machine lacks."""
    wanted = ["ceph-mon", "ceph-osd", "radosgw", "ceph-common"]
    plan = subprocess.run(["apt-get", "install", "-s", "--no-install-recommends", *wanted],
                          check=True, capture_output=True, text=True).stdout  # fmt: skip
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    archives = ROOT / "archives"
    archives.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", *names], check=True, cwd=archives, stdout=subprocess.DEVNULL)
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, PACKAGES], check=True)
    shutil.rmtree(archives)


def make_cluster() -> None:
    """A new monitor and OSD, with nothing in them."""
    mon, rgw = free_port(), free_port()
    (RUN / "ports").write_text(json.dumps({"mon": mon, "rgw": rgw}))
    fsid = str(uuid.uuid4())
    CONF.write_text(configuration(fsid, mon, rgw))
    for name in ("mon", "osd"):
        (ROOT / name).mkdir(exist_ok=True)
    call("ceph-authtool", "--create-keyring", ROOT / "keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon}]", RUN / "monmap", "--clobber")
    call("ceph-mon", "--mkfs", "-i", "a", "--monmap", RUN / "monmap", "--keyring", ROOT / "keyring")
    spawn("mon", "ceph-mon", "-i", "a")
    wait_for(lambda: listens(mon), "the monitor")
    osd = str(uuid.uuid4())
    call("/usr/bin/python3", PACKAGES / "usr/bin/ceph", "osd", "new", osd)
    call("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
    spawn("osd", "ceph-osd", "-i", "0")


def configuration(fsid: str, mon: int, rgw: int) -> str:
    """No authentication between the daemons: they listen on loopback only. One copy of everything, in memory."""
    settings = {
        "fsid": fsid,
        "mon host": f"[v2:127.0.0.1:{mon}/0]",
        "public addr": "127.0.0.1",
        "cluster addr": "127.0.0.1",
        "ms bind ipv6": "false",
        "ms mon client mode": "crc",  # the default is encrypted, which wants authentication
        "auth cluster required": "none",
        "auth service required": "none",
        "auth client required": "none",
        "keyring": ROOT / "keyring",
        "run dir": RUN,
        "admin socket": "",
        "log file": LOGS / "$name.log",
        "mon cluster log file": "",
        "mon data": ROOT / "mon",
        "osd data": ROOT / "osd",
        "erasure code dir": LIBRARIES / "ceph/erasure-code",
        "plugin dir": LIBRARIES / "ceph",
        "osd class dir": LIBRARIES / "rados-classes",
        "osd objectstore": "memstore",
        "memstore device bytes": 6 << 30,
        "osd crush chooseleaf type": 0,
        "osd pool default size": 1,
        "osd pool default min size": 1,
        "mon allow pool size one": "true",
        "osd pool default pg num": 1,
        "osd pool default pg autoscale mode": "off",
        "mon max pg per osd": 1000,
        # A mon commits in steps of this; a test would wait seconds for each pool.
        "paxos propose interval": 0.02,
        "paxos min wait": 0.01,
        "osd heartbeat grace": 60,
        "rgw frontends": f"beast endpoint=127.0.0.1:{rgw} tcp_nodelay=1",
        "rgw thread pool size": 64,
        "rgw run sync thread": "false",
        "rgw override bucket index max shards": 1,
    }
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


def environment() -> dict[str, str]:
    """Programs and libraries of the unpacked packages before those of the machine."""
    places = [LIBRARIES, LIBRARIES / "ceph", PACKAGES / "lib/x86_64-linux-gnu"]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, places)),
        "PATH": f"{PACKAGES / 'usr/bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(PACKAGES / "usr/lib/python3/dist-packages"),
        "CEPH_CONF": str(CONF),
    }


def call(program: str | Path, *arguments: str | Path, check: bool = True) -> None:
    """Run one of Ceph's programs to its end; what it says goes to the log."""
    with (LOGS / "calls.log").open("ab") as log:
        command = [str(program), *map(str, arguments)]
        found = subprocess.run(command, env=environment(), stdout=log, stderr=log, check=False)
    if check and found.returncode:
        sys.exit(f"{Path(str(arguments[0])).name if program == '/usr/bin/python3' else program} failed; see {LOGS}")


def spawn(name: str, program: str, *arguments: str) -> None:
    """Start a daemon in a session of its own and note its pid."""
    with (LOGS / f"{name}.out").open("ab") as log:
        command = [program, *arguments, "-f", "-c", str(CONF)]
        daemon = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                  start_new_session=True)  # fmt: skip
    (RUN / f"{name}.pid").write_text(str(daemon.pid))


def alive(name: str) -> bool:
    """Whether a daemon that was started runs."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((RUN / f"{name}.pid").read_text())
        status = Path(f"/proc/{pid}/stat").read_text()
        return str(CONF).encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and ") Z " not in status
    return False


def end(name: str, number: signal.Signals) -> None:
    """Signal a daemon, and wait until it is gone."""
    if alive(name):
        os.kill(int((RUN / f"{name}.pid").read_text()), number)
        wait_for(lambda: not alive(name), f"the end of {name}")
    (RUN / f"{name}.pid").unlink(missing_ok=True)


def stop() -> None:
    """End all daemons and drop what they kept: what an OSD has in memory does not come back."""
    for name in DAEMONS:
        end(name, signal.SIGKILL)
    for path in (RUN, ROOT / "mon", ROOT / "osd"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (CONF, ROOT / "keyring"):
        path.unlink(missing_ok=True)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether a connection is accepted."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(port: int) -> bool:
    """Whether the gateway speaks HTTP."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def wait_for(happened: object, what: str) -> None:
    """Until a condition holds; the daemons have two minutes."""
    assert callable(happened)
    deadline = time.monotonic() + START_S
    while not happened():
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}; see {LOGS}")
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
