"""The pager's conversation with CRIU: take its processes' userfaultfds, hear that they run. Used by `server`.

CRIU's side of it (criu/uffd.c): over one stream connection each restored task sends its pid as i32 and then its
userfaultfd; a zombie sends -pid and nothing else; when all tasks are about to run, "FTSR" comes.

Where the conversation stands is written into the supervisor's table at each step, for a successor (`recovery`).
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Final

from ijfs.live.pager.channel import Channel, received_fds
from ijfs.live.pager.memories import ProcessMemories
from ijfs.live.pager.messages import Hold, Release, Resumed
from ijfs.live.pager.spaces import Spaces
from ijfs.live.pager.supervisor import FdTable

_RESTORE_FINISHED: Final = 0x52535446  # criu/uffd.c, LAZY_PAGES_RESTORE_FINISHED


class CriuConversation:
    """The listening socket, then the connection; all of it in the pager's listening thread."""

    def __init__(
        self,
        listener: socket.socket | None,
        channel: Channel,
        fd_table: FdTable,
        epoll: select.epoll,
        spaces: Spaces,
        memories: ProcessMemories,
    ) -> None:
        self.failed = False
        """The restore ended before its programs ran."""
        self._listener = listener
        self._connection: socket.socket | None = None
        self._number = 0
        """Of the connection, between pager and keeper."""
        self._pid: int | None = None
        """Whose userfaultfd comes next."""
        self._channel = channel
        self._fd_table = fd_table
        self._epoll = epoll
        self._spaces = spaces
        self._memories = memories

    def begin(self) -> None:
        """Listen, where CRIU has not come yet."""
        self._enroll()
        if self._listener is not None:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def serves(self, fd: int) -> bool:
        """Whether this descriptor is the conversation's."""
        return any(end is not None and end.fileno() == fd for end in (self._listener, self._connection))

    def on_ready(self, fd: int) -> None:
        """One of its descriptors can be read: CRIU comes, or says something."""
        if self._listener is not None and fd == self._listener.fileno():
            self._accept(self._listener)
        elif self._connection is not None:
            self._hear(self._connection)

    def on_keeper_gone(self) -> None:
        """The keeper is dead. So is its CRIU, which cannot come any more where it has not come yet."""
        self.failed |= self._listener is not None and not _is_called(self._listener)

    def listen_at(self, listener: socket.socket | None) -> None:
        """Take over a predecessor's listening socket."""
        self._listener = listener

    def attach(self, connection: socket.socket, number: int) -> None:
        """CRIU has come, or had come to a predecessor."""
        self._connection = connection
        self._number = number
        self._spaces.skip_number(number)
        self._enroll()
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def finish(self) -> None:
        """CRIU is through: the programs run."""
        self._spaces.resume()
        self._enroll()
        self._channel.send(Resumed())

    def _accept(self, listener: socket.socket) -> None:
        connection = listener.accept()[0]
        self._epoll.unregister(listener.fileno())
        self._listener = None
        self.attach(connection, self._spaces.next_number())
        listener.close()
        self._channel.send(Hold(id=self._number, kind="criu"), [connection.fileno()])

    def _hear(self, connection: socket.socket) -> None:
        data, ancillary, _, _ = connection.recvmsg(
            4 if self._pid is None else 1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            self.failed = self._spaces.resumed is None
            self._hang_up(connection)
        elif self._pid is not None:
            memory = self._memories.of_process(self._pid)
            self._spaces.add(memory, received_fds(ancillary)[0], self._memories.present(memory))
            self._pid = None
        else:
            (number,) = struct.unpack("<i", data)
            if number == _RESTORE_FINISHED:
                self.finish()
                self._hang_up(connection)
            elif number > 0:
                self._pid = number

    def _hang_up(self, connection: socket.socket) -> None:
        self._connection = None
        self._enroll()
        self._epoll.unregister(connection.fileno())
        connection.close()
        self._channel.send(Release(id=self._number))

    def _enroll(self) -> None:
        """Note for a successor where the conversation stands."""
        self._fd_table.set_restore(
            listener=self._listener.fileno() if self._listener is not None else None,
            criu=self._connection.fileno() if self._connection is not None else None,
            number=self._number,
            resumed=self._spaces.resumed is not None,
        )


def _is_called(listener: socket.socket) -> bool:
    """Whether somebody waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
