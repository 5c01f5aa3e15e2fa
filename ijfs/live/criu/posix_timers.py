"""POSIX timers that notify a thread (SIGEV_THREAD_ID): CRIU does not know which; called by mending.py, on core-N.img.

CRIU 4.2.1 looks the thread up before it knows the numbers inside the sandbox: it refuses the save, or the image has
whatever number lay in memory, and the restore ends at timer_create: `Can't create posix timer: -22`. So at a save it is
told of no thread (restart_calls.c), and the save notes who it was (process/timers.py). What is in no note (older
snapshots) and is none of the process's threads becomes its main thread.

In core-N.img (images/core.proto, timer.proto) the way is core_entry {3: tc}, {7: timers}, {4: posix_timer_entry}, and
there {1: its number, 4: how it notifies, 11: the thread}. Of a field that comes twice the last one counts: it is added
at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

from ijfs.live.criu.image_format import (
    CORE_MAGIC,
    number_field,
    numbers,
    parse_fields,
    with_nested,
    with_records,
)

_TASK, _TIMERS, _POSIX = 3, 7, 4
_NUMBER, _NOTIFY, _THREAD = 1, 4, 11
_SIGEV_THREAD_ID = 4  # asm-generic/siginfo.h


def with_known_threads(
    name: str, image: bytes, threads: frozenset[int], noted: Mapping[int, int] | None = None
) -> bytes:
    """core-N.img with every timer's thread one of `threads`, of which the lowest is the main thread. `noted`: the
    thread of each timer, by its number, as far as it is known. CorruptError."""
    if not threads:
        return image

    def timer(message: bytes) -> bytes:
        values = numbers(parse_fields(name, message, 0, len(message)))
        if values.get(_NOTIFY) != _SIGEV_THREAD_ID:
            return message
        thread = (noted or {}).get(values.get(_NUMBER, 0), values.get(_THREAD))
        thread = thread if thread in threads else min(threads)
        return message if thread == values.get(_THREAD) else message + number_field(_THREAD, thread)

    def task(message: bytes) -> bytes:
        return with_nested(name, message, _TIMERS, lambda timers: with_nested(name, timers, _POSIX, timer))

    return with_records(name, image, CORE_MAGIC, lambda core: with_nested(name, core, _TASK, task))
