"""Interval timers that went off while a program was frozen ring again; nothing else of files.img changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import FILES_MAGIC, NotAnImageError, image_file, message, twin_fields, twin_numbers, twin_records

from ijfs.live.criu.timerfd import rewind
from ijfs_engine import CorruptError

HEAD = image_file(FILES_MAGIC, [])


def image(*entries: bytes) -> bytes:
    return image_file(FILES_MAGIC, entries)


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


def of_day(left_ns: int, clock: int = 0, flags: int = 1) -> bytes:
    """A timer that is set for a moment; what is left is in seconds and nanoseconds."""
    seconds, rest = divmod(left_ns, 10**9)
    return message((1, 17), (2, 9), (12, message((4, clock), (6, flags), (7, seconds), (8, rest), (9, 0), (10, 0))))


def left_of(image_data: bytes) -> int:
    (entry,) = twin_records(image_data, FILES_MAGIC)
    body = dict(twin_fields(entry))[12]
    assert isinstance(body, bytes)
    values = twin_numbers(body)
    return values[7] * 10**9 + values[8]


def test_a_timer_of_the_time_of_day_rings_at_its_moment_however_long_the_program_was_stored() -> None:
    day = 86_400 * 10**9
    assert left_of(rewind(image(of_day(day)), day // 2)) == day // 2
    assert left_of(rewind(image(of_day(day)), 2 * day)) == 1  # the moment is over
    for other in (of_day(day, clock=1), of_day(day, flags=0), of_day(day, clock=7)):  # these count from the save on
        assert rewind(image(other), day // 2) == image(other)
    assert rewind(image(of_day(day))) == image(of_day(day))  # it is not known how long it was stored
    assert left_of(rewind(image(of_day(day)), -day)) == 2 * day  # the clock was put back


def test_a_rewound_image_is_not_changed_again() -> None:
    once = rewind(image(timer(0, 20)))
    assert rewind(once) == once


ENTRIES = st.one_of(
    st.binary(max_size=60),
    st.builds(timer, st.integers(0, 2), st.integers(0, 2)),
    st.builds(lambda body: message((1, 17), (12, body)), st.binary(max_size=20)),
)


@given(st.one_of(st.binary(max_size=200), st.lists(ENTRIES, max_size=4).map(lambda entries: image(*entries)[8:])))
def test_anything_else_is_refused_or_returned_never_a_crash(data: bytes) -> None:
    try:
        after = rewind(HEAD + data)
    except CorruptError:
        return
    before = twin_records(HEAD + data, FILES_MAGIC)
    assert twin_records(after, FILES_MAGIC) == [twin_rewound(entry) for entry in before]


def twin_rewound(entry: bytes) -> bytes:
    """An entry as `rewind` should leave it, found by trying: its timer is the last field 12, to be written anew."""
    fields = dict(twin_fields(entry))
    body = fields.get(12)
    if not isinstance(body, bytes) or fields.get(1) != 17:
        return entry
    values = twin_numbers(body)
    if not (values.get(9) or values.get(10)) or values.get(7) or values.get(8):
        return entry
    for at in range(len(entry)):
        for end in range(at + 1, len(entry) + 1):
            try:
                if twin_fields(entry[at:end]) == [(12, body)] and 12 not in dict(twin_fields(entry[end:])):
                    twin_fields(entry[:at])
                    return entry[:at] + message((12, body + message((8, 1)))) + entry[end:]
            except NotAnImageError:
                continue
    raise AssertionError("the timer was not found")


def test_an_image_that_is_cut_short_is_refused() -> None:
    with pytest.raises(CorruptError):
        rewind(image(timer(0, 20))[:-1])
