"""How the id tables (idset.pyx, usage_graph.pyx, pack_rows.pyx) read ids and index rows, many end to end.

Ids are BLAKE3 hashes, so their first 8 bytes serve as key and as hash at once, a quarter of the memory. Two ids that
share them count as one: with 10 million chunks one pair in 370,000 repositories does.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

cdef enum:
    ID = 32
    ROW = 18
    UNIT = 8
    SPAN_AT = 8
    PLAIN_AT = 12
    FIRST = 1024


cdef inline uint64_t key_of(const uint8_t* ids, Py_ssize_t number) noexcept nogil:
    """The first 8 bytes of id `number`; 0 marks an empty slot, so it is spelled 1."""
    cdef uint64_t key
    memcpy(&key, ids + number * ID, 8)
    return key if key != 0 else 1


cdef inline Py_ssize_t slot_of(const uint64_t* keys, uint64_t mask, uint64_t key) noexcept nogil:
    """Where `key` is, or the empty slot where it would go. The low bits choose: linear probing."""
    cdef uint64_t at = key & mask
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & mask
    return <Py_ssize_t>at


cdef inline Py_ssize_t check(const uint8_t[::1] ids) except -1:
    """How many ids these are."""
    if ids.shape[0] % ID:
        raise ValueError("ids are 32 bytes each")
    return ids.shape[0] // ID


cdef inline Py_ssize_t check_rows(const uint8_t[::1] rows) except -1:
    """How many rows (`Place.encode`) these are."""
    if rows.shape[0] % ROW:
        raise ValueError("index rows are 18 bytes each")
    return rows.shape[0] // ROW


cdef inline uint32_t word_at(const uint8_t* row, Py_ssize_t at) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, row + at, 4)
    return word


cdef inline uint64_t on_disk(const uint8_t* row) noexcept nogil:
    """`Place.on_disk` of an index row."""
    cdef uint64_t span = word_at(row, SPAN_AT)
    return (span + UNIT - 1) & ~<uint64_t>(UNIT - 1)


cdef inline int enlarge(void** block, uint64_t items, size_t width) except -1:
    """Make room for so many items. Large blocks are moved by the kernel, page tables and not bytes."""
    cdef void* moved = realloc(block[0], items * width)
    if moved == NULL:
        raise MemoryError
    block[0] = moved
    return 0
