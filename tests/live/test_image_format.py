"""The parser of CRIU's images: on any bytes it says what a slow twin says, or refuses what the twin refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import (
    COMMON_MAGIC,
    FILES_MAGIC,
    MEMFD_MAGIC,
    MM_MAGIC,
    NotAnImageError,
    image_file,
    message,
    pagemap,
    twin_fields,
    twin_numbers,
    twin_records,
)

from ijfs.live.criu import image_format as images
from ijfs.live.criu.dump_stats import freezing_seconds, frozen_seconds
from ijfs.live.errors import CriuError
from ijfs_engine import CorruptError

STATS_MAGIC, SERVICE_MAGIC = 0x57093306, 0x55105940
NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
FIELDS = st.lists(st.tuples(st.integers(1, 20), st.one_of(NUMBERS, st.binary(max_size=20))), max_size=8)


def outcome(work: Callable[[], Any]) -> Any:
    """What it gives, or that it refuses."""
    try:
        return work()
    except (CorruptError, NotAnImageError):
        return "refused"


def fields_of(data: bytes) -> list[tuple[int, int | bytes | None]]:
    def value(field: images.Field) -> int | bytes | None:
        return data[field.begin : field.end] if field.nested else field.value

    return [(field.number, value(field)) for field in images.parse_fields("a test's", data, 0, len(data))]


@given(st.one_of(st.binary(max_size=60), st.builds(lambda fields: message(*fields), FIELDS)))
def test_fields_are_those_that_the_twin_finds(data: bytes) -> None:
    assert outcome(lambda: fields_of(data)) == outcome(lambda: twin_fields(data))


@given(FIELDS)
def test_fields_tile_their_message_and_are_what_was_written(fields: list[tuple[int, int | bytes]]) -> None:
    data = message(*fields)
    found = list(images.parse_fields("a test's", data, 0, len(data)))
    assert fields_of(data) == fields
    assert [field.start for field in found] == [0, *(field.end for field in found)][: len(found)]
    assert b"".join(data[field.start : field.end] for field in found) == data


@given(FIELDS)
def test_fields_that_are_written_again_are_the_same_bytes(fields: list[tuple[int, int | bytes]]) -> None:
    again = b"".join(
        images.number_field(number, value) if isinstance(value, int) else images.nested_field(number, value)
        for number, value in fields
    )
    assert again == message(*fields)


@given(st.binary(max_size=60), st.booleans())
def test_records_are_those_that_the_twin_finds(data: bytes, whole: bool) -> None:
    image = image_file(FILES_MAGIC, [data, data[:3]]) if whole else image_file(FILES_MAGIC, []) + data
    mine = outcome(lambda: [image[begin:end] for begin, end in images.parse_records("files.img", image, FILES_MAGIC)])
    assert mine == outcome(lambda: twin_records(image, FILES_MAGIC))


@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(lambda fields: message(*fields), FIELDS)), max_size=4))
def test_memfds_are_those_that_the_twin_finds(records: list[bytes]) -> None:
    def twin() -> list[images.Memfd]:
        found = []
        for record in twin_records(image, MEMFD_MAGIC):
            names = [value for number, value in twin_fields(record) if number == 1 and isinstance(value, bytes)]
            values = twin_numbers(record)
            if 5 in values:
                found.append(images.Memfd(values[5], names[-1] if names else b"", bool(values.get(8))))
        return found

    image = image_file(MEMFD_MAGIC, records)
    assert outcome(lambda: list(images.parse_memfds("memfd.img", image))) == outcome(twin)


@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(lambda fields: message(*fields), FIELDS)), max_size=4))
def test_mappings_are_those_that_the_twin_finds(vmas: list[bytes]) -> None:
    def twin() -> list[images.Area]:
        values = [twin_numbers(vma) for vma in vmas]
        return [images.Area(*(vma.get(number, 0) for number in (1, 2, 6, 4, 9, 7))) for vma in values]

    image = image_file(MM_MAGIC, [message((1, 7), *((14, vma) for vma in vmas))])
    assert outcome(lambda: list(images.parse_areas("mm-7.img", image))) == outcome(twin)


def test_an_mm_image_without_a_record_is_refused() -> None:
    for empty in (b"", image_file(MM_MAGIC, [])):
        with pytest.raises(CorruptError, match="is empty"):
            list(images.parse_areas("mm-7.img", empty))


@pytest.mark.parametrize("data", [b"\0", b"\0" * 7, b"\0" * 8, image_file(FILES_MAGIC, [])])
def test_an_image_of_another_kind_is_refused(data: bytes) -> None:
    for parse in (images.parse_areas, images.parse_memfds):
        with pytest.raises(CorruptError, match="does not begin"):
            list(parse("x.img", data))
    with pytest.raises(CorruptError, match="does not begin"):
        images.parse_pagemap_entries("pagemap-7.img", data)
    with pytest.raises(CorruptError, match="does not begin"):
        images.parse_dump_stats("stats-dump", data)


def test_pagemaps_say_every_entry_and_the_number_of_their_file() -> None:
    entries = [(0x7000, 3, images.PE_PRESENT), (0x10000, 1 << 33, images.PE_LAZY)]
    assert images.parse_pagemap_entries("pagemap-7.img", pagemap(entries, pages_id=9)) == (9, entries)
    assert images.parse_pagemap_entries("pagemap-7.img", b"") == (0, [])  # a task without memory of its own


@given(st.binary(max_size=60))
def test_statistics_are_read_or_refused(data: bytes) -> None:
    def mine() -> dict[int, int]:
        return images.parse_dump_stats("stats-dump", image_file(STATS_MAGIC, [message((1, data))], SERVICE_MAGIC))

    assert outcome(mine) == outcome(lambda: twin_numbers(data))


def test_only_files_without_a_program_begin_with_the_service_magic() -> None:
    stats = message((1, message((1, 275), (2, 40_000))))
    assert images.parse_dump_stats("stats-dump", image_file(STATS_MAGIC, [stats], SERVICE_MAGIC)) == {1: 275, 2: 40_000}
    with pytest.raises(CorruptError):
        images.parse_dump_stats("stats-dump", image_file(STATS_MAGIC, [stats], COMMON_MAGIC))


def test_statistics_that_are_missing_or_damaged_are_an_error_of_criu(tmp_path: Path) -> None:
    with pytest.raises(CriuError, match="left no statistics"):
        frozen_seconds(tmp_path)
    stats = image_file(STATS_MAGIC, [message((1, message((1, 275), (2, 40_000))))], SERVICE_MAGIC)
    (tmp_path / "stats-dump").write_bytes(stats)
    assert (freezing_seconds(tmp_path), frozen_seconds(tmp_path)) == (0.000275, 0.04)
    (tmp_path / "stats-dump").write_bytes(stats[:-1])
    with pytest.raises(CriuError, match="cannot be read"):
        frozen_seconds(tmp_path)


def test_record_locks_are_told_from_others() -> None:
    locks = [
        message((1, 1), (2, 1), (3, 7), (4, 3), (5, 120), (6, 10)),
        message((1, 2), (2, 1), (3, 7), (4, 4), (5, 0), (6, 0)),
        message((1, 1), (2, 0), (3, 8), (4, 5), (5, 1 << 62), (6, 0)),
    ]
    found = list(images.parse_record_locks("filelocks.img", image_file(0x54323616, locks)))
    assert found == [(7, 3, 1, 120, 10), (8, 5, 0, 1 << 62, 0)]
    assert list(images.parse_record_locks("filelocks.img", b"")) == []


@pytest.mark.parametrize(("kinds", "named"), [([], False), ([1, 2], False), ([1, 0], True), ([None], True)])
def test_whether_criu_gave_deleted_files_a_name_is_known(kinds: list[int | None], named: bool) -> None:
    records = [message((1, 5), (2, 6), *([(3, kind)] if kind is not None else [])) for kind in kinds]
    assert images.has_new_names("remap-fpath.img", image_file(0x59133954, records)) is named
