"""The compiled reader of pagemap entries against its slow twin, on sound, odd and damaged bytes."""

from __future__ import annotations

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs_engine._native.pagemaps import pagemap_entries, pagemap_head, pagemap_runs


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


numbers = st.integers(0, 3) | st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 40).map(lambda n: n << 12)
varint_fields = st.tuples(st.integers(1, 6), numbers).map(lambda f: varint(f[0] << 3) + varint(f[1]))
other_fields = st.tuples(st.integers(1, 9), st.binary(max_size=12)).flatmap(
    lambda f: st.sampled_from(
        [
            varint(f[0] << 3 | 2) + varint(len(f[1])) + f[1],
            varint(f[0] << 3 | 1) + f[1].ljust(8, b"x")[:8],
            varint(f[0] << 3 | 5) + f[1].ljust(4, b"x")[:4],
        ]
    )
)
usual = st.tuples(st.integers(0, 1 << 36), st.integers(0, 9), st.integers(0, 7)).map(
    lambda e: b"\x08" + varint(e[0] << 12) + b"\x10" + varint(e[1]) + b"\x20" + varint(e[2])
)
messages = usual | st.lists(varint_fields | other_fields, max_size=6).map(b"".join) | st.binary(max_size=20)
images = st.lists(messages, max_size=8).map(lambda ms: b"".join(len(m).to_bytes(4, "little") + m for m in ms))


def outcome(runs: object, data: bytes, at: int) -> object:
    """What a reader makes of the bytes: its answer, or that it refused them."""
    try:
        return runs(data, at)  # type: ignore[operator]
    except ValueError:
        return "refused"


@settings(max_examples=600)
@given(images, st.binary(max_size=3), st.integers(0, 9))
def test_entries_are_read_as_the_slow_twin_reads_them(image: bytes, tail: bytes, at: int) -> None:
    data = image + tail
    assert outcome(pagemap_runs, data, at) == outcome(reference.pagemap_runs, data, at)
    assert outcome(pagemap_entries, data, at) == outcome(reference.pagemap_entries, data, at)


@given(st.lists(usual, max_size=30))
def test_sound_entries_are_never_refused(entries: list[bytes]) -> None:
    data = b"".join(len(entry).to_bytes(4, "little") + entry for entry in entries)
    assert pagemap_runs(data, 0) == reference.pagemap_runs(data, 0)


@given(st.lists(varint_fields | other_fields, max_size=6).map(b"".join), st.binary(max_size=9))
def test_the_head_gives_its_number_and_its_end(head: bytes, behind: bytes) -> None:
    data = b"before" + len(head).to_bytes(4, "little") + head + behind
    assert pagemap_head(data, 6) == (reference.protobuf_numbers(head).get(1), 10 + len(head))


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\5\0\0\0abcd", b"\1\0\0\0\x08", b"\1\0\0\0\x0b"])
def test_a_head_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"protobuf|ends"):
        pagemap_head(data, 0)
    with pytest.raises(ValueError, match="ends"):
        pagemap_head(data, len(data) + 1)
