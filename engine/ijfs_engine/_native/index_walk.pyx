"""Every page of an index looked at before LMDB may trust it: 0.6 us a page, without the GIL. Called at an open.

LMDB maps its file and believes what a page says of its nodes and of other pages. `IndexWalk` reads each page by
`pread` and holds offsets against the page, numbers of pages against the file, and that none is in use twice.
storage/index_pages.py does the same in Python, slowly and around what is damaged, for fsck and repair; the tests hold
the two against each other. The offsets are LMDB 0.9's (mdb.c: `MDB_page`, `MDB_node`).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *into, size_t size, long offset)

cdef enum:
    HEAD = 16
    NODE = 8
    BRANCH = 1
    LEAF = 2
    LONG = 4
    # Flags of a node: the value stands on pages of its own, or is the root of a table.
    ELSEWHERE = 1
    TABLE = 2
    DEEPEST = 32

cdef enum:
    NO_FAULT
    NOT_IN_FILE
    IN_USE_TWICE
    WRONG_KIND
    WRONG_DEPTH
    NO_ROOM
    OUT_OF_ORDER
    NOT_FREE

FAULTS = (
    "", "is not in the file", "is in use twice", "is not what stands there", "is at a depth where it may not be",
    "has no room as it says", "has keys out of order", "names pages as free that cannot be",
)


cdef inline uint16_t u16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value


cdef inline uint64_t u64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef class IndexWalk:
    """The pages of one state of an index: `pages` of `page_size` bytes in an open file. Used by one thread."""

    cdef int fd
    cdef size_t size
    cdef uint64_t count
    cdef uint8_t *used
    cdef uint8_t *room      # a page for each depth
    cdef uint64_t page      # the one with a fault
    cdef uint64_t branches
    cdef uint64_t leaves
    cdef uint64_t longs
    cdef uint64_t entries
    cdef bint numbers       # keys are LMDB's own, compared as numbers, and the values lists of free pages

    def __cinit__(self, int fd, size_t page_size, uint64_t pages):
        if not 4096 <= page_size <= 1 << 16 or pages > 1 << 40:
            raise ValueError(f"no index has {pages} pages of {page_size} bytes")
        self.fd, self.size, self.count = fd, page_size, pages
        self.used = <uint8_t *>calloc(pages + 1, 1)
        self.room = <uint8_t *>malloc((DEEPEST + 1) * page_size)
        if self.used == NULL or self.room == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.used)
        free(self.room)

    def tree(self, uint64_t root, int depth, bint numbers=False):
        """Look at a tree: its pages of branches, of leaves and of long values, and its rows. ValueError for a fault.

        `numbers`: it is the list of free pages.
        """
        cdef int fault
        self.branches = self.leaves = self.longs = self.entries = 0
        self.numbers = numbers
        with nogil:
            fault = self.walk(root, 1, depth, NULL, NULL)
        if fault:
            raise ValueError(f"page {self.page} {FAULTS[fault]}")
        return self.branches, self.leaves, self.longs, self.entries

    cdef int take(self, uint64_t number) noexcept nogil:
        self.page = number
        if not 2 <= number < self.count:
            return NOT_IN_FILE
        if self.used[number]:
            return IN_USE_TWICE
        self.used[number] = 1
        return NO_FAULT

    cdef int load(self, uint64_t number, uint8_t *into, size_t size) noexcept nogil:
        self.page = number
        if pread(self.fd, into, size, number * self.size) != <ssize_t>size:
            return NOT_IN_FILE
        return NO_FAULT if u64(into) == number else WRONG_KIND

    cdef int walk(
        self, uint64_t number, int depth, int deepest, const uint8_t *low, const uint8_t *high
    ) noexcept nogil:
        """A page and all below; `low` and `high` are the nodes between whose keys all of its keys lie, or NULL."""
        cdef uint8_t *page = self.room + depth * self.size
        cdef int fault = WRONG_DEPTH if not 1 <= depth <= deepest <= DEEPEST else self.take(number)
        fault = fault or self.load(number, page, self.size) or self.check_page(page, depth == deepest)
        fault = fault or self.check_bounds(page, low, high)
        if fault:
            return fault
        cdef size_t lower = u16(page + 12), at
        cdef const uint8_t *node
        if u16(page + 10) == LEAF:
            self.leaves += 1
            return NO_FAULT
        self.branches += 1
        for at in range(HEAD, lower, 2):
            node = page + u16(page + at)
            # The first key of a branch stands for all that are lower.
            fault = self.walk(
                child(node), depth + 1, deepest,
                node if at > HEAD else low,
                page + u16(page + at + 2) if at + 2 < lower else high,
            )
            if fault:
                return fault
        return NO_FAULT

    cdef int check_bounds(self, const uint8_t *page, const uint8_t *low, const uint8_t *high) noexcept nogil:
        cdef size_t first = HEAD if u16(page + 10) == LEAF else HEAD + 2, lower = u16(page + 12)
        if first >= lower:
            return NO_FAULT
        if low != NULL and self.rises(page + u16(page + first), low):
            return OUT_OF_ORDER
        if high != NULL and not self.rises(page + u16(page + lower - 2), high):
            return OUT_OF_ORDER
        return NO_FAULT

    cdef int check_page(self, const uint8_t *page, bint at_the_end) noexcept nogil:
        """That a page is what its place says, and all of its nodes are on it, in order."""
        cdef size_t flags = u16(page + 10), lower = u16(page + 12), upper = u16(page + 14)
        cdef size_t at, node, key_size, stop, taken = 0
        cdef uint64_t number = self.page
        cdef const uint8_t *before = NULL
        cdef int fault
        if flags != BRANCH and flags != LEAF:
            return WRONG_KIND
        if (flags == LEAF) != at_the_end:
            return WRONG_DEPTH
        if not HEAD < lower <= upper <= self.size or lower % 2:
            return NO_ROOM
        if flags == BRANCH and lower < HEAD + 4 and not self.numbers:
            return NO_ROOM
        for at in range(HEAD, lower, 2):
            node = u16(page + at)
            if not upper <= node <= self.size - NODE:
                return NO_ROOM
            key_size = u16(page + node + 6)
            stop = node + NODE + key_size
            if flags == LEAF:
                stop += value_size(page + node)
            if stop > self.size or (self.numbers and key_size != 8 and (flags == LEAF or at > HEAD)):
                return NO_ROOM
            taken += stop - node + ((stop - node) & 1)
            if flags == LEAF or at > HEAD:
                if before != NULL and not self.rises(before, page + node):
                    return OUT_OF_ORDER
                before = page + node
            if flags == LEAF:
                self.entries += 1
                fault = self.check_value(page + node, key_size)
                self.page = number
                if fault:
                    return fault
        return NO_FAULT if taken == self.size - upper else NO_ROOM

    cdef bint rises(self, const uint8_t *node, const uint8_t *following) noexcept nogil:
        cdef size_t size = u16(node + 6), other = u16(following + 6)
        cdef int order
        if self.numbers:
            return u64(node + NODE) < u64(following + NODE)
        order = memcmp(node + NODE, following + NODE, min(size, other))
        return order < 0 or (order == 0 and size < other)

    cdef int check_value(self, const uint8_t *node, size_t key_size) noexcept nogil:
        cdef size_t flags = u16(node + 4), size = u16(node) | <size_t>u16(node + 2) << 16, pages, i
        cdef const uint8_t *value = node + NODE + key_size
        cdef uint8_t *whole
        cdef int fault = NO_FAULT
        if flags != 0 and flags != ELSEWHERE and flags != TABLE:
            return WRONG_KIND
        if flags != ELSEWHERE:
            return self.check_free(value, size) if self.numbers else NO_FAULT
        pages = (HEAD - 1 + size) // self.size + 1
        if pages > self.count:
            return NO_ROOM
        for i in range(pages):
            fault = self.take(u64(value) + i)
            if fault:
                return fault
        self.longs += pages
        whole = <uint8_t *>malloc(pages * self.size)
        if whole == NULL:
            return NO_ROOM
        fault = self.load(u64(value), whole, pages * self.size if self.numbers else self.size)
        if not fault and (u16(whole + 10) != LONG or (u16(whole + 12) | <size_t>u16(whole + 14) << 16) != pages):
            fault = WRONG_KIND
        if not fault and self.numbers:
            fault = self.check_free(whole + HEAD, size)
        free(whole)
        return fault

    cdef int check_free(self, const uint8_t *value, size_t size) noexcept nogil:
        """A list of free pages: how many, then their numbers, falling. None of them is in use."""
        cdef uint64_t count, number, before = <uint64_t>-1, i
        if size < 8:
            return NOT_FREE
        count = u64(value)
        if count > size // 8 - 1:
            return NOT_FREE
        for i in range(count):
            number = u64(value + 8 + 8 * i)
            if number < 2 or number >= before:
                return NOT_FREE
            before = number
            # LMDB has not written pages at the end that nothing uses.
            if number < self.count:
                if self.used[number]:
                    return NOT_FREE
                self.used[number] = 1
        return NO_FAULT


cdef inline uint64_t child(const uint8_t *node) noexcept nogil:
    """The page below, of a branch's node."""
    return u16(node) | <uint64_t>u16(node + 2) << 16 | <uint64_t>u16(node + 4) << 32


cdef inline size_t value_size(const uint8_t *node) noexcept nogil:
    """Bytes of a leaf's node behind its key."""
    return 8 if u16(node + 4) & ELSEWHERE else u16(node) | <size_t>u16(node + 2) << 16
