"""The host's /tmp and /var/tmp as a program sees them: its files, not its sockets and locks."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_env import LiveEnv

from ijfs.live.sandbox import scratch

pytestmark = [pytest.mark.root, pytest.mark.criu]

LOOK = """
for at in "$@"; do
    [ "$(cat $at/data)" = host ] || exit 1
    [ ! -e $at.sock ] && [ ! -e $at.sock.lock ] || exit 2
done
"""


@pytest.fixture
def places() -> Iterator[list[Path]]:
    """A directory with a file in each, and beside it a socket that is listened on, with its lock file."""
    with tempfile.TemporaryDirectory(dir="/tmp") as tmp, tempfile.TemporaryDirectory(dir="/var/tmp") as var_tmp:
        found = [Path(tmp), Path(var_tmp)]
        beside = [Path(f"{place}{end}") for place in found for end in (".sock", ".sock.lock")]
        servers = [socket.socket(socket.AF_UNIX) for _ in found]
        try:
            for place, server in zip(found, servers, strict=True):
                (place / "data").write_text("host")
                server.bind(f"{place}.sock")
                server.listen()
                Path(f"{place}.sock.lock").write_text("1")
            yield found
        finally:
            for server in servers:
                server.close()
            for path in beside:
                path.unlink(missing_ok=True)


def test_the_hosts_scratch_files_are_seen_and_written_in_the_layer_and_come_back(
    live_env: LiveEnv, places: list[Path]
) -> None:
    live_env.command("looks", f"cd /tmp; exec 3< {places[0]}/data; sleep 1000", cwd=str(live_env.work))
    shown = [str(place) for place in places]
    assert live_env.exec("looks", "sh", "-c", LOOK, "look", *shown) == 0
    assert live_env.exec("looks", "sh", "-c", f"echo inside > {places[0]}/data; rm {places[1]}/data") == 0
    assert [(place / "data").read_text() for place in places] == ["host", "host"]
    live_env.save("looks")
    saved = live_env.save("looks")  # what is as it was in /tmp is taken over, with the working directory below it
    live_env.restore(saved.snapshot, "again")
    for name in ("looks", "again"):
        assert live_env.exec(name, "grep", "-q", "inside", f"{places[0]}/data") == 0
        assert live_env.exec(name, "test", "-e", f"{places[1]}/data") == 1
        assert live_env.exec(name, "test", "-e", f"{places[1]}.sock") == 1


def test_what_listens_and_locks_outside_is_hidden_and_nothing_else(tmp_path: Path) -> None:
    host, upper = tmp_path / "host", tmp_path / "upper"
    for name in (".X11-unix", "systemd-private-1", "tmux-0", "ssh-keys", "work", "unix"):
        (host / name).mkdir(parents=True)
    for name in (".X0-lock", "x.py", ".s.PGSQL.5432.lock"):
        (host / name).touch()
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{host}/.s.PGSQL.5432")
    server.close()
    upper.mkdir()
    (upper / ".X0-lock").touch()  # an ended program's own, which goes on
    scratch.hide_running(host, upper)
    hidden = {path.name for path in upper.iterdir() if path.is_char_device()}
    assert hidden == {".X11-unix", "systemd-private-1", "tmux-0", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"}
    assert os.lstat(upper / "tmux-0").st_rdev == 0
