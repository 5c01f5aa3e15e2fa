"""Code of a process that an image shows as a call of CRIU's is what the process has."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from ijfs.live.criu import injected_calls
from ijfs.live.criu.image_format import PE_LAZY, PE_PRESENT, pagemap_image
from ijfs.live.criu.injected_calls import CALLS, Code
from ijfs_engine import PAGE, Arena, ArenaFile

CODE = b"\x7fELF\x02\x01\x01\x00"
ADDRESS = 0x7F00_0000_0000


def file_of(arena: Arena, data: bytes) -> ArenaFile:
    file = arena.new_file()
    while data:
        tail = file.tail(len(data))
        tail[:] = data[: len(tail)]
        file.advance(len(tail))
        data = data[len(tail) :]
    return file


def images(first: bytes, flags: int = PE_PRESENT) -> dict[str, ArenaFile]:
    """Of process 4: three pages elsewhere, a page that is not there, then one that begins so."""
    arena = Arena(1 << 20)
    entries = [(0x1000, 3, PE_PRESENT | PE_LAZY), (ADDRESS - PAGE, 1, 0), (ADDRESS, 2, flags)]
    pages = b"a" * 3 * PAGE + first + b"b" * (2 * PAGE - len(first))
    return {"pagemap-4.img": file_of(arena, pagemap_image(9, entries)), "pages-9.img": file_of(arena, pages)}


def at(found: dict[str, ArenaFile]) -> bytes:
    return b"".join(found["pages-9.img"].segments())[3 * PAGE : 3 * PAGE + 12]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_replaced_by_what_was_there(call: bytes) -> None:
    found = images(call)
    before = b"".join(found["pages-9.img"].segments())
    assert injected_calls.put_back(found, [Code(4, ADDRESS, CODE)]) == 1
    after = b"".join(found["pages-9.img"].segments())
    assert after == before.replace(call, CODE)
    assert at(found) == CODE + b"bbbb"


def test_anything_else_stays_as_it_is() -> None:
    """What CRIU did not write, processes that are not in the images, calls that a program really has there."""
    found = images(b"other co")
    noted = [Code(4, ADDRESS, CODE), Code(5, ADDRESS, CODE), Code(4, ADDRESS - PAGE, CODE), Code(4, 7 << 40, CODE)]
    assert injected_calls.put_back(found, noted) == 0
    assert at(found) == b"other cobbbb"
    own = images(CALLS[0])
    assert injected_calls.put_back(own, [Code(4, ADDRESS, CALLS[0])]) == 0
    assert at(own)[:8] == CALLS[0]


def test_the_first_code_of_this_process_is_found() -> None:
    (found,) = injected_calls.first_code([os.getpid(), 0])
    assert found.pid == os.getpid()
    assert found.address % mmap.PAGESIZE == 0
    assert found.data == ctypes.string_at(found.address, injected_calls.LENGTH)
