"""Many copies in one call. Called by storage/pack.py (frames of an append) and write/ (pages of a region).

Every function takes whole buffers (anything contiguous with the buffer protocol), checks all lengths and offsets here,
once, and then runs in C without the GIL. tests/engine/test_native.py compares them with slow twins in reference.py.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


def copy_runs(const uint8_t[::1] source, uint8_t[::1] target, const uint64_t[::1] triples):
    """Copy pieces: triples are (source offset, target offset, length), flat, in bytes. ValueError if one leaves a buffer."""
    cdef size_t count = triples.shape[0] // 3, i
    cdef uint64_t sources = source.shape[0], targets = target.shape[0], a, b, n
    cdef bint bad = triples.shape[0] % 3 != 0
    with nogil:
        for i in range(count):
            a, b, n = triples[3 * i], triples[3 * i + 1], triples[3 * i + 2]
            if a > sources or n > sources - a or b > targets or n > targets - b:
                bad = True
        if not bad:
            for i in range(count):
                if triples[3 * i + 2]:
                    memcpy(&target[triples[3 * i + 1]], &source[triples[3 * i]], triples[3 * i + 2])
    if bad:
        raise ValueError("copy_runs: a piece lies outside its buffer")


def join_into(parts, uint8_t[::1] target, size_t at):
    """Copy buffers one behind the other to `target` from `at` on; where they end. ValueError if there is no room."""
    cdef size_t n = len(parts), i = 0, end = at, room = target.shape[0]
    cdef Py_buffer *views = <Py_buffer *>malloc((n + 1) * sizeof(Py_buffer))
    cdef size_t held = 0
    if views == NULL:
        raise MemoryError
    try:
        for part in parts:
            PyObject_GetBuffer(part, &views[held], PyBUF_SIMPLE)
            held += 1
            end += views[held - 1].len
        if at > room or end > room:
            raise ValueError(f"join_into: {end - at} bytes do not fit at {at} of {room}")
        with nogil:
            for i in range(held):
                memcpy(&target[0] + at, views[i].buf, views[i].len)
                at += views[i].len
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])
        free(views)
    return end
