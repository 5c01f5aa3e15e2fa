"""Compact tables of chunk ids: the set that gc and fsck mark in, and the tally that du counts with.

Ids are BLAKE3 hashes, so their first 8 bytes serve as key and as hash at once: 8 bytes a chunk in IdSet at a load of
at most 3/4 (10 million chunks: 128 MiB), against about 110 in a Python set. Two ids that share 8 bytes count as one
chunk: gc then keeps a chunk too many, and never takes one too many. Their slow twins are in
tests/engine/test_gc.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef enum:
    ID = 32
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


cdef Py_ssize_t check(const uint8_t[::1] ids) except -1:
    if ids.shape[0] % ID:
        raise ValueError("ids are 32 bytes each")
    return ids.shape[0] // ID


cdef class IdSet:
    """A set of ids, given and asked many at a time as 32-byte strings end to end. Not thread-safe."""

    cdef uint64_t* keys
    cdef uint64_t mask
    cdef uint64_t used

    def __cinit__(self):
        self.keys = <uint64_t*>calloc(FIRST, 8)
        if self.keys == NULL:
            raise MemoryError
        self.mask = FIRST - 1
        self.used = 0

    def __dealloc__(self):
        free(self.keys)

    def __len__(self):
        return self.used

    cdef int reserve(self, Py_ssize_t more) except -1:
        cdef uint64_t size = self.mask + 1
        cdef uint64_t old = size
        cdef uint64_t* fresh
        cdef uint64_t at
        while (self.used + <uint64_t>more) * 4 > size * 3:
            size *= 2
        if size == old:
            return 0
        fresh = <uint64_t*>calloc(size, 8)
        if fresh == NULL:
            raise MemoryError
        with nogil:
            for at in range(old):
                if self.keys[at] != 0:
                    fresh[slot_of(fresh, size - 1, self.keys[at])] = self.keys[at]
        free(self.keys)
        self.keys = fresh
        self.mask = size - 1
        return 0

    def add(self, const uint8_t[::1] ids not None):
        """Add them all; one byte per id: 1 where it was new. ValueError for a torn id."""
        cdef Py_ssize_t count = check(ids)
        cdef Py_ssize_t number, slot
        cdef uint64_t key
        cdef bytes fresh = PyBytes_FromStringAndSize(NULL, count)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(fresh)
        self.reserve(count)
        for number in range(count):
            key = key_of(&ids[0], number)
            slot = slot_of(self.keys, self.mask, key)
            out[number] = self.keys[slot] == 0
            if out[number]:
                self.keys[slot] = key
                self.used += 1
        return fresh

    def has(self, const uint8_t[::1] ids not None):
        """One byte per id: 1 where the set has it. ValueError for a torn id."""
        cdef Py_ssize_t count = check(ids)
        cdef Py_ssize_t number
        cdef bytes found = PyBytes_FromStringAndSize(NULL, count)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(found)
        for number in range(count):
            out[number] = self.keys[slot_of(self.keys, self.mask, key_of(&ids[0], number))] != 0
        return found


cdef struct Row:
    uint64_t key
    uint32_t size
    uint32_t last
    uint32_t owner


cdef enum:
    NOBODY = 0
    SEVERAL = 0xFFFFFFFF


cdef class Tally:
    """Counts, per group (snapshot), the bytes of distinct ids it reaches and of those that no other group reaches.

    Groups are numbered from 1. `learn` gives the size of ids, then `count` may count them, in any order of groups as
    long as the counts of one group come together.
    """

    cdef Row* rows
    cdef uint64_t mask
    cdef uint64_t used
    cdef list stored
    cdef list unique

    def __cinit__(self):
        self.rows = <Row*>calloc(FIRST, sizeof(Row))
        if self.rows == NULL:
            raise MemoryError
        self.mask = FIRST - 1
        self.used = 0

    def __init__(self, groups):
        """For groups 1 to `groups`."""
        self.stored = [0] * (groups + 1)
        self.unique = [0] * (groups + 1)

    def __dealloc__(self):
        free(self.rows)

    def __len__(self):
        return self.used

    cdef inline Row* row_of(self, uint64_t key) noexcept nogil:
        cdef uint64_t at = key & self.mask
        while self.rows[at].key != 0 and self.rows[at].key != key:
            at = (at + 1) & self.mask
        return &self.rows[at]

    cdef int grow(self) except -1:
        cdef Row* old = self.rows
        cdef uint64_t size = self.mask + 1
        cdef uint64_t at
        cdef Row* fresh = <Row*>calloc(size * 2, sizeof(Row))
        if fresh == NULL:
            raise MemoryError
        self.rows = fresh
        self.mask = size * 2 - 1
        for at in range(size):
            if old[at].key != 0:
                self.row_of(old[at].key)[0] = old[at]
        free(old)
        return 0

    def unknown(self, const uint8_t[::1] ids not None):
        """Those of the ids for which `learn` has to come first, as a list."""
        cdef Py_ssize_t count = check(ids)
        cdef Py_ssize_t number
        cdef list missing = []
        for number in range(count):
            if self.row_of(key_of(&ids[0], number)).key == 0:
                missing.append(PyBytes_FromStringAndSize(<const char*>&ids[number * ID], ID))
        return missing

    def learn(self, const uint8_t[::1] ident not None, uint32_t size):
        """The size in bytes of one id."""
        check(ident)
        if (self.used + 1) * 4 > (self.mask + 1) * 3:
            self.grow()
        cdef uint64_t key = key_of(&ident[0], 0)
        cdef Row* row = self.row_of(key)
        if row.key == 0:
            row.key = key
            self.used += 1
        row.size = size

    def count(self, const uint8_t[::1] ids not None, uint32_t group):
        """Count ids to a group, each at most once; unknown ones are passed by."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number
        cdef Row* row
        cdef int64_t stored = 0
        cdef int64_t unique = 0
        for number in range(amount):
            row = self.row_of(key_of(&ids[0], number))
            if row.key == 0 or row.last == group:
                continue
            row.last = group
            stored += row.size
            if row.owner == NOBODY:
                row.owner = group
                unique += row.size
            elif row.owner != SEVERAL:
                self.unique[row.owner] -= row.size
                row.owner = SEVERAL
        self.stored[group] += stored
        self.unique[group] += unique

    def of(self, uint32_t group):
        """(stored, unique) bytes of a group."""
        return self.stored[group], self.unique[group]

    def total(self):
        """(bytes of all ids that were counted, those that exactly one group reaches)."""
        cdef uint64_t at
        cdef uint64_t stored = 0
        for at in range(self.mask + 1):
            if self.rows[at].key != 0 and self.rows[at].owner != NOBODY:
                stored += self.rows[at].size
        return stored, sum(self.unique)
