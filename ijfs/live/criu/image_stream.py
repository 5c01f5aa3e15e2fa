"""Receive a dump by `criu dump --stream`: every image through a pipe, straight into memory faulted in beforehand.

Called by checkpoint/freeze.py. What comes is a mapping of file name to Segments, which the writer of a snapshot reads
(docs/decisions.md says why a dump comes in no other way).

CRIU's side of it (criu/img-streamer.c): it connects to `streamer-capture.sock` in the image directory; for each image
it sends a length (u32) and a protobuf message with the file's name, then, with one byte, the reading end of a pipe.
Errors have no message: whoever closes its end has failed. Three things follow from how it works:

- CRIU moves the frozen program's own pages into the pipe (vmsplice), not copies of them. What is still in a pipe when
  the program runs again may show what it wrote since. `drain` has to be called, and answer, while the program is still
  frozen: from CRIU's post-dump action script.
- stats-dump does not come by the stream; it is written into the working directory (-W).
- CRIU copies the socket's path into 108 bytes: the image directory's has to be short.
"""

from __future__ import annotations

import array
import fcntl
import os
import selectors
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ijfs_engine import Arena, ArenaFile, Segments, is_pages
from ijfs_engine.errors import IjfsError, StorageError

SOCKET_NAME = "streamer-capture.sock"

# 1 MiB is the most a pipe may have without CAP_SYS_RESOURCE (fs.pipe-max-size). With a pipe's own 64 KiB a program of
# 1 GiB was frozen for 0.77 s instead of 0.60, with 256 KiB for 0.68.
PIPE_BYTES = 1 << 20

# Of all other images, so much is read at once: most are smaller, and a thread has one of its own.
SMALL_BYTES = 4 << 10

# Threads that receive. A GiB costs CRIU 0.06 s, and copying it out of pipes 0.2 s of one core. Frozen for 1 GiB on two
# cores: one thread that reads 0.30 s; two that take turns 0.19, three 0.19, six 0.24; the same loop in C 0.20.
COPIERS = min(4, (os.cpu_count() or 1) + 1)

# linux/un.h: sun_path, with its ending NUL.
_LONGEST_SOCKET_PATH = 107

# A name CRIU sends is at most PATH_MAX; anything longer is no CRIU.
_LONGEST_MESSAGE = 4096 + 16

# A peer that sent half of a message answers within this, or has gone mad.
_PEER_TIMEOUT_S = 10.0


class StreamError(StorageError):
    """A dump by stream broke off or was not what CRIU sends; the program runs on, nothing is stored."""

    default_hint = "CRIU's log says why it stopped; `ijfs save` can be tried again"


class StreamCapture:
    """One dump received by threads of its own, into files of `arena`.

    `directory` is what CRIU is given as -D; it holds only the socket. A context manager: leaving it ends the threads
    and removes the socket, whatever happened.
    """

    def __init__(self, directory: Path, arena: Arena) -> None:
        self.directory = directory
        self._arena = arena
        self._socket_path = directory / SOCKET_NAME
        self._receiver: _Receiver | None = None
        self._stopped = False

    def start(self) -> None:
        """Listen. StreamError where the socket cannot be made."""
        if len(os.fsencode(self._socket_path)) > _LONGEST_SOCKET_PATH:
            raise StreamError(f"{self._socket_path} is longer than a socket's path may be")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket_path.unlink(missing_ok=True)
            listener.bind(os.fspath(self._socket_path))
            self._socket_path.chmod(0o600)
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise StreamError(f"cannot listen at {self._socket_path}: {error.strerror}") from error
        self._receiver = _Receiver(listener, self._arena)
        self._receiver.start()

    def wait_begun(self) -> bool:
        """Wait for the first image, which CRIU opens when it has stopped the whole program; False where none comes."""
        receiver = self._started()
        receiver.begun.wait()
        return bool(receiver.files)

    def drain(self, timeout_s: float = _PEER_TIMEOUT_S) -> None:
        """Wait until every byte sent so far is in the arena; call it at post-dump, while the program is frozen.

        StreamError when it takes longer or receiving has failed: the dump must then be given up (let the action
        script fail), as what is still in the pipes are pages the program is about to change.
        """
        receiver = self._started()
        if not receiver.drain(timeout_s):
            raise StreamError(f"CRIU's images were not received within {timeout_s:.0f} s")
        receiver.raise_error()

    def finish(self, *, left_running: bool = True, timeout_s: float = _PEER_TIMEOUT_S) -> Mapping[str, Segments]:
        """The files by name, once CRIU has ended well. StreamError where it did not end in order, or where the
        program was `left_running` and nothing called `drain` before it ran."""
        receiver = self._started()
        if not receiver.ended.wait(timeout_s):
            raise StreamError("CRIU has ended, but something still holds its stream open")
        receiver.raise_error()
        if left_running and not receiver.drained:
            raise StreamError("the program ran again before its images were received: nothing called drain()")
        return {name: file.segments() for name, file in receiver.files.items()}

    @property
    def files(self) -> Mapping[str, ArenaFile]:
        """What was received, by name; to be changed only once CRIU has ended, before `finish`."""
        return self._started().files

    @property
    def error(self) -> IjfsError | None:
        """Why receiving ended before CRIU did: no memory, no room on disk. CRIU knows only of a broken pipe."""
        found = self._receiver.error if self._receiver is not None else None
        return None if isinstance(found, StreamError) else found

    @property
    def written(self) -> int:
        """Bytes received so far: for progress."""
        return sum(file.size for file in list(self._started().files.values()))

    def close(self) -> None:
        """End the threads and remove the socket; safe to call twice."""
        if self._receiver is not None and not self._stopped:
            self._receiver.stop()
            self._stopped = True
        with suppress(OSError):
            self._socket_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> _Receiver:
        if self._receiver is None:
            raise RuntimeError("the capture was not started")
        return self._receiver


class _Receiver:
    """The threads: one accepts one CRIU, takes its pipes, and reads whichever has something, while others copy.

    They take turns. The thread that holds `_turn` waits for what comes next. Of a pages file it only *moves* the pages
    from CRIU's pipe into a pipe of its own (splice copies nothing), gives the turn away, and then copies them. So
    CRIU's pipe is empty again at once, and all the other threads can copy. Where the bytes go in the file is decided
    before the turn is given away.

    Other threads read a turn's results (`files`, `error`) only after an event or a join.
    """

    def __init__(self, listener: socket.socket, arena: Arena) -> None:
        self.files: dict[str, ArenaFile] = {}
        self.error: IjfsError | None = None
        self.drained = False
        self._arena = arena
        self._listener = listener
        self._connection: socket.socket | None = None
        self._pipes: dict[int, _Incoming] = {}
        self._turn = threading.Lock()
        self._copying = _Count()
        self._threads = [threading.Thread(target=self._work, name="criu-stream", daemon=True) for _ in range(COPIERS)]
        self._left = _Count(len(self._threads))
        self._selector = selectors.EpollSelector()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._drain_wanted = False
        self._drain_answered = threading.Event()
        self._stopping = False
        self.begun = threading.Event()
        self.ended = threading.Event()

    # -- called by others

    def start(self) -> None:
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        for thread in self._threads:
            thread.start()

    def drain(self, timeout_s: float) -> bool:
        self._drain_answered.clear()
        self._drain_wanted = True
        self._wake()
        # `ended` is looked at after the clear: the last thread sets `ended` first, then `_drain_answered`.
        return self.ended.is_set() or self._drain_answered.wait(timeout_s)

    def stop(self) -> None:
        """End the threads and close what they used."""
        self._stopping = True
        self._wake()
        for thread in self._threads:
            thread.join()
        fd, self._wake_fd = self._wake_fd, -1
        if fd >= 0:
            os.close(fd)

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    # -- the threads

    def _work(self) -> None:
        try:
            with _OwnPipe() as own:
                self._take_turns(own)
        except IjfsError as error:
            self._fail(error)
        except (OSError, EOFError, ValueError) as error:
            self._fail(StreamError(f"CRIU's stream broke: {error}"))
        finally:
            if self._left.down() == 0:
                # CRIU sees a broken pipe where it was not done: it gives the dump up, and the program runs on.
                self._close()
                self.begun.set()
                self.ended.set()
                self._drain_answered.set()

    def _take_turns(self, own: _OwnPipe) -> None:
        while True:
            with self._turn:
                if self._finished():
                    return
                try:
                    copy = self._step(own)
                except BaseException:
                    self._stopping = True  # in the turn: the next one would read on in the middle of something
                    raise
            if copy is not None:
                own.empty_into(copy)
                # A drain waits for the last copy, too.
                if self._copying.down() == 0 and self._drain_wanted:
                    self._wake()

    def _fail(self, error: IjfsError) -> None:
        self.error = self.error or error
        self._stopping = True
        self._wake()

    def _finished(self) -> bool:
        return self._stopping or (self._listener.fileno() < 0 and self._connection is None and not self._pipes)

    def _step(self, own: _OwnPipe) -> list[memoryview] | None:
        """Deal with one event. Where pages were moved into `own`: the room that they are to be copied to."""
        # A drain is answered when nothing is open, copied or waits: CRIU has then sent all it had for us.
        asked = self._drain_wanted and not self._pipes and not self._copying.now
        events = self._selector.select(0 if asked else None)
        if asked and not events:
            self.drained = True
            self._drain_wanted = False
            self._drain_answered.set()
        if not events or self._stopping:
            return None
        key, _ = events[0]
        if key.fileobj == self._wake_fd:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        elif key.fileobj is self._listener:
            self._accept()
        elif key.fileobj is self._connection:
            self._take_file()
        else:
            return self._receive(self._pipes[key.fd], own)
        return None

    def _accept(self) -> None:
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(_PEER_TIMEOUT_S)
        self._selector.register(self._connection, selectors.EVENT_READ)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _take_file(self) -> None:
        assert self._connection is not None
        head = self._connection.recv(4)
        if not head:
            self._selector.unregister(self._connection)
            self._connection.close()
            self._connection = None
            return
        head += _receive_exactly(self._connection, 4 - len(head))
        (length,) = struct.unpack("<I", head)
        if length > _LONGEST_MESSAGE:
            raise StreamError(f"a file name of {length} bytes was announced")
        name = parse_request(_receive_exactly(self._connection, length))
        if name in self.files:
            raise StreamError(f"the image {name} came twice")
        pipe = _receive_fd(self._connection)
        of_memory = is_pages(name)
        if of_memory:
            _enlarge(pipe)
        self.files[name] = file = self._arena.new_file()
        self.begun.set()
        self._pipes[pipe] = _Incoming(pipe, file, of_memory)
        self._selector.register(pipe, selectors.EVENT_READ)
        self.drained = False

    def _receive(self, incoming: _Incoming, own: _OwnPipe) -> list[memoryview] | None:
        file = incoming.file
        if incoming.of_memory:
            length = os.splice(incoming.pipe, own.write_end, PIPE_BYTES)
        else:
            length = os.readv(incoming.pipe, [file.tail(max(SMALL_BYTES, file.size))])
            file.advance(length)
        if length == 0:
            self._selector.unregister(incoming.pipe)
            del self._pipes[incoming.pipe]
            os.close(incoming.pipe)
        if length == 0 or not incoming.of_memory:
            return None
        self._copying.up()
        return _reserve(file, length)

    def _close(self) -> None:
        while self._pipes:
            os.close(self._pipes.popitem()[0])
        if self._connection is not None:
            self._connection.close()
        self._listener.close()
        self._selector.close()


class _Incoming(NamedTuple):
    """A file that CRIU is sending. Only pages are moved through a second pipe: all other files are small."""

    pipe: int
    file: ArenaFile
    of_memory: bool


class _OwnPipe:
    """A pipe that one thread alone moves pages through. A context manager."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        _enlarge(self.write_end)

    def empty_into(self, views: list[memoryview]) -> None:
        """Copy what is in it: exactly as much as the views have room for."""
        while views:
            length = os.readv(self._read_end, views)
            while views and length >= len(views[0]):
                length -= len(views.pop(0))
            if length:
                views[0] = views[0][length:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._read_end)
        os.close(self.write_end)


class _Count:
    """A number that threads change."""

    def __init__(self, now: int = 0) -> None:
        self.now = now
        self._lock = threading.Lock()

    def up(self) -> None:
        with self._lock:
            self.now += 1

    def down(self) -> int:
        """What it is then."""
        with self._lock:
            self.now -= 1
            return self.now


def _reserve(file: ArenaFile, length: int) -> list[memoryview]:
    """The next `length` bytes of a file, to be filled later."""
    views: list[memoryview] = []
    while length:
        view = file.tail(length)
        file.advance(len(view))
        length -= len(view)
        views.append(view)
    return views


def _enlarge(pipe: int) -> None:
    with suppress(OSError):  # a smaller pipe is slower, nothing else
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def parse_request(message: bytes) -> str:
    """The name in an `img_streamer_request_entry {required string filename = 1}`. StreamError where it is not one."""
    # Field 1, length-delimited, a varint length below 2^14, and nothing after it.
    if len(message) >= 2 and message[0] == 0x0A:
        length, body = message[1], message[2:]
        if length & 0x80 and body:
            length, body = (length & 0x7F) | body[0] << 7, body[1:]
        if length == len(body) and body and b"/" not in body and b"\0" not in body:
            return os.fsdecode(body)
    raise StreamError("CRIU announced a file in a way this program does not know")


def _receive_exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError("it ended inside a message")
        data += part
    return data


def _receive_fd(connection: socket.socket) -> int:
    _, messages, flags, _ = connection.recvmsg(1, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if len(fds) != 1 or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise StreamError("a file came without its pipe")
    return fds[0]
