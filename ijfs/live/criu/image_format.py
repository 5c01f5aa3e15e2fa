"""CRIU's image files as bytes: what ijfs reads of them, and how it writes a field.

An image is a u32 magic common to all, a u32 magic of its kind, and records: each a u32 length and a protobuf message
(images/*.proto in CRIU's tree; the magics are in criu/include/magic.h). This module is the live layer's only parser of
them, called by pager/image_files.py, eager_pages.py, mending.py and dump_stats.py. Images come out of a repository that
anybody may have written: whatever the bytes are, a parser ends, and raises CorruptError where they make no sense.

(The engine reads pagemaps, too, as hints for storing: ijfs_engine.write.criu_pagemap. It knows nothing of ijfs.)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from ijfs_engine import COMMON_MAGIC, PAGE, PAGEMAP_MAGIC, pagemap_entries, pagemap_head
from ijfs_engine.errors import CorruptError

HEAD: Final = 8
"""Bytes before the first record."""
_SERVICE_MAGIC: Final = 0x55105940
"""In place of the common magic, in files that describe no program."""
MM_MAGIC: Final = 0x57492820
_MEMFD_MAGIC: Final = 0x48453499
_STATS_MAGIC: Final = 0x57093306
_PSTREE_MAGIC: Final = 0x50273030
_TCP_STREAM_MAGIC: Final = 0x51465506
_REMAP_MAGIC: Final = 0x59133954
_LINKED: Final = 0  # remap_type, in remap-file-path.proto
_FILE_LOCKS_MAGIC: Final = 0x54323616
FILES_MAGIC: Final = 0x56303138
CORE_MAGIC: Final = 0x55053847

PE_PARENT: Final = 1  # criu/include/pagemap.h
PE_LAZY: Final = 2
PE_PRESENT: Final = 4

MAP_PRIVATE: Final = 0x02  # linux/mman.h
MAP_ANONYMOUS: Final = 0x20
MAP_GROWSDOWN: Final = 0x100
MAP_LOCKED: Final = 0x2000
MAP_NORESERVE: Final = 0x4000
MAP_HUGETLB: Final = 0x40000
MADV_WIPEONFORK: Final = 18

VMA_REGULAR: Final = 1
"""In an area's status: memory as any, not one of the kernel's own (criu/include/image.h)."""

_FL_POSIX: Final = 1  # criu/include/file-lock.h

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf
_NUMBER_BITS: Final = (1 << 64) - 1

PagemapEntry = tuple[int, int, int]
"""(address, pages, PE_ flags): neighbouring pages of one kind. A plain tuple: there are thousands to an image."""


class Field(NamedTuple):
    """One field of a protobuf message; the positions are those in the image."""

    number: int
    value: int | None
    """Of a varint; None for every other kind."""
    start: int
    """Where the field begins, its key included."""
    begin: int
    """Where its bytes begin; they end at `end`, with the field."""
    end: int
    nested: bool
    """Whether its bytes are length-prefixed: a string or a message of its own."""


class Area(NamedTuple):
    """One mapping of an mm image: where, its mmap flags, the number of the shared memory or file it shows (0: none),
    its madvise bits, what it is to CRIU."""

    start: int
    end: int
    flags: int
    shmid: int
    advice: int
    status: int = VMA_REGULAR


class RegularFile(NamedTuple):
    """A file that a program has open or maps, as CRIU looks for it at a restore: its path inside, its size (None: not
    looked at), its mode, its build id (empty: none)."""

    id: int
    path: str
    size: int | None
    mode: int | None
    build_id: bytes


class RecordLock(NamedTuple):
    """A lock by fcntl: the process that has it, as numbered inside, its descriptor of the file, F_RDLCK or F_WRLCK,
    where it begins, its length (0: to the end, wherever that is)."""

    process: int
    descriptor: int
    kind: int
    start: int
    length: int


class Memfd(NamedTuple):
    """One record of memfd.img: its number as shared memory, its name, whether it is made of huge pages."""

    shmid: int
    name: bytes
    huge: bool


# -- images that ijfs looks into ------------------------------------------------------------------------------------


def parse_pagemap_entries(name: str, data: bytes) -> tuple[int, list[PagemapEntry]]:
    """(number of the pages file, every entry whatever its flags) of a pagemap image (pagemap.proto)."""
    if not _has_magic(name, data, PAGEMAP_MAGIC) or len(data) == HEAD:
        return 0, []
    try:
        pages_id, at = pagemap_head(data, HEAD)
        entries = pagemap_entries(data, at)
    except ValueError as error:
        raise CorruptError(f"{name} cannot be read: {error}") from error
    return pages_id or 0, [(first * PAGE, pages, flags) for first, pages, flags in entries]


def parse_areas(name: str, data: bytes) -> Iterator[Area]:
    """All mappings of an mm image (mm.proto, vma.proto), in their order."""
    record = next(parse_records(name, data, MM_MAGIC), None)
    if record is None:
        raise CorruptError(f"{name} is empty")
    for field in parse_fields(name, data, *record):
        if field.number == 14 and field.nested:
            vma = numbers(parse_fields(name, data, field.begin, field.end))
            yield Area(vma.get(1, 0), vma.get(2, 0), vma.get(6, 0), vma.get(4, 0), vma.get(9, 0), vma.get(7, 0))


def parse_memfds(name: str, data: bytes) -> Iterator[Memfd]:
    """All memfds that have a number (memfd.proto). Shared anonymous mappings are memfds to CRIU, too."""
    for record in parse_records(name, data, _MEMFD_MAGIC):
        fields = list(parse_fields(name, data, *record))
        found = numbers(fields)
        titles = [data[field.begin : field.end] for field in fields if field.number == 1 and field.nested]
        if 5 in found:
            yield Memfd(found[5], titles[-1] if titles else b"", bool(found.get(8)))


def parse_regular_files(name: str, data: bytes) -> Iterator[RegularFile]:
    """All files of files.img that have a path (fdinfo.proto, regfile.proto)."""
    for record in parse_records(name, data, FILES_MAGIC):
        for field in parse_fields(name, data, *record):
            if field.number == 3 and field.nested:
                fields = list(parse_fields(name, data, field.begin, field.end))
                found = numbers(fields)
                path = next((data[one.begin : one.end] for one in fields if one.number == 6 and one.nested), b"")
                words = [one.value for one in fields if one.number == 11 and one.value is not None]
                build_id = b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words)
                yield RegularFile(found.get(1, 0), os.fsdecode(path), found.get(8), found.get(10), build_id)


def parse_bound_addresses(name: str, data: bytes) -> Iterator[bytes]:
    """The packed address of every internet socket of files.img that is bound to one (sk-inet.proto)."""
    for record in parse_records(name, data, FILES_MAGIC):
        for field in parse_fields(name, data, *record):
            if field.number == 4 and field.nested:
                fields = list(parse_fields(name, data, field.begin, field.end))
                words = [field.value for field in fields if field.number == 11 and field.value is not None]
                words += [
                    word for one in fields if one.number == 11 and one.nested for word in _packed(name, data, one)
                ]
                if any(words):
                    yield b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words)


def parse_remapped(name: str, data: bytes) -> set[int]:
    """The ids of files that CRIU brings along or finds by another name: deleted ones (remap-file-path.proto)."""
    records = parse_records(name, data, _REMAP_MAGIC)
    return {numbers(parse_fields(name, data, *record)).get(1, 0) for record in records}


def has_new_names(name: str, data: bytes) -> bool:
    """Whether CRIU has given deleted files that have other names a name more, beside the program's own files
    (`--link-remap`; remap-file-path.proto)."""
    records = parse_records(name, data, _REMAP_MAGIC)
    return any(numbers(parse_fields(name, data, *record)).get(3, _LINKED) == _LINKED for record in records)


def parse_record_locks(name: str, data: bytes) -> Iterator[RecordLock]:
    """The record locks among a program's locks (file-lock.proto). None where there is no image."""
    for record in parse_records(name, data, _FILE_LOCKS_MAGIC):
        fields = numbers(parse_fields(name, data, *record))
        if fields.get(1) == _FL_POSIX:
            yield RecordLock(fields.get(3, 0), fields.get(4, 0), fields.get(2, 0), fields.get(5, 0), fields.get(6, 0))


def parse_threads(name: str, data: bytes) -> dict[int, frozenset[int]]:
    """The threads of every process by its pid, as numbered inside (pstree.proto). Empty where there is no image."""
    found = {}
    for record in parse_records(name, data, _PSTREE_MAGIC):
        fields = list(parse_fields(name, data, *record))
        pid = numbers(fields).get(1)
        if pid is not None:
            plain = {field.value for field in fields if field.number == 5 and field.value is not None}
            packed = [field for field in fields if field.number == 5 and field.nested]
            found[pid] = frozenset(plain.union(*(_packed(name, data, field) for field in packed)))
    return found


def parse_parents(name: str, data: bytes) -> dict[int, int]:
    """The parent of every process by its pid, 0 for the first, parents before children (pstree.proto)."""
    found = (numbers(parse_fields(name, data, *record)) for record in parse_records(name, data, _PSTREE_MAGIC))
    return {fields[1]: fields.get(2, 0) for fields in found if 1 in fields}


def parse_tasks(name: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    """(pid, record with its length) of every process (pstree.proto)."""
    for begin, end in parse_records(name, data, _PSTREE_MAGIC):
        pid = numbers(parse_fields(name, data, begin, end)).get(1)
        if pid is not None:
            yield pid, data[begin - 4 : end]


def parse_unsent_bytes(name: str, data: bytes) -> int:
    """Bytes in a TCP connection's send queue that were never sent (tcp-stream.proto)."""
    record = next(parse_records(name, data, _TCP_STREAM_MAGIC), None)
    return numbers(parse_fields(name, data, *record)).get(12, 0) if record is not None else 0


def parse_dump_stats(name: str, data: bytes) -> dict[int, int]:
    """The fields of DumpStatsEntry (stats.proto) by their numbers; times are in µs. Empty where there are none."""
    record = next(parse_records(name, data, _STATS_MAGIC, _SERVICE_MAGIC), None)
    for field in parse_fields(name, data, *record) if record is not None else ():
        if field.number == 1 and field.nested:
            return numbers(parse_fields(name, data, field.begin, field.end))
    return {}


# -- what every image is made of ------------------------------------------------------------------------------------


def parse_records(name: str, data: bytes, magic: int, common: int = COMMON_MAGIC) -> Iterator[tuple[int, int]]:
    """Where the messages of an image of this kind are: (begin, end). Who asks for one only, sees only that one."""
    at = HEAD if _has_magic(name, data, magic, common) else len(data)
    while at < len(data):
        if at + 4 > len(data):
            raise CorruptError(f"{name} ends inside a record")
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + length > len(data):
            raise CorruptError(f"{name} ends inside a record")
        yield at, at + length
        at += length


def parse_fields(name: str, data: bytes, begin: int, end: int) -> Iterator[Field]:
    """The fields of the protobuf message data[begin:end], in their order."""
    at = begin
    while at < end:
        start, value = at, None
        key, at = _varint(name, data, at, end)
        kind, inside = key & 7, at
        if kind == _VARINT:
            value, at = _varint(name, data, at, end)
        elif kind == _BYTES:
            length, inside = _varint(name, data, at, end)
            at = inside + length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise CorruptError(f"{name}: wire type {kind} is not one that protobuf has")
        if at > end:
            raise CorruptError(f"{name} ends inside a field")
        yield Field(key >> 3, value, start, inside, at, kind == _BYTES)


def numbers(fields: Iterable[Field]) -> dict[int, int]:
    """The varints among these fields by their numbers. Of a field that comes twice, the last one counts."""
    return {field.number: field.value for field in fields if field.value is not None}


def pagemap_image(number: int, entries: Iterable[PagemapEntry]) -> bytes:
    """A pagemap image with these entries, of the pages file of this number. The count stands where CRIU 4.0 looks for
    it (field 2) and where newer ones do (5)."""
    messages = [number_field(1, number)]
    for vaddr, pages, flags in entries:
        count = number_field(2, pages & 0xFFFFFFFF) + number_field(4, flags) + number_field(5, pages)
        messages.append(number_field(1, vaddr) + count)
    head = struct.pack("<II", COMMON_MAGIC, PAGEMAP_MAGIC)
    return head + b"".join(len(one).to_bytes(4, "little") + one for one in messages)


def number_field(number: int, value: int) -> bytes:
    """A varint field."""
    return _varint_bytes(number << 3 | _VARINT) + _varint_bytes(value)


def nested_field(number: int, message: bytes) -> bytes:
    """A field that holds a message or a string."""
    return _varint_bytes(number << 3 | _BYTES) + _varint_bytes(len(message)) + message


def with_records(name: str, image: bytes, magic: int, change: Callable[[bytes], bytes]) -> bytes:
    """The image with every record's message changed."""
    out = [image[:HEAD]]
    for begin, end in parse_records(name, image, magic):
        message = change(image[begin:end])
        out += [len(message).to_bytes(4, "little"), message]
    return b"".join(out)


def with_nested(name: str, message: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """The message with every message that it holds as field `number` changed; all else as it is, byte for byte."""
    out, at = [], 0
    for field in parse_fields(name, message, 0, len(message)):
        if field.number == number and field.nested:
            before = message[field.begin : field.end]
            after = change(before)
            if after != before:
                out += [message[at : field.start], nested_field(number, after)]
                at = field.end
    return b"".join((*out, message[at:]))


def _packed(name: str, data: bytes, field: Field) -> Iterator[int]:
    at = field.begin
    while at < field.end:
        value, at = _varint(name, data, at, field.end)
        yield value


def _has_magic(name: str, data: bytes, magic: int, common: int = COMMON_MAGIC) -> bool:
    """Whether there is anything: CRIU leaves an empty file for a task without memory of its own. CorruptError."""
    if data and (len(data) < HEAD or struct.unpack_from("<II", data) != (common, magic)):
        raise CorruptError(f"{name} does not begin as a CRIU image of its kind does")
    return bool(data)


def _varint(name: str, data: bytes, at: int, end: int) -> tuple[int, int]:
    """(the number at this place, where it ends): ten bytes at most, bits above 64 are dropped as protobuf does."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _NUMBER_BITS, at
        shift += 7
    raise CorruptError(f"{name} ends inside a number")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
