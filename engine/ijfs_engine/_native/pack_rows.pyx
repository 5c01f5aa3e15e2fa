"""Sums and offsets by pack, out of index rows, for repacking. Its slow twin is in tests/engine/test_native_idset.py."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort

from .ids cimport FIRST, ROW, UNIT, check_rows, enlarge, on_disk, word_at


cdef int ascending(const void* left, const void* right) noexcept nogil:
    cdef uint64_t one = (<const uint64_t*>left)[0]
    cdef uint64_t other = (<const uint64_t*>right)[0]
    return (one > other) - (one < other)


cdef class PackRows:
    """What index rows say of some packs: how many bytes of each are live, and where its live frames begin.

    8 bytes per frame that `collect` is given, none for `weigh`. Rows of other packs are passed by. Not thread-safe.
    """

    cdef uint32_t* packs
    cdef uint64_t* bytes
    cdef uint64_t* places
    cdef Py_ssize_t amount
    cdef uint64_t used, room
    cdef bint sorted

    def __cinit__(self, numbers):
        """For the packs of these numbers, which ascend."""
        cdef Py_ssize_t at
        self.amount = len(numbers)
        self.packs = <uint32_t*>calloc(self.amount + 1, 4)
        self.bytes = <uint64_t*>calloc(self.amount + 1, 8)
        self.places = <uint64_t*>calloc(FIRST, 8)
        if not (self.packs and self.bytes and self.places):
            raise MemoryError
        self.room = FIRST
        self.used = 0
        self.sorted = True
        for at in range(self.amount):
            self.packs[at] = numbers[at]
            if at and self.packs[at] <= self.packs[at - 1]:
                raise ValueError("pack numbers ascend")

    def __dealloc__(self):
        free(self.packs)
        free(self.bytes)
        free(self.places)

    def __len__(self):
        """Frames that were collected."""
        return self.used

    cdef inline Py_ssize_t find(self, uint32_t pack) noexcept nogil:
        """Where the pack stands among ours, or -1."""
        cdef Py_ssize_t low = 0, high = self.amount, middle
        while low < high:
            middle = (low + high) // 2
            if self.packs[middle] < pack:
                low = middle + 1
            else:
                high = middle
        return low if low < self.amount and self.packs[low] == pack else -1

    def weigh(self, const uint8_t[::1] rows not None):
        """Count what these rows take on disk to their packs; how many of them are of other packs."""
        cdef Py_ssize_t number, at, others = 0
        for number in range(check_rows(rows)):
            at = self.find(word_at(&rows[number * ROW], 0))
            if at >= 0:
                self.bytes[at] += on_disk(&rows[number * ROW])
            else:
                others += 1
        return others

    def weights(self):
        """Bytes that were counted to each pack."""
        return [self.bytes[at] for at in range(self.amount)]

    def collect(self, const uint8_t[::1] rows not None):
        """Remember where these frames begin."""
        cdef Py_ssize_t count = check_rows(rows)
        cdef Py_ssize_t number, at
        if self.used + <uint64_t>count > self.room:
            self.room = max(self.used + <uint64_t>count, self.room + self.room // 2)
            enlarge(<void**>&self.places, self.room, 8)
        for number in range(count):
            at = self.find(word_at(&rows[number * ROW], 0))
            if at >= 0:
                self.places[self.used] = <uint64_t>at << 32 | word_at(&rows[number * ROW], 4)
                self.used += 1
        self.sorted = False

    def offsets(self, number):
        """Where the frames of one pack that were collected begin, ascending. KeyError for none of ours."""
        cdef Py_ssize_t pack = self.find(number)
        cdef uint64_t low = 0, high = self.used, middle
        cdef list found = []
        if pack < 0:
            raise KeyError(number)
        if not self.sorted:
            qsort(self.places, self.used, 8, ascending)
            self.sorted = True
        while low < high:
            middle = (low + high) // 2
            if self.places[middle] >> 32 < <uint64_t>pack:
                low = middle + 1
            else:
                high = middle
        while low < self.used and self.places[low] >> 32 == <uint64_t>pack:
            found.append((self.places[low] & 0xFFFFFFFF) * UNIT)
            low += 1
        return found
