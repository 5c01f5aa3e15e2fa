"""Timers that CRIU would bring back stopped; called by stage_images.py, on files.img on its way to `criu restore`.

A timerfd with an interval that goes off while the program is frozen (or before it was read) has no time left, and CRIU
writes down what is left: 0, which at the restore means "disarmed", so that the timer never rings again. Such an entry
gets one nanosecond: it rings at once, with the ticks it had missed, and goes on. Seen with CRIU 4.2.1; kernel side:
fs/timerfd.c restarts an interval timer only when it is read.

The image is protobuf (images/fdinfo.proto, timerfd.proto): records of u32 length and file_entry {1: type, 12: tfd};
timerfd_entry {7: vsec, 8: vnsec, 9: isec, 10: insec}. Of a field that comes twice the last one counts, so that the
change is two bytes at the end of the entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ijfs_engine.errors import CorruptError

_HEAD = 8  # two magic numbers
_TYPE, _TIMERFD_TYPE, _TIMERFD = 1, 17, 12
_VALUE_S, _VALUE_NS, _INTERVAL_S, _INTERVAL_NS = 7, 8, 9, 10
_ONE_NS = bytes((_VALUE_NS << 3, 1))


class _Field(NamedTuple):
    number: int
    value: int  # of a varint; else 0
    start: int  # of the field, its key included
    begin: int  # of its bytes
    end: int


def rewind(image: bytes) -> bytes:
    """files.img with every expired interval timer about to ring. CorruptError where it is no such image."""
    out = [image[:_HEAD]]
    at = _HEAD
    while at < len(image):
        length = int.from_bytes(image[at : at + 4], "little")
        entry = image[at + 4 : at + 4 + length]
        if len(entry) != length:
            raise CorruptError("files.img ends inside a record")
        entry = _rewound(entry)
        out += [len(entry).to_bytes(4, "little"), entry]
        at += 4 + length
    return b"".join(out)


def _rewound(entry: bytes) -> bytes:
    fields = {field.number: field for field in _fields(entry)}
    timer = fields.get(_TIMERFD)
    if timer is None or _TYPE not in fields or fields[_TYPE].value != _TIMERFD_TYPE:
        return entry
    body = entry[timer.begin : timer.end]
    values = {field.number: field.value for field in _fields(body)}
    repeats = values.get(_INTERVAL_S, 0) or values.get(_INTERVAL_NS, 0)
    if not repeats or values.get(_VALUE_S, 0) or values.get(_VALUE_NS, 0):
        return entry
    body += _ONE_NS
    return entry[: timer.start] + _key(_TIMERFD) + _varint_bytes(len(body)) + body + entry[timer.end :]


def _key(number: int) -> bytes:
    return _varint_bytes(number << 3 | 2)


def _fields(message: bytes) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        value = 0
        begin = at
        if key & 7 == 0:
            value, at = _varint(message, at)
        elif key & 7 == 2:
            length, begin = _varint(message, at)
            at = begin + length
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise CorruptError(f"files.img holds a field of the unknown kind {key & 7}")
        if at > len(message):
            raise CorruptError("files.img ends inside a field")
        yield _Field(key >> 3, value, start, begin, at)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise CorruptError("files.img ends inside a number")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
