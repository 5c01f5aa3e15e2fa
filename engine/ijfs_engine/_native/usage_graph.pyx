"""What snapshots reach, as a graph of numbers, for du. Its slow twin is in tests/engine/test_native_idset.py."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from .ids cimport FIRST, ROW, check, check_rows, enlarge, key_of, on_disk

cdef enum:
    NOBODY = 0
    SEVERAL = 0xFFFFFFFF


cdef class UsageGraph:
    """What snapshots reach, as a graph of numbers, and the bytes that each reaches alone and with others.

    First `add_edges` says what every object points at, and `set_sizes` how much each id takes on disk; then `count`, once. Ids
    get numbers in the order in which they are met, so what a leaf names lies together: a walk over it costs 3 ns a chunk,
    where looking its ids up for each snapshot costs 100. Per id: 8 bytes of key, 4 to 11 of table, 8 of size and edges,
    and 8 more for the count, when the table is gone; 4 per edge. Not thread-safe.
    """

    cdef uint64_t* keys
    cdef uint32_t* slots
    cdef uint32_t* sizes
    cdef uint32_t* edges_at
    cdef uint32_t* edges
    cdef uint64_t mask, used, room
    cdef uint64_t edges_used, edges_room

    def __cinit__(self):
        self.mask = FIRST - 1
        self.room = FIRST
        self.edges_room = FIRST
        self.used = self.edges_used = 1  # number 0 is nobody, and edges at 0 are none
        self.slots = <uint32_t*>calloc(FIRST, 4)
        self.keys = <uint64_t*>calloc(FIRST, 8)
        self.sizes = <uint32_t*>calloc(FIRST, 4)
        self.edges_at = <uint32_t*>calloc(FIRST, 4)
        self.edges = <uint32_t*>calloc(FIRST, 4)
        if not (self.slots and self.keys and self.sizes and self.edges_at and self.edges):
            raise MemoryError

    def __dealloc__(self):
        self.forget_ids()
        free(self.sizes)
        free(self.edges_at)
        free(self.edges)

    cdef void forget_ids(self) noexcept:
        free(self.slots)
        free(self.keys)
        self.slots = NULL
        self.keys = NULL

    def __len__(self):
        """How many ids were met."""
        return self.used - 1

    cdef int still_open(self) except -1:
        if self.keys == NULL:
            raise ValueError("this graph was counted")
        return 0

    cdef inline uint64_t slot(self, uint64_t key) noexcept nogil:
        cdef uint64_t at = key & self.mask
        while self.slots[at] != 0 and self.keys[self.slots[at]] != key:
            at = (at + 1) & self.mask
        return at

    cdef int reserve(self, Py_ssize_t more) except -1:
        """Room for so many new ids."""
        cdef uint64_t wanted = self.used + <uint64_t>more
        cdef uint64_t size = self.mask + 1
        cdef uint64_t number, room
        if wanted > 0xFFFFFFF0:
            raise OverflowError("more than four thousand million ids")
        if wanted > self.room:
            room = max(wanted, self.room + self.room // 4)
            enlarge(<void**>&self.keys, room, 8)
            enlarge(<void**>&self.sizes, room, 4)
            enlarge(<void**>&self.edges_at, room, 4)
            self.room = room
        if wanted * 4 > size * 3:
            while wanted * 4 > size * 3:
                size *= 2
            free(self.slots)
            self.slots = <uint32_t*>calloc(size, 4)
            if self.slots == NULL:
                self.forget_ids()
                raise MemoryError
            self.mask = size - 1
            with nogil:
                for number in range(1, self.used):
                    self.slots[self.slot(self.keys[number])] = <uint32_t>number
        return 0

    cdef inline uint32_t number_of(self, uint64_t key) noexcept nogil:
        """Its number, given now if it has none; `reserve` comes first."""
        cdef uint64_t at = self.slot(key)
        if self.slots[at] == 0:
            self.slots[at] = <uint32_t>self.used
            self.keys[self.used] = key
            self.sizes[self.used] = 0
            self.edges_at[self.used] = 0
            self.used += 1
        return self.slots[at]

    def add(self, const uint8_t[::1] ids not None):
        """Meet ids; one byte per id: 1 where it is new. ValueError for a torn id."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number
        cdef bytes fresh = PyBytes_FromStringAndSize(NULL, amount)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(fresh)
        cdef uint64_t before
        self.still_open()
        self.reserve(amount)
        for number in range(amount):
            before = self.used
            self.number_of(key_of(&ids[0], number))
            out[number] = self.used != before
        return fresh

    def add_edges(self, const uint8_t[::1] ident not None, const uint8_t[::1] ids not None):
        """Say what an id points at, once; as `add`, which of these are new."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number
        cdef bytes fresh = PyBytes_FromStringAndSize(NULL, amount)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(fresh)
        cdef uint32_t* edge
        cdef uint64_t before
        if check(ident) != 1:
            raise ValueError("one id points at others")
        self.still_open()
        self.reserve(amount + 1)
        cdef uint32_t source = self.number_of(key_of(&ident[0], 0))
        if amount == 0:
            return fresh
        if self.edges_used + <uint64_t>amount + 1 > self.edges_room:
            self.edges_room += max(<uint64_t>amount + 1, self.edges_room // 4)
            if self.edges_room > 0xFFFFFFF0:
                raise OverflowError("more than four thousand million references")
            enlarge(<void**>&self.edges, self.edges_room, 4)
        self.edges_at[source] = <uint32_t>self.edges_used
        edge = self.edges + self.edges_used
        edge[0] = <uint32_t>amount
        for number in range(amount):
            before = self.used
            edge[1 + number] = self.number_of(key_of(&ids[0], number))
            out[number] = self.used != before
        self.edges_used += <uint64_t>amount + 1
        return fresh

    def set_sizes(self, const uint8_t[::1] ids not None, const uint8_t[::1] rows not None):
        """What ids take on disk, from their index rows; those that were not met are passed by."""
        cdef Py_ssize_t amount = check(ids)
        cdef Py_ssize_t number
        if check_rows(rows) != amount:
            raise ValueError("one row for each id")
        self.still_open()
        with nogil:
            for number in range(amount):
                # Those that were not met are at slot 0 of `sizes`, which is nobody's.
                self.sizes[self.slots[self.slot(key_of(&ids[0], number))]] = <uint32_t>on_disk(&rows[number * ROW])

    def count(self, const uint8_t[::1] roots not None):
        """(bytes of everything that was reached, [(bytes, those that no other reaches) of each root]).

        The last call: the ids are forgotten. ValueError for a root that was not met.
        """
        cdef Py_ssize_t amount = check(roots)
        cdef Py_ssize_t group
        cdef list numbers = []
        self.still_open()
        for group in range(amount):
            numbers.append(self.slots[self.slot(key_of(&roots[0], group))])
        if 0 in numbers:
            raise ValueError("a root that nothing was said of")
        self.forget_ids()
        cdef Count sums = Count(self.used, amount)
        for group, number in enumerate(numbers, 1):
            self.walk(sums, <uint32_t>number, <uint32_t>group)
        return sums.total, [(sums.stored[group], sums.alone[group]) for group in range(1, amount + 1)]

    cdef int walk(self, Count sums, uint32_t root, uint32_t group) except -1:
        cdef uint32_t child
        cdef uint64_t at, number, waiting = 0
        if sums.last[root] == group:
            return 0
        sums.visit(root, group, self.sizes[root])
        sums.stack[0] = root
        waiting = 1
        while waiting:
            waiting -= 1
            at = self.edges_at[sums.stack[waiting]]
            if at == 0:
                continue
            sums.make_room(waiting + self.edges[at])
            for number in range(at + 1, at + 1 + self.edges[at]):
                child = self.edges[number]
                if sums.last[child] == group:
                    continue
                sums.visit(child, group, self.sizes[child])
                if self.edges_at[child] != 0:
                    sums.stack[waiting] = child
                    waiting += 1
        return 0


cdef class Count:
    """The arrays of one `UsageGraph.count`."""

    cdef uint32_t* last
    cdef uint32_t* owner
    cdef uint32_t* stack
    cdef uint64_t room
    cdef uint64_t total
    cdef int64_t* stored
    cdef int64_t* alone

    def __cinit__(self, uint64_t numbers, uint64_t groups):
        self.total = 0
        self.room = FIRST
        self.last = <uint32_t*>calloc(numbers, 4)
        self.owner = <uint32_t*>calloc(numbers, 4)
        self.stack = <uint32_t*>calloc(FIRST, 4)
        self.stored = <int64_t*>calloc(groups + 1, 8)
        self.alone = <int64_t*>calloc(groups + 1, 8)
        if not (self.last and self.owner and self.stack and self.stored and self.alone):
            raise MemoryError

    def __dealloc__(self):
        free(self.last)
        free(self.owner)
        free(self.stack)
        free(self.stored)
        free(self.alone)

    cdef int make_room(self, uint64_t wanted) except -1:
        if wanted > self.room:
            self.room = wanted * 2
            enlarge(<void**>&self.stack, self.room, 4)
        return 0

    cdef inline void visit(self, uint32_t number, uint32_t group, uint32_t size) noexcept nogil:
        """A group reaches something for the first time."""
        self.last[number] = group
        self.stored[group] += size
        if self.owner[number] == NOBODY:
            self.owner[number] = group
            self.alone[group] += size
            self.total += size
        elif self.owner[number] != SEVERAL:
            self.alone[self.owner[number]] -= size
            self.owner[number] = SEVERAL
