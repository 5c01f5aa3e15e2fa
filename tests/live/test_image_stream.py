"""The receiver of `criu dump --stream`, spoken to as CRIU does, by real sockets and pipes.

What is tested here is the receiver's side: order, damage, hostile input. That CRIU speaks like this is tested by
test_real_dumps.py.
"""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijfs.live.criu.image_stream import SOCKET_NAME, StreamCapture, StreamError, parse_request
from ijfs_engine.write.arena import Arena, ArenaFullError

MIB = 1 << 20


class Peer:
    """CRIU's end: announces files and hands over their pipes."""

    def __init__(self, directory: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(directory / SOCKET_NAME))

    def open(self, name: bytes) -> int:
        """Announce a file; the writing end of its pipe."""
        self.announce(b"\x0a" + _varint(len(name)) + name)
        read_end, write_end = os.pipe()
        self.socket.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read_end]).tobytes())])
        os.close(read_end)
        return write_end

    def announce(self, message: bytes) -> None:
        self.socket.sendall(struct.pack("<I", len(message)) + message)

    def send(self, name: bytes, data: bytes) -> None:
        """A whole file."""
        pipe = self.open(name)
        with open(pipe, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80, number >> 7])


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[StreamCapture]:
    """A receiver that waits, with 64 MiB."""
    with StreamCapture(tmp_path, Arena(64 * MIB)) as started:
        yield started


@pytest.fixture
def peer(capture: StreamCapture) -> Iterator[Peer]:
    """A peer connected to it."""
    connected = Peer(capture.directory)
    yield connected
    connected.socket.close()


def received(capture: StreamCapture) -> dict[str, bytes]:
    return {name: b"".join(segments) for name, segments in capture.finish().items()}


def test_files_arrive_byte_for_byte_also_when_sent_in_turn(capture: StreamCapture, peer: Peer) -> None:
    chance = random.Random(3)
    wanted = {f"pages-{number}.img": chance.randbytes(size) for number, size in enumerate((0, 1, 5 * MIB + 3))}
    for name, data in wanted.items():
        peer.send(name.encode(), data)
    names = [b"one.img", b"x" * 200]
    pipes = [peer.open(name) for name in names]
    for _ in range(50):
        for pipe in pipes:
            os.write(pipe, bytes([pipe]) * 1000)
    for pipe in pipes:
        os.close(pipe)
    capture.drain()
    peer.socket.close()
    wanted |= {name.decode(): bytes([pipe]) * 50_000 for name, pipe in zip(names, pipes, strict=True)}
    assert received(capture) == wanted


def test_drain_waits_for_what_is_still_in_a_pipe(capture: StreamCapture, peer: Peer) -> None:
    pipe = peer.open(b"pages-1.img")
    os.write(pipe, b"page" * 1000)
    answered: list[float] = []
    waiting = threading.Thread(target=lambda: (capture.drain(), answered.append(time.monotonic())))
    waiting.start()
    time.sleep(0.1)
    assert answered == []
    os.write(pipe, b"last")
    os.close(pipe)
    waiting.join(10)
    assert len(answered) == 1
    peer.socket.close()
    assert received(capture)["pages-1.img"] == b"page" * 1000 + b"last"


def test_a_dump_that_was_not_drained_before_the_program_ran_is_refused(capture: StreamCapture, peer: Peer) -> None:
    peer.send(b"pages-1.img", b"bytes")
    peer.socket.close()
    with pytest.raises(StreamError, match="drain"):
        capture.finish()
    assert b"".join(capture.finish(left_running=False)["pages-1.img"]) == b"bytes"


def test_files_after_a_drain_need_another(capture: StreamCapture, peer: Peer) -> None:
    capture.drain()
    peer.send(b"late.img", b"late")
    peer.socket.close()
    with pytest.raises(StreamError, match="drain"):
        capture.finish()


def test_drain_gives_up_in_time(capture: StreamCapture, peer: Peer) -> None:
    pipe = peer.open(b"slow.img")
    with pytest.raises(StreamError, match="within"):
        capture.drain(timeout_s=0.1)
    os.close(pipe)


def test_a_full_arena_breaks_crius_pipe_and_says_so(tmp_path: Path) -> None:
    with StreamCapture(tmp_path, Arena(MIB)) as capture:
        peer = Peer(tmp_path)
        with pytest.raises(BrokenPipeError):
            peer.send(b"pages-1.img", bytes(8 * MIB))
        with pytest.raises(ArenaFullError):
            capture.drain()
        with pytest.raises(ArenaFullError):
            capture.finish()
        assert isinstance(capture.error, ArenaFullError), "what CRIU calls a broken pipe has this cause"
        peer.socket.close()


def test_a_thousand_small_images_fit_where_a_thousand_pipes_would_not(tmp_path: Path) -> None:
    with StreamCapture(tmp_path, Arena(8 * MIB)) as capture:
        peer = Peer(tmp_path)
        for number in range(1000):
            peer.send(f"core-{number}.img".encode(), bytes([number % 256]) * 1000)
        capture.drain()
        peer.socket.close()
        assert capture.error is None
        assert all(data == bytes([int(name[5:-4]) % 256]) * 1000 for name, data in received(capture).items())


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x0a",
        b"\x0a\x00",
        b"\x0a\x05name",
        b"\x0a\x04name!",
        b"\x0a\x84\x01name",
        b"\x0a\x80",
        b"\x12\x04name",
        b"\x0a\x05../up",
        b"\x0a\x02a\0",
    ],
)
def test_an_announcement_that_is_none_is_refused(message: bytes) -> None:
    with pytest.raises(StreamError):
        parse_request(message)


def test_random_announcements_never_crash_the_parser() -> None:
    chance = random.Random(5)
    for _ in range(3000):
        message = chance.choice([b"", b"\x0a"]) + chance.randbytes(chance.randrange(12))
        try:
            name = parse_request(message)
        except StreamError:
            continue
        assert name
        assert "/" not in name


@pytest.mark.parametrize(
    "hostile",
    [
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 6) + b"\x0a\x04name" + b"\0",  # a byte where the pipe should be
        struct.pack("<I", 6) + b"\x0a\x04na",  # and then the end
        b"\x01",
    ],
    ids=["huge", "no pipe", "cut short", "half a length"],
)
def test_a_peer_that_is_no_criu_is_dropped(capture: StreamCapture, peer: Peer, hostile: bytes) -> None:
    peer.socket.sendall(hostile)
    peer.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(StreamError):
        capture.finish(left_running=False)
    assert peer.socket.recv(1) == b""


def test_a_file_that_comes_twice_is_refused(capture: StreamCapture, peer: Peer) -> None:
    peer.send(b"core-1.img", b"one")
    with contextlib.suppress(BrokenPipeError):
        peer.send(b"core-1.img", b"two")
    with pytest.raises(StreamError, match="twice"):
        capture.finish(left_running=False)


def test_what_was_begun_and_never_met_a_criu_ends(tmp_path: Path) -> None:
    before = threading.active_count()
    fds = len(os.listdir("/proc/self/fd"))
    with StreamCapture(tmp_path, Arena(MIB)):
        assert (tmp_path / SOCKET_NAME).is_socket()
    assert threading.active_count() == before
    assert len(os.listdir("/proc/self/fd")) == fds
    assert not (tmp_path / SOCKET_NAME).exists()


def test_a_path_that_criu_would_cut_off_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(StreamError, match="longer"), StreamCapture(deep, Arena(MIB)):
        pass


def test_the_socket_is_its_owners_alone(capture: StreamCapture) -> None:
    assert (capture.directory / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
