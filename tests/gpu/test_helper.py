"""The driver in its helper process: the real process and protocol; where there is no GPU, its clear answer."""

from __future__ import annotations

import socket
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from fake_driver import FakeDriver

from ijfs.live.gpu.driver import DriverError, DriverUnavailableError, ProcessState
from ijfs.live.gpu.helper import DriverProcess, serve

HERE = Path(__file__).parent


def fake_helper(body: str) -> list[str]:
    """A helper program that serves a FakeDriver over the real protocol."""
    program = f"""
    import socket, sys
    sys.path.insert(0, {str(HERE)!r})
    from fake_driver import FakeDriver
    from ijfs.live.gpu.helper import serve
    channel = socket.socket(fileno=int(sys.argv[1]))
    {body}
    """
    return [sys.executable, "-c", textwrap.dedent(program)]


def test_calls_and_failures_cross_the_process_boundary() -> None:
    driver = DriverProcess(
        fake_helper("serve(FakeDriver(7, failures={('checkpoint', 7): 'CUDA_ERROR_NOT_SUPPORTED'}), channel)")
    )
    try:
        driver.lock(7, 1000)
        assert driver.state(7) is ProcessState.LOCKED
        assert driver.state(8) is None
        with pytest.raises(DriverError) as failure:
            driver.checkpoint(7)
        assert (failure.value.code, failure.value.operation, failure.value.pid) == (
            "CUDA_ERROR_NOT_SUPPORTED",
            "checkpoint",
            7,
        )
        driver.unlock(7)
        assert driver.state(7) is ProcessState.RUNNING
    finally:
        driver.close()


def test_a_fault_in_the_helper_is_an_error_and_no_silence() -> None:
    body = "driver = FakeDriver(7); driver.lock = lambda *args: 1 // 0; serve(driver, channel)"
    driver = DriverProcess(fake_helper(body))
    try:
        with pytest.raises(DriverUnavailableError, match="ZeroDivisionError"):
            driver.lock(7, 1000)
    finally:
        driver.close()


def test_a_machine_without_driver_says_so() -> None:
    driver = DriverProcess(fake_helper("from ijfs.live.gpu import helper; sys.modules['cuda'] = None; helper.main()"))
    try:
        with pytest.raises(DriverUnavailableError, match="cuda-bindings cannot be imported"):
            driver.wait_ready()
    finally:
        driver.close()


def test_a_helper_that_dies_fails_the_call_instead_of_hanging() -> None:
    body = "channel.sendall(b'[0, null, null]\\n'); channel.recv(100)"
    driver = DriverProcess(fake_helper(body))
    try:
        with pytest.raises((DriverUnavailableError, DriverError)):
            driver.lock(7, 1000)
    finally:
        driver.close()


def test_slow_calls_of_two_processes_overlap() -> None:
    barrier = threading.Barrier(2, timeout=10)

    class Meeting(FakeDriver):
        def checkpoint(self, pid: int) -> None:
            barrier.wait()  # returns only when both calls are under way
            super().checkpoint(pid)

    ours, theirs = socket.socketpair()
    driver = Meeting(1, 2)
    driver.states = dict.fromkeys(driver.states, ProcessState.LOCKED)
    server = threading.Thread(target=serve, args=(driver, theirs))
    server.start()
    try:
        ours.sendall(b'[1,"checkpoint",[1]]\n[2,"checkpoint",[2]]\n')
        lines = ours.makefile("r")
        assert sorted(lines.readline() for _ in range(3)) == sorted(
            ["[0, null, null]\n", "[1, null, null]\n", "[2, null, null]\n"]
        )
        lines.close()
    finally:
        ours.shutdown(socket.SHUT_RDWR)
        ours.close()
        server.join(5)
        theirs.close()
    assert not server.is_alive()
