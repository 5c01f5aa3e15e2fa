"""What the keeper makes of a kernel's messages, made by hand, in the orders in which two connections bring them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ijfs.live.model.records import KernelState
from ijfs.live.relay.kernel_traffic import Ear, KernelTraffic, Line
from ijfs.live.relay.messages import DELIMITER, encoded
from ijfs.live.relay.zmtp import GREETING

RUN = "execute_request"


class Kernel:
    """A kernel with one client on its shell and some subscribers, who hear all that is said."""

    def __init__(self, subscribers: int = 1) -> None:
        self.told: list[str] = []
        self.traffic = KernelTraffic(tell=lambda what, _: self.told.append(what))
        self.shell = Line("shell", self.traffic)
        self.shell.asks(bytes(GREETING))
        self.shell.answered(bytes(GREETING))
        self.ears = [Ear(self.traffic) for _ in range(subscribers)]

    def asked(self, cell: str) -> None:
        self.shell.asks(message(RUN, cell, {}))
        self.publishes("status", cell, {"execution_state": "busy"})

    def replies(self, cell: str, count: int) -> None:
        self.shell.answered(message("execute_reply", "reply", {"execution_count": count}, cell))

    def is_idle(self, cell: str) -> None:
        self.publishes("status", cell, {"execution_state": "idle"})

    def publishes(self, kind: str, cell: str, content: dict[str, object]) -> None:
        for ear in self.ears:
            ear.hears(message(kind, "published", content, cell), between=True)


def message(kind: str, ident: str, content: dict[str, object], parent: str | None = None) -> bytes:
    about = {} if parent is None else {"msg_id": parent, "msg_type": RUN}
    parts = [{"msg_id": ident, "msg_type": kind}, about, {}, content]
    return encoded([b"who", DELIMITER, b"signature", *(json.dumps(part).encode() for part in parts)])


def ends(kernel: Kernel, cell: str, count: int) -> list[Callable[[], None]]:
    return [lambda: kernel.replies(cell, count), lambda: kernel.is_idle(cell)]


@pytest.mark.parametrize("subscribers", [1, 2])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_cell_has_ended_with_the_first_of_reply_and_idle(order: tuple[int, ...], subscribers: int) -> None:
    kernel = Kernel(subscribers)
    for count, cell in enumerate(["first", "second"], 1):
        kernel.asked(cell)
        kernel.publishes("execute_input", cell, {"execution_count": count})
        assert kernel.traffic.state == KernelState(count - 1 or None, busy=True)
        for at in order:
            ends(kernel, cell, count)[at]()
            assert kernel.traffic.state == KernelState(count, busy=False)
    assert kernel.told == ["busy", "idle"] * 2


def test_a_client_that_had_idle_but_no_reply_gets_one_when_the_kernel_is_replaced() -> None:
    kernel = Kernel()
    kernel.asked("cell")
    kernel.is_idle("cell")
    replies, _ = kernel.traffic.last_words(b"key")
    assert list(replies) == [kernel.shell]
    assert kernel.traffic.last_words(b"key") == ({}, b"")


def test_idle_of_one_cell_says_nothing_of_the_one_behind_it_and_a_late_reply_is_no_end_of_it() -> None:
    kernel = Kernel()
    kernel.asked("first")
    kernel.shell.asks(message(RUN, "second", {}))
    kernel.is_idle("first")
    kernel.replies("first", 1)
    assert kernel.traffic.busy
    kernel.is_idle("second")
    assert not kernel.traffic.busy
    assert kernel.told == ["busy", "idle"]


@pytest.mark.parametrize("leaves_first", [True, False])
def test_a_reply_that_gets_lost_with_its_client_leaves_no_cell_running(leaves_first: bool) -> None:
    kernel = Kernel()
    kernel.asked("cell")
    steps = [lambda: kernel.traffic.left(kernel.shell), lambda: kernel.is_idle("cell")]
    for step in steps if leaves_first else reversed(steps):
        step()
    assert not kernel.traffic.busy


def test_without_a_subscriber_the_reply_is_the_end() -> None:
    kernel = Kernel(subscribers=0)
    kernel.asked("cell")
    assert kernel.traffic.busy
    kernel.replies("cell", 1)
    assert kernel.traffic.state == KernelState(1)
