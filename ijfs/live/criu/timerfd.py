"""Timers that CRIU would bring back stopped, or late; called by mending.py, on files.img on its way to `criu restore`.

A timerfd with an interval that goes off while the program is frozen (or before it was read) has no time left, and CRIU
writes down what is left: 0. At the restore that means "disarmed", and the timer never rings again. So `rewind` gives
such an entry one nanosecond: it rings at once, with the ticks it had missed, and goes on. Seen with CRIU 4.2.1. The
kernel's side of it: fs/timerfd.c restarts an interval timer only when it is read.

A timer of the time of day (CLOCK_REALTIME, TFD_TIMER_ABSTIME) is set for a moment, and CRIU writes down how long that
was away. At the restore it adds this to the time of then, in whole seconds ("we don't adjust nanoseconds",
criu/pie/restorer.c), so that 8 o'clock would come as much later as the program was stored. So what has gone by since,
up to the beginning of the present second, is taken off: the timer rings at its moment, or as many seconds later as
began while CRIU was at work. A moment that is over rings at once.

In files.img (images/fdinfo.proto, timerfd.proto) a record is a file_entry {1: type, 12: tfd}, and tfd a timerfd_entry
{4: clockid, 6: settime_flags, 7: vsec, 8: vnsec, 9: isec, 10: insec}. Of a field that comes twice the last one counts,
so that the change is a few bytes at the end of the timerfd_entry.
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
_CLOCK, _FLAGS = 4, 6
_OF_DAY = (0, 8)  # CLOCK_REALTIME, CLOCK_REALTIME_ALARM
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_SECOND = 1_000_000_000
_ONE_NS = number_field(_VALUE_NS, 1)


def rewind(image: bytes, stored_ns: int = 0) -> bytes:
    """files.img with every expired interval timer about to ring, and every timer of the time of day set for its moment,
    `stored_ns` after the program was frozen (until the present second began; 0: not known). CorruptError where it is no
    such image."""
    return with_records(_NAME, image, FILES_MAGIC, lambda entry: _rewound(entry, stored_ns))


def _rewound(entry: bytes, stored_ns: int) -> bytes:
    fields = {field.number: field for field in parse_fields(_NAME, entry, 0, len(entry))}
    timer = fields.get(_TIMERFD)
    if timer is None or _TYPE not in fields or fields[_TYPE].value != _TIMERFD_TYPE:
        return entry
    change = _change(numbers(parse_fields(_NAME, entry, timer.begin, timer.end)), stored_ns)
    if not change:
        return entry
    body = entry[timer.begin : timer.end] + change
    return entry[: timer.start] + nested_field(_TIMERFD, body) + entry[timer.end :]


def _change(values: dict[int, int], stored_ns: int) -> bytes:
    """What a timer's entry gets at its end."""
    left_ns = values.get(_VALUE_S, 0) * _SECOND + values.get(_VALUE_NS, 0)
    if not left_ns:
        return _ONE_NS if values.get(_INTERVAL_S, 0) or values.get(_INTERVAL_NS, 0) else b""
    if not stored_ns or values.get(_CLOCK, 0) not in _OF_DAY or not values.get(_FLAGS, 0) & _ABSOLUTE:
        return b""
    seconds, rest = divmod(max(left_ns - stored_ns, 1), _SECOND)
    return number_field(_VALUE_S, seconds) + number_field(_VALUE_NS, rest)
