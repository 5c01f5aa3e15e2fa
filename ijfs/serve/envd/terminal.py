"""A terminal of a sandbox, made from outside: of its own devpts, so that programs in it find it by its name."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from pathlib import Path

from ijfs.live.errors import InstanceExitedError, SandboxError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.sandbox.file_access import FileAccess
from ijfs.serve.envd.messages import PtySize

END_OF_INPUT = b"\x04"
"""What Ctrl-D sends."""

# <asm-generic/ioctls.h>; Python 3.11 has no names for them.
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def open_in(repo: Path, name: str, size: PtySize) -> tuple[int, int]:
    """A new terminal of an instance's sandbox: the end for who sits at it, and the end for programs.
    InstanceExitedError, SandboxError."""
    record = read_record(InstancePaths.of(repo, name))
    if record.program is None:
        raise InstanceExitedError(f"the program of `{name}` has ended")
    with FileAccess(record.program) as files:
        try:
            master = files.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise SandboxError(f"no terminal can be made in `{name}`: {(error.strerror or '').lower()}") from error
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        resize(master, size)
    except BaseException:
        os.close(master)
        raise
    return master, slave


def resize(master: int, size: PtySize) -> None:
    """Tell a terminal, and who runs at it, how large it is."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.cols, 0, 0))


def read(master: int, most: int) -> bytes:
    """What programs wrote to it; b"" when none has it open any more."""
    try:
        return os.read(master, most)
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise
