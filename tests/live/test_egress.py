"""Programs that may connect to some places alone: what is let out, what is not, and that copies have the same."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import patient

from ijfs.live.client import api as client
from ijfs.live.errors import CommandError, SandboxError
from ijfs.live.sandbox import egress, rights
from ijfs.live.sandbox import namespaces as ns

MISSING = [*egress.missing_programs(), *(name for name in ("slirp4netns", "ip") if shutil.which(name) is None)]
NEEDED = pytest.mark.skipif(bool(MISSING) or not Path("/dev/net/tun").exists(), reason="needs iptables, slirp4netns")
PLACES = egress.parse(["192.0.2.7:443", "198.51.100.0/24:80"])


@pytest.mark.parametrize(
    "word",
    [
        *("", "host", "host:", ":1", "host:0", "host:65536", "host:-1", "host:٣", "1.2.3:4", "1.2.3.4/33:5"),
        *("[::1]:80", "a b:1", "a\n-A OUTPUT -j ACCEPT:1", "-host:1", "1.2.3.4 -j ACCEPT:1", "host:1:2"),
        f"{'a' * 254}:1",
    ],
)
def test_what_is_no_place_is_refused_before_any_rule_is_made_of_it(word: str) -> None:
    with pytest.raises(CommandError):
        egress.parse([word])


def test_names_are_written_once_into_hosts_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "mine").write_text("the machine's")
    (tmp_path / "etc/resolv.conf").symlink_to(tmp_path / "mine")
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n")
    places = egress.parse(["Some.Name:443", "some.name:80", "192.0.2.7:1"])
    for address in ("192.0.2.1", "192.0.2.2"):
        egress.put_names(tmp_path, places, egress.Resolved({"some.name": [address], "192.0.2.7": ["192.0.2.7"]}, []))
    lines = (tmp_path / "etc/hosts").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["127.0.0.1 localhost", "192.0.2.2\tsome.name"]
    assert (tmp_path / "mine").read_text() == "the machine's"
    assert "nameserver" not in (tmp_path / "etc/resolv.conf").read_text()


@pytest.mark.root
@NEEDED
def test_the_kernel_lets_out_what_was_said_and_refuses_the_rest_at_once() -> None:
    """In a network with a device of its own and nobody at its other end: what is let out gets no answer."""
    with closing_fd(ns.new_network()) as network:
        with ns.in_network(network):
            _run("ip", "tuntap", "add", "out0", "mode", "tap")
            _run("ip", "addr", "add", "192.0.2.1/24", "dev", "out0")
            _run("ip", "link", "set", "out0", "up")
            _run("ip", "route", "add", "default", "dev", "out0")
        egress.close(network, PLACES, egress.resolve(PLACES))
        with ns.in_network(network):
            refused = [("192.0.2.7", 80), ("192.0.2.8", 443), ("198.51.101.1", 80)]
            assert [_try(*place, patient(10)) for place in refused] == [errno.EHOSTUNREACH] * 3
            assert _let_out() == [0, 0]
            assert _try("192.0.2.7", 443, 0) == _try("198.51.100.200", 80, 0) == errno.EINPROGRESS
            assert _let_out() == [1, 1]
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock, pytest.raises(PermissionError):
                sock.sendto(b"x", ("192.0.2.7", 443))


@NEEDED
def test_a_program_and_its_copies_have_no_rights_over_their_rules(shared_env: LiveEnv) -> None:
    info = shared_env.command("kept", "exec sleep 1000", egress=("192.0.2.7:443",))
    assert (info.network, info.egress) == ("slirp4netns", ("192.0.2.7:443",))
    (copy,) = client.fork(shared_env.repo, "kept", ["copy"])
    assert copy.egress == info.egress
    reach = "import socket; s = socket.socket(); s.settimeout(9); print(s.connect_ex(('192.0.2.8', 443)))"
    for one in (info, copy):
        assert one.pid is not None
        held = rights.of(one.pid).bounding
        assert not any(held >> number & 1 for number in rights.OVER_THE_NETWORK.values())
        check = f'test $({sys.executable} -c "{reach}") = {errno.EHOSTUNREACH}'
        assert client.exec_command(shared_env.repo, one.name, ["sh", "-c", check]) == 0
        assert client.exec_command(shared_env.repo, one.name, ["sh", "-c", "! iptables -F OUTPUT 2>/dev/null"]) == 0


@NEEDED
def test_what_cannot_be_kept_in_does_not_start(shared_env: LiveEnv) -> None:
    with pytest.raises(CommandError, match="privileged"):
        shared_env.command("no", "exec sleep 1000", egress=("192.0.2.7:443",), privileged=True)
    with pytest.raises(SandboxError, match=r"nobody\.invalid has no IPv4 address"):
        shared_env.command("no", "exec sleep 1000", egress=("nobody.invalid:443",))
    assert not client.is_running(shared_env.repo, "no")


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _run(*line: str) -> None:
    subprocess.run(line, check=True)


def _try(host: str, port: int, timeout_s: float) -> int:
    """How a connection begins: under way, or refused by the rules."""
    with closing(socket.socket()) as sock:
        sock.settimeout(timeout_s)
        return sock.connect_ex((host, port))


def _let_out() -> list[int]:
    """Packets that each place was sent, by the counters of the rules."""
    shown = subprocess.run(["iptables", "-L", "OUTPUT", "-v", "-x", "-n"], check=True, capture_output=True, text=True)
    return [int(row.split()[0]) for row in shown.stdout.splitlines() if "dpt:" in row]
