"""POSIX timers that notify a thread (SIGEV_THREAD_ID) CRIU writes down wrongly; called by mending.py, on core-N.img.

Of a timer that notifies the main thread, the image has whatever number lay in memory (CRIU 4.2.1 looks the thread up
before it knows the numbers inside the sandbox), and the restore ends at timer_create: `Can't create posix timer: -22`.
Other threads' numbers are right. So a number that is none of the process's threads becomes that of its main thread.

In core-N.img (images/core.proto, timer.proto) the way is core_entry {3: tc}, {7: timers}, {4: posix_timer_entry}, and
there {4: how it notifies, 11: the thread}. Of a field that comes twice the last one counts: it is added at the end.
"""

from __future__ import annotations

from ijfs.live.criu.image_format import (
    CORE_MAGIC,
    number_field,
    numbers,
    parse_fields,
    with_nested,
    with_records,
)

_TASK, _TIMERS, _POSIX = 3, 7, 4
_NOTIFY, _THREAD = 4, 11
_SIGEV_THREAD_ID = 4  # asm-generic/siginfo.h


def with_known_threads(name: str, image: bytes, threads: frozenset[int]) -> bytes:
    """core-N.img with every timer's thread one of `threads`, of which the lowest is the main thread. CorruptError."""
    if not threads:
        return image

    def timer(message: bytes) -> bytes:
        values = numbers(parse_fields(name, message, 0, len(message)))
        if values.get(_NOTIFY) != _SIGEV_THREAD_ID or values.get(_THREAD) in threads:
            return message
        return message + number_field(_THREAD, min(threads))

    def task(message: bytes) -> bytes:
        return with_nested(name, message, _TIMERS, lambda timers: with_nested(name, timers, _POSIX, timer))

    return with_records(name, image, CORE_MAGIC, lambda core: with_nested(name, core, _TASK, task))
