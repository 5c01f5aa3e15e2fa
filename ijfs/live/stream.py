"""Receive a dump by `criu dump --stream`: every image through a pipe, straight into memory faulted in beforehand.

The other way in is `ijfs.fs.sink`; both end in the same mapping of file name to Segments, and `ijfs.live` chooses
(docs/benchmarks.md says why).

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
from typing import TYPE_CHECKING, Self

from ijfs_engine.arena import Segments
from ijfs_engine.errors import IjfsError, StorageError

if TYPE_CHECKING:  # the sink would bring pyfuse3 along, and a keeper that only streams does without
    from ijfs.fs.sink import Arena, ArenaFile

SOCKET_NAME = "streamer-capture.sock"

# 1 MiB is the most a pipe may have without CAP_SYS_RESOURCE (fs.pipe-max-size). With a pipe's own 64 KiB a program of
# 1 GiB was frozen for 0.77 s instead of 0.60, with 256 KiB for 0.68.
PIPE_BYTES = 1 << 20

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
    """One dump received by a thread of its own, into files of `arena`.

    `directory` is what CRIU is given as -D; it holds only the socket. A context manager: leaving it ends the thread and
    removes the socket, whatever happened.
    """

    def __init__(self, directory: Path, arena: Arena) -> None:
        self.directory = directory
        self._arena = arena
        self._socket_path = directory / SOCKET_NAME
        self._receiver: _Receiver | None = None
        self._thread: threading.Thread | None = None

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
        self._thread = threading.Thread(target=self._receiver.run, name="criu-stream", daemon=True)
        self._thread.start()

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
    def written(self) -> int:
        """Bytes received so far: for progress."""
        return sum(file.size for file in list(self._started().files.values()))

    def close(self) -> None:
        """End the thread and remove the socket; safe to call twice."""
        if self._receiver is not None and self._thread is not None:
            self._receiver.stop()
            self._thread.join()
            self._receiver.release()
            self._thread = None
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
    """The thread: accepts one CRIU, takes its pipes, and reads whichever has something.

    `files`, `error` and `drained` are written by the thread and read by others after an event or a join.
    """

    def __init__(self, listener: socket.socket, arena: Arena) -> None:
        self.files: dict[str, ArenaFile] = {}
        self.error: IjfsError | None = None
        self.drained = False
        self._arena = arena
        self._listener = listener
        self._connection: socket.socket | None = None
        self._pipes: dict[int, ArenaFile] = {}
        self._selector = selectors.EpollSelector()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._drain_wanted = False
        self._drain_answered = threading.Event()
        self._stopping = False
        self.ended = threading.Event()

    # -- called by others

    def drain(self, timeout_s: float) -> bool:
        self._drain_answered.clear()
        self._drain_wanted = True
        self._wake()
        # Looked at after the clear: the thread's last act is to set the one, then the other.
        return self.ended.is_set() or self._drain_answered.wait(timeout_s)

    def stop(self) -> None:
        self._stopping = True
        self._wake()

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def release(self) -> None:
        """After the thread: its wake-up is written to by others until then."""
        os.close(self._wake_fd)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    # -- the thread

    def run(self) -> None:
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while not self._finished():
                self._step()
        except IjfsError as error:
            self.error = error
        except (OSError, EOFError, ValueError) as error:
            self.error = StreamError(f"CRIU's stream broke: {error}")
        finally:
            # CRIU sees a broken pipe where it was not done: it gives the dump up, and the program runs on.
            self._close()
            self.ended.set()
            self._drain_answered.set()

    def _finished(self) -> bool:
        return self._stopping or (self._listener.fileno() < 0 and self._connection is None and not self._pipes)

    def _step(self) -> None:
        # A drain is answered when nothing is open and nothing waits: CRIU has then sent all it had for us.
        asked = self._drain_wanted and not self._pipes
        events = self._selector.select(0 if asked else None)
        if asked and not events:
            self.drained = True
            self._drain_wanted = False
            self._drain_answered.set()
        for key, _ in events:
            if key.fileobj == self._wake_fd:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
            elif key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._connection:
                self._take_file()
            else:
                self._receive(key.fd)

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
        with suppress(OSError):  # a smaller pipe is slower, nothing else
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.files[name] = self._pipes[pipe] = self._arena.new_file()
        self._selector.register(pipe, selectors.EVENT_READ)
        self.drained = False

    def _receive(self, pipe: int) -> None:
        file = self._pipes[pipe]
        length = os.readv(pipe, [file.tail(PIPE_BYTES)])
        if length:
            file.advance(length)
        else:
            self._selector.unregister(pipe)
            del self._pipes[pipe]
            os.close(pipe)

    def _close(self) -> None:
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes.clear()
        if self._connection is not None:
            self._connection.close()
        self._listener.close()
        self._selector.close()


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
