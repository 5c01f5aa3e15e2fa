"""Taking over from a pager that died: from a worker (`succeed`), or from a worker and its supervisor (`adopt`).

What there is to take over was left in three places: descriptors and where the conversation with CRIU stood in the
supervisor's table or with the keeper, everything about one address space in its ledger. Used by `server`, before it
serves.
"""

from __future__ import annotations

import socket

from ijfs.live.pager.channel import Channel
from ijfs.live.pager.conversation import CriuConversation
from ijfs.live.pager.ledger import Ledger
from ijfs.live.pager.memories import ProcessMemories
from ijfs.live.pager.messages import Adopt, Adopted
from ijfs.live.pager.spaces import Spaces
from ijfs.live.pager.supervisor import FdRow, FdTable


class Recovery:
    """One takeover; afterwards the conversation and the spaces are as if this pager had begun them."""

    def __init__(
        self,
        channel: Channel,
        fd_table: FdTable,
        conversation: CriuConversation,
        spaces: Spaces,
        memories: ProcessMemories,
    ) -> None:
        self._channel = channel
        self._fd_table = fd_table
        self._conversation = conversation
        self._spaces = spaces
        self._memories = memories

    def adopt(self) -> None:
        """Take over from a pager that died with its supervisor: everything that its keeper held. Where the keeper dies
        in the middle of it, nobody knows the rest, and nobody will: this pager ends too."""
        while self._channel.alive:
            message = self._channel.receive(None)
            if message is None:
                continue
            match message:
                case Adopted(resumed=resumed), _:
                    self._catch_up(resumed=resumed, same_table=False)
                    return
                case Adopt(kind="criu", id=number), fds:
                    self._conversation.attach(socket.socket(fileno=fds[0]), number)
                case Adopt(id=number), fds:
                    self._adopt_space(FdRow(number, *fds), held=True)
        self._conversation.failed = True

    def succeed(self) -> None:
        """Take over from a worker that died, with its descriptors in place."""
        listener, criu, number, resumed = self._fd_table.restore
        self._conversation.listen_at(socket.socket(fileno=listener) if listener is not None else None)
        if criu is not None:
            self._conversation.attach(socket.socket(fileno=criu), number)
        for row in list(self._fd_table.load()):
            self._adopt_space(row, held=False)
        self._catch_up(resumed=resumed, same_table=True)

    def _adopt_space(self, row: FdRow, *, held: bool) -> None:
        ledger = Ledger(row.ledger)
        self._spaces.adopt(row, ledger, self._memories.of_process(ledger.pid), held=held)

    def _catch_up(self, *, resumed: bool, same_table: bool) -> None:
        """Finish what the predecessor had read, then let every thread that waits for it ask again."""
        if resumed:
            self._conversation.finish()
        for space in self._spaces:
            self._spaces.follow_events(space, after_crash=True, same_table=same_table)
        for space in self._spaces:
            space.wake_all()
