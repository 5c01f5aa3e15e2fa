"""Timers that CRIU would bring back stopped; called by mending.py, on files.img on its way to `criu restore`.

A timerfd with an interval that goes off while the program is frozen (or before it was read) has no time left, and CRIU
writes down what is left: 0. At the restore that means "disarmed", and the timer never rings again. So `rewind` gives
such an entry one nanosecond: it rings at once, with the ticks it had missed, and goes on. Seen with CRIU 4.2.1. The
kernel's side of it: fs/timerfd.c restarts an interval timer only when it is read.

In files.img (images/fdinfo.proto, timerfd.proto) a record is a file_entry {1: type, 12: tfd}, and tfd a timerfd_entry
{7: vsec, 8: vnsec, 9: isec, 10: insec}. Of a field that comes twice the last one counts, so that the change is two
bytes at the end of the timerfd_entry.
"""

from __future__ import annotations

from ijfs.live.criu.image_format import (
    FILES_MAGIC,
    nested_field,
    number_field,
    numbers,
    parse_fields,
    with_records,
)

_NAME = "files.img"
_TYPE, _TIMERFD_TYPE, _TIMERFD = 1, 17, 12
_VALUE_S, _VALUE_NS, _INTERVAL_S, _INTERVAL_NS = 7, 8, 9, 10
_ONE_NS = number_field(_VALUE_NS, 1)


def rewind(image: bytes) -> bytes:
    """files.img with every expired interval timer about to ring. CorruptError where it is no such image."""
    return with_records(_NAME, image, FILES_MAGIC, _rewound)


def _rewound(entry: bytes) -> bytes:
    fields = {field.number: field for field in parse_fields(_NAME, entry, 0, len(entry))}
    timer = fields.get(_TIMERFD)
    if timer is None or _TYPE not in fields or fields[_TYPE].value != _TIMERFD_TYPE:
        return entry
    values = numbers(parse_fields(_NAME, entry, timer.begin, timer.end))
    repeats = values.get(_INTERVAL_S, 0) or values.get(_INTERVAL_NS, 0)
    if not repeats or values.get(_VALUE_S, 0) or values.get(_VALUE_NS, 0):
        return entry
    body = entry[timer.begin : timer.end] + _ONE_NS
    return entry[: timer.start] + nested_field(_TIMERFD, body) + entry[timer.end :]
