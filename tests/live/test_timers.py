"""Interval timers that went off while a program was frozen ring again; nothing else of files.img changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ijfs.live.criu.timerfd import rewind
from ijfs_engine import CorruptError

HEAD = b"\x19\x43\x56\x54magi"


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def image(*entries: bytes) -> bytes:
    return HEAD + b"".join(len(entry).to_bytes(4, "little") + entry for entry in entries)


def timer(value_ns: int, interval_ns: int) -> bytes:
    body = message((1, 9), (2, 2), (3, b"owner" * 40), (4, 1), (5, 3), (6, 0), (7, 0), (8, value_ns), (9, 0))
    return message((1, 17), (2, 9), (12, body + message((10, interval_ns))))


REGULAR = message((1, 1), (2, 4), (3, message((1, 4), (6, b"/etc/passwd"))))


def test_an_expired_interval_timer_gets_one_nanosecond_and_keeps_all_else() -> None:
    before = image(REGULAR, timer(0, 20_000_000), REGULAR)
    after = rewind(before)
    assert len(after) == len(before) + 2
    assert after.count(bytes((8 << 3, 1))) == before.count(bytes((8 << 3, 1))) + 1
    assert after.startswith(image(REGULAR))
    assert after.endswith(image(REGULAR)[len(HEAD) :])


def test_running_one_shot_and_disarmed_timers_stay_as_they_are() -> None:
    for entry in (timer(5, 20), timer(5, 0), timer(0, 0), REGULAR):
        assert rewind(image(entry)) == image(entry)


def test_a_rewound_image_is_not_changed_again() -> None:
    once = rewind(image(timer(0, 20)))
    assert rewind(once) == once


@given(st.binary(max_size=200))
def test_anything_else_is_refused_or_returned_never_a_crash(data: bytes) -> None:
    try:
        rewind(HEAD + data)
    except CorruptError:
        return


def test_an_image_that_is_cut_short_is_refused() -> None:
    with pytest.raises(CorruptError):
        rewind(image(timer(0, 20))[:-1])
