"""What a stranger's snapshot says of its program names no file of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from ijfs.live.model.records import Base
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.network_state import NetworkState, put_back


@pytest.mark.root
def test_settings_of_a_network_are_written_below_proc_sys_net_and_nowhere_else(tmp_path: Path) -> None:
    """A path that began with a slash was written to, whatever it was."""
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    up = "../" * 20
    paths = (
        str(victim),
        f"{up}{victim}",
        f"ipv4/{up}{victim}",
        f"ipv4//{victim}",
        "ipv4/a\0b",
        "ipv4/",
        "",
        "/",
        "ipv4",
    )
    network = ns.new_network()
    try:
        put_back(network, NetworkState(settings={**dict.fromkeys(paths, "changed"), "ipv4/ip_default_ttl": "77\n"}))
        with ns.in_network(network):
            assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == "77\n"
    finally:
        os.close(network)
    assert victim.read_text() == "as it was"


@pytest.mark.root
@pytest.mark.parametrize("message", [b"", b"\0", b"\xff" * 7, b"\xff" * 100, bytes(1 << 17)])
def test_messages_that_are_none_are_left_out(message: bytes) -> None:
    network = ns.new_network()
    try:
        put_back(network, NetworkState(addresses=(("lo", message),), routes=(("lo", message),), rules=(message,)))
    finally:
        os.close(network)


@pytest.mark.parametrize("snapshot", ["../../x", "", "ab" * 32 + "\n", " " + "ab" * 32, "AB" * 32, "ab" * 31])
def test_a_base_is_named_by_an_id(snapshot: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"snapshot": snapshot, "name": "n"}, Base)
