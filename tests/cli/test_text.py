"""What a person reads: sizes, times, names. Pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ijfs.cli import text


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (48_123_000, "48.1 MB"),
        (312_700_000, "313 MB"),
        (999_600_000, "1.00 GB"),
        (7 * 10**18, "7.00 EB"),
    ],
)
def test_sizes_have_three_digits_and_a_decimal_unit(count: int, shown: str) -> None:
    assert text.size(count) == shown


@given(st.integers(0, 10**19))
def test_no_size_is_wider_than_nine_characters(count: int) -> None:
    assert len(text.size(count)) <= 9


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.00084, "840 µs"),
        (0.0731, "73 ms"),
        (1.417, "1.42 s"),
        (12.34, "12.3 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_choose_their_unit(value: float, shown: str) -> None:
    assert text.seconds(value) == shown


@pytest.mark.parametrize(
    ("elapsed_s", "shown"), [(0, "now"), (12, "12 s"), (240, "4 min"), (3 * 3600, "3 h"), (5 * 86400, "5 d")]
)
def test_ages_have_one_unit(elapsed_s: int, shown: str) -> None:
    now = 1_800_000_000_000_000_000
    assert text.age(now - elapsed_s * 1_000_000_000, now) == shown


def test_a_clock_that_was_set_back_shows_no_negative_age() -> None:
    assert text.age(2_000_000_000, 1_000_000_000) == "now"


def test_old_things_show_their_date() -> None:
    assert text.age(0, 400 * 86400 * 1_000_000_000)[:3] in ("197", "196")


def test_iso_is_utc_with_milliseconds() -> None:
    assert text.iso(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123Z"


def test_escape_sequences_of_a_message_never_reach_the_terminal() -> None:
    shown = text.first_line("\x1b[2Jgone\x07\nsecond")
    assert shown == "\\x1b[2Jgone\\x07"


@given(st.text(), st.integers(0, 40))
def test_clipped_text_fits(content: str, width: int) -> None:
    assert text.cells(text.clip(text.printable(content), width)) <= width


def test_wide_characters_take_two_columns() -> None:
    assert text.cells("日本") == 4
    assert text.clip("日本語", 5) == "日本…"


def test_lists_read_like_sentences() -> None:
    assert text.listing([]) == ""
    assert text.listing(["a"]) == "a"
    assert text.listing(["a", "b", "c"]) == "a, b and c"
