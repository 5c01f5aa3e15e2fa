"""Compact sets of chunk ids: the one that gc marks in, the table that fsck checks references against, and that of gc which
tells how much of each chunk is in use.

8 bytes a chunk in IdSet at a load of at most 3/4 (10 million chunks: 128 MiB), against about 110 in a Python set; 12 in
ChunkTable. gc keeps a chunk too many where two ids share 8 bytes, and never takes one too many. Their slow twins are in
tests/engine/test_native_idset.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from .ids cimport FIRST, PLAIN_AT, ROW, check, check_rows, key_of, slot_of, word_at
from .payload cimport MAX_PLAIN


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


cdef enum:
    NEEDED = 0x80000000
    SIZE = 0x7FFFFFFF
    NO_CHUNK = 0xFFFFFFFF


cdef class ChunkTable:
    """The chunks that there are, how long each is, and which of them are needed. Not thread-safe.

    First `add` all, then ask.
    """

    cdef uint64_t* keys
    cdef uint32_t* sizes
    cdef uint64_t mask, used, marked

    def __cinit__(self, uint64_t expected):
        """Room for about so many chunks; it grows where there are more."""
        cdef uint64_t slots = FIRST
        while expected * 4 > slots * 3:
            slots *= 2
        self.take(slots)

    def __dealloc__(self):
        free(self.keys)
        free(self.sizes)

    cdef int take(self, uint64_t slots) except -1:
        self.keys = <uint64_t*>calloc(slots, 8)
        self.sizes = <uint32_t*>calloc(slots, 4)
        if self.keys == NULL or self.sizes == NULL:
            raise MemoryError
        self.mask = slots - 1
        return 0

    cdef int grow(self) except -1:
        cdef uint64_t* keys = self.keys
        cdef uint32_t* sizes = self.sizes
        cdef uint64_t at, slots = self.mask + 1
        cdef Py_ssize_t slot
        self.take(slots * 2)
        for at in range(slots):
            if keys[at] != 0:
                slot = slot_of(self.keys, self.mask, keys[at])
                self.keys[slot] = keys[at]
                self.sizes[slot] = sizes[at]
        free(keys)
        free(sizes)
        return 0

    def __len__(self):
        return self.used

    @property
    def needed(self):
        """How many are needed so far."""
        return self.marked

    def add(self, const uint8_t[::1] ids not None, const uint8_t[::1] rows not None):
        """Chunks with their index rows. ValueError."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number, slot
        if check_rows(rows) != amount:
            raise ValueError("one row for each id")
        while (self.used + <uint64_t>amount) * 4 > (self.mask + 1) * 3:
            self.grow()
        for number in range(amount):
            slot = slot_of(self.keys, self.mask, key_of(&ids[0], number))
            self.used += self.keys[slot] == 0
            self.keys[slot] = key_of(&ids[0], number)
            # What an index that was tampered with says beyond a chunk's longest is not believed.
            self.sizes[slot] = min(word_at(&rows[number * ROW], PLAIN_AT), <uint32_t>MAX_PLAIN)

    def need(self, const uint8_t[::1] ids not None):
        """These are needed; one byte per id: 1 where it is there. ValueError for a torn id."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number, slot
        cdef bytes found = PyBytes_FromStringAndSize(NULL, amount)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(found)
        for number in range(amount):
            slot = slot_of(self.keys, self.mask, key_of(&ids[0], number))
            out[number] = self.keys[slot] != 0
            if out[number] and not self.sizes[slot] & NEEDED:
                self.sizes[slot] |= NEEDED
                self.marked += 1
        return found

    def is_needed(self, const uint8_t[::1] ids not None):
        """One byte per id: 1 where it is there and needed. ValueError for a torn id."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number
        cdef bytes found = PyBytes_FromStringAndSize(NULL, amount)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(found)
        for number in range(amount):
            out[number] = self.sizes[slot_of(self.keys, self.mask, key_of(&ids[0], number))] >> 31
        return found

    def fits(self, const uint8_t[::1] ids not None, const uint32_t[::1] index not None,
             const uint32_t[::1] offset not None, const uint32_t[::1] length not None):
        """Whether every extent of a leaf (`records.Leaf`) lies in its chunk; chunks that are not there are passed by.

        ValueError for columns that do not agree.
        """
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number, slot
        if offset.shape[0] != index.shape[0] or length.shape[0] != index.shape[0]:
            raise ValueError("the columns of a leaf are equally long")
        for number in range(index.shape[0]):
            if index[number] == NO_CHUNK:
                continue
            if index[number] >= amount:
                raise ValueError("an extent of no chunk")
            slot = slot_of(self.keys, self.mask, key_of(&ids[0], index[number]))
            if self.keys[slot] != 0 and <uint64_t>offset[number] + length[number] > (self.sizes[slot] & SIZE):
                return False
        return True


cdef enum:
    PARTS = 64

cdef class ChunkUse:
    """Which 64ths of each chunk some leaves name; 20 bytes a chunk, with empty slots to 53. Not thread-safe.

    First `add` all chunks, then `name` what is named; `worn` are those of which little is.
    """

    cdef uint64_t* keys
    cdef uint64_t* parts
    cdef uint32_t* sizes
    cdef uint64_t mask, used, room

    def __cinit__(self, uint64_t expected):
        """Room for so many chunks; more are passed over."""
        cdef uint64_t slots = FIRST
        while expected * 4 > slots * 3:
            slots *= 2
        self.keys = <uint64_t*>calloc(slots, 8)
        self.parts = <uint64_t*>calloc(slots, 8)
        self.sizes = <uint32_t*>calloc(slots, 4)
        if self.keys == NULL or self.parts == NULL or self.sizes == NULL:
            raise MemoryError
        self.mask, self.room = slots - 1, slots // 4 * 3

    def __dealloc__(self):
        free(self.keys)
        free(self.parts)
        free(self.sizes)

    def add(self, const uint8_t[::1] ids not None, const uint8_t[::1] rows not None):
        """Chunks with their index rows. ValueError."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number, slot
        if check_rows(rows) != amount:
            raise ValueError("one row for each id")
        for number in range(amount):
            slot = slot_of(self.keys, self.mask, key_of(&ids[0], number))
            if self.keys[slot] == 0 and self.used < self.room:
                self.used += 1
                self.keys[slot] = key_of(&ids[0], number)
                self.sizes[slot] = min(word_at(&rows[number * ROW], PLAIN_AT), <uint32_t>MAX_PLAIN)

    def name_whole(self, const uint8_t[::1] ids not None):
        """All of these chunks is named. ValueError for a torn id."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number
        for number in range(amount):
            self.parts[slot_of(self.keys, self.mask, key_of(&ids[0], number))] = ~<uint64_t>0

    def name(self, const uint8_t[::1] ids not None, const uint32_t[::1] index not None,
             const uint32_t[::1] offset not None, const uint32_t[::1] length not None):
        """What the extents of a leaf name. ValueError for columns that do not agree."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number, slot
        cdef uint64_t size, first, last
        if offset.shape[0] != index.shape[0] or length.shape[0] != index.shape[0]:
            raise ValueError("the columns of a leaf are equally long")
        for number in range(index.shape[0]):
            if index[number] == NO_CHUNK or not length[number]:
                continue
            if index[number] >= amount:
                raise ValueError("an extent of no chunk")
            slot = slot_of(self.keys, self.mask, key_of(&ids[0], index[number]))
            size = self.sizes[slot]
            if self.keys[slot] == 0 or <uint64_t>offset[number] + length[number] > size:
                continue
            first = <uint64_t>offset[number] * PARTS // size
            last = (<uint64_t>offset[number] + length[number] - 1) * PARTS // size
            self.parts[slot] |= (~<uint64_t>0 >> (PARTS - 1 - (last - first))) << first

    def worn(self, int least):
        """The first 8 bytes of each chunk's id of which some, but fewer than `least` of its 64 parts, are named."""
        cdef uint64_t slot, parts
        cdef int count
        found = bytearray()
        for slot in range(self.mask + 1):
            parts, count = self.parts[slot], 0
            while parts:
                parts &= parts - 1
                count += 1
            if self.keys[slot] != 0 and 0 < count < least:
                found += (<char*>&self.keys[slot])[:8]
        return bytes(found)
