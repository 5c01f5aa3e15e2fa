"""The entries of a CRIU pagemap, thousands to an image: which pages the file holds.

Called by write/criu_pagemap.py, and by ijfs.live for a restore. In Python they took a quarter of the time of a re-save in
which nothing had changed. reference.pagemap_runs is the slow twin, tests/engine/test_native_pagemaps.py compares the two.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

cdef enum:
    PAGE_SHIFT = 12
    # criu/include/pagemap.h
    PE_PARENT = 1
    PE_PRESENT = 4
    # Fields 1 to 5 of PagemapEntry (images/pagemap.proto): address, count, in_parent, flags, wide count.
    ADDRESS = 1
    COUNT = 2
    IN_PARENT = 3
    FLAGS = 4
    WIDE_COUNT = 5
    FIELDS = 6

cdef enum:
    GOOD, CUT_MESSAGE, CUT_NUMBER, CUT_FIELD, BAD_WIRE_TYPE, BAD_ENTRY

cdef tuple COMPLAINTS = (
    "",
    "a CRIU image that ends inside a message",
    "a protobuf number without an end",
    "a protobuf field that ends behind its message",
    "a protobuf field of an unknown wire type",
    "a pagemap entry without a page-aligned address and a count",
)

cdef struct Entry:
    uint64_t value[FIELDS]
    bint seen[FIELDS]


cdef int read_varint(const uint8_t *data, size_t end, size_t *at, uint64_t *value) noexcept nogil:
    """A number of at most ten bytes; bits above 64 are dropped, as protobuf does."""
    cdef int shift = 0
    cdef uint8_t byte
    value[0] = 0
    while shift < 70 and at[0] < end:
        byte = data[at[0]]
        at[0] += 1
        value[0] |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return GOOD
        shift += 7
    return CUT_NUMBER


cdef int read_entry(const uint8_t *data, size_t at, size_t end, Entry *entry) noexcept nogil:
    """The varint fields of the message [at, end); the last of a repeated one counts, strangers are skipped."""
    cdef uint64_t key, value
    cdef int problem, field
    for field in range(FIELDS):
        entry.seen[field] = False
    while at < end:
        problem = read_varint(data, end, &at, &key)
        if problem:
            return problem
        if key & 7 == 0 or key & 7 == 2:
            problem = read_varint(data, end, &at, &value)
            if problem:
                return problem
            if key & 7 == 0 and key >> 3 < FIELDS:
                entry.value[key >> 3] = value
                entry.seen[key >> 3] = True
        elif key & 7 == 1 or key & 7 == 5:
            value = 8 if key & 7 == 1 else 4
        else:
            return BAD_WIRE_TYPE
        if key & 7:
            if value > end - at:
                return CUT_FIELD
            at += value
    return GOOD


cdef int take_run(const Entry *entry, uint64_t *run) noexcept nogil:
    """The entry as (first page number, pages, flags)."""
    cdef int count = WIDE_COUNT if entry.seen[WIDE_COUNT] else COUNT
    if not entry.seen[ADDRESS] or not entry.seen[count] or entry.value[ADDRESS] & ((1 << PAGE_SHIFT) - 1):
        return BAD_ENTRY
    run[0] = entry.value[ADDRESS] >> PAGE_SHIFT
    run[1] = entry.value[count]
    # Images older than the flags (CRIU 2) have none and are present unless they are in the parent.
    run[2] = PE_PRESENT
    if entry.seen[FLAGS]:
        run[2] = entry.value[FLAGS]
    elif entry.seen[IN_PARENT] and entry.value[IN_PARENT]:
        run[2] = PE_PARENT
    return GOOD


cdef int next_message(const uint8_t *data, size_t size, size_t *at, size_t *end) noexcept nogil:
    """Step over a message's u32 length: at[0] is then its start, end[0] where the next one begins."""
    cdef size_t length
    if size - at[0] < 4:
        return CUT_MESSAGE
    length = data[at[0]] | data[at[0] + 1] << 8 | data[at[0] + 2] << 16 | <size_t>data[at[0] + 3] << 24
    if length > size - at[0] - 4:
        return CUT_MESSAGE
    at[0] += 4
    end[0] = at[0] + length
    return GOOD


cdef int read_runs(const uint8_t *data, size_t size, size_t at, uint64_t *runs, size_t *n) noexcept nogil:
    """Every entry as three numbers."""
    cdef Entry entry
    cdef size_t end = at
    cdef int problem
    n[0] = 0
    while at < size:
        problem = next_message(data, size, &at, &end)
        if not problem:
            problem = read_entry(data, at, end, &entry)
        if not problem:
            problem = take_run(&entry, runs + 3 * n[0])
        if problem:
            return problem
        n[0] += 1
        at = end
    return GOOD


def pagemap_runs(const uint8_t[::1] data, size_t at):
    """(first page number, pages) of each entry whose pages the pages file holds, of the messages from byte `at` on.

    ValueError, with a sentence, for what is no pagemap.
    """
    return [(first, pages) for first, pages, flags in pagemap_entries(data, at) if flags & PE_PRESENT and pages]


def pagemap_entries(const uint8_t[::1] data, size_t at):
    """(first page number, pages, flags) of every entry of the messages from byte `at` on; old images' flags are made up.

    ValueError, with a sentence, for what is no pagemap.
    """
    cdef size_t size = data.shape[0], n = 0, i
    cdef uint64_t *runs
    cdef int problem
    if at >= size:
        return []
    # A message takes four bytes at least, so this is room for all of them.
    runs = <uint64_t *>malloc(24 * ((size - at) // 4 + 1))
    if runs == NULL:
        raise MemoryError
    try:
        with nogil:
            problem = read_runs(&data[0], size, at, runs, &n)
        if problem:
            raise ValueError(COMPLAINTS[problem])
        return [(runs[3 * i], runs[3 * i + 1], runs[3 * i + 2]) for i in range(n)]
    finally:
        free(runs)


def pagemap_head(const uint8_t[::1] data, size_t at):
    """(number of the pages file, where the first entry begins) of the message at byte `at`; None for no number.

    ValueError, with a sentence, for what is no pagemap.
    """
    cdef size_t end = at
    cdef Entry head
    cdef int problem
    if at > <size_t>data.shape[0]:
        raise ValueError(COMPLAINTS[CUT_MESSAGE])
    # A view of no bytes has no first one to take the address of; CUT_MESSAGE is said before it is read.
    cdef const uint8_t *bytes_ = &data[0] if data.shape[0] else NULL
    problem = next_message(bytes_, data.shape[0], &at, &end)
    if not problem:
        problem = read_entry(bytes_, at, end, &head)
    if problem:
        raise ValueError(COMPLAINTS[problem])
    return (head.value[ADDRESS] if head.seen[ADDRESS] else None), end
