"""Which bytes of which chunks are to go where: the first half of a bulk read, whose second is bulk.pyx.

A chunk is found by its id in a table of its own, not in a dict: most of what an image of gigabytes cost in Python was
the objects made for each chunk, and other threads waited for the interpreter's lock meanwhile.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from .extent_columns cimport Columns
from .payload cimport MAX_PLAIN

cdef extern from "bytes.h" nogil:
    enum:
        IJFS_PAGE

# format/place.py has this number, too.
cdef enum:
    ROW = 18
    # A frame that is longer than a chunk can make it is read by itself.
    MAX_SPAN = MAX_PLAIN + HEADER + 255 * 40 + 4096
cdef uint32_t NO_CHUNK = 0xFFFFFFFF


cdef class ReadPlan:
    """Chunks, and the pieces of them that go into buffers. Used by one thread.

    The buffers are held until the object is gone; those of zeros are filled at once.
    """

    def __cinit__(self, *_):
        self.owned = {}

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.n_views):
            PyBuffer_Release(&self.views[i])
        for i in range(self.n):
            free(self.chunks[i].bases)
        free(self.views)
        free(self.chunks)
        free(self.slots)
        free(self.pieces)

    cdef uint8_t *hold(self, object buffer, size_t *size) except? NULL:
        """The address of a writable buffer, which stays where it is until this object is gone."""
        cdef Py_buffer *grown = <Py_buffer *>realloc(self.views, (self.n_views + 1) * sizeof(Py_buffer))
        if grown == NULL:
            raise MemoryError
        self.views = grown
        PyObject_GetBuffer(buffer, &self.views[self.n_views], PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.n_views += 1
        size[0] = self.views[self.n_views - 1].len
        return <uint8_t *>self.views[self.n_views - 1].buf

    # --- the table

    cdef size_t slot_of(self, const uint8_t *ident) noexcept nogil:
        """Where an id is in the table, or the empty slot where it would be. Ids are hashes: any part of one is."""
        cdef uint64_t key = 0
        cdef size_t at
        memcpy(&key, ident, 8)
        at = key & (self.n_slots - 1)
        while self.slots[at] and memcmp(self.chunks[self.slots[at] - 1].id, ident, ID) != 0:
            at = (at + 1) & (self.n_slots - 1)
        return at

    cdef size_t find(self, const uint8_t *ident) noexcept nogil:
        """A chunk's number + 1; 0 for one that is not among these."""
        return self.slots[self.slot_of(ident)] if self.n_slots else 0

    cdef int grow_table(self) except -1:
        cdef size_t i, number
        cdef uint32_t *slots = <uint32_t *>calloc(2 * self.n_slots or 256, sizeof(uint32_t))
        if slots == NULL:
            raise MemoryError
        free(self.slots)
        self.slots, self.n_slots = slots, 2 * self.n_slots or 256
        for number in range(self.n):
            self.slots[self.slot_of(self.chunks[number].id)] = number + 1
        return 0

    cdef uint32_t number_of(self, const uint8_t *ident) except? 0xFFFFFFFF:
        cdef Chunk *grown
        cdef size_t at
        if 2 * self.n >= self.n_slots:
            self.grow_table()
        at = self.slot_of(ident)
        if self.slots[at]:
            return self.slots[at] - 1
        if self.n == self.room:
            grown = <Chunk *>realloc(self.chunks, (2 * self.room + 96) * sizeof(Chunk))
            if grown == NULL:
                raise MemoryError
            self.chunks, self.room = grown, 2 * self.room + 96
        memset(&self.chunks[self.n], 0, sizeof(Chunk))
        memcpy(self.chunks[self.n].id, ident, ID)
        self.n += 1
        self.slots[at] = self.n
        return self.n - 1

    # --- what is wanted

    cdef int add_piece(self, uint32_t number, uint32_t offset, uint32_t length, uint8_t *target) except -1:
        cdef Piece *grown
        if self.n_pieces == self.piece_room:
            grown = <Piece *>realloc(self.pieces, (2 * self.piece_room + 96) * sizeof(Piece))
            if grown == NULL:
                raise MemoryError
            self.pieces, self.piece_room = grown, 2 * self.piece_room + 96
        cdef Piece *piece = &self.pieces[self.n_pieces]
        cdef Chunk *chunk = &self.chunks[number]
        piece.offset, piece.length, piece.target, piece.next = offset, length, target, chunk.piece
        chunk.piece = self.n_pieces + 1
        if chunk.pieces < 2:
            chunk.pieces += 1
        self.n_pieces += 1
        return 0

    def add_chunk(self, bytes ident not None, size_t offset, buffer):
        """`buffer` is to hold the bytes from `offset` of a chunk."""
        cdef size_t size = 0
        cdef uint8_t *target = self.hold(buffer, &size)
        if size > MAX_PLAIN or offset > MAX_PLAIN:
            raise ValueError(f"no chunk has {size} bytes from {offset}")
        if len(ident) != ID:
            raise ValueError(f"an id has {ID} bytes, not {len(ident)}")
        self.add_piece(self.number_of(<const uint8_t *>PyBytes_AS_STRING(ident)), offset, size, target)

    def add_whole(self, bytes ident not None):
        """The whole chunk is wanted: `kept` has it in the end."""
        if len(ident) != ID:
            raise ValueError(f"an id has {ID} bytes, not {len(ident)}")
        self.number_of(<const uint8_t *>PyBytes_AS_STRING(ident))

    def add_leaf(self, Columns columns not None, uint64_t inside, buffer):
        """`buffer` is to hold the bytes of a leaf from `inside` on. ValueError if the leaf has fewer, or makes no sense."""
        cdef size_t size = 0
        cdef uint8_t *target = self.hold(buffer, &size)
        self.add_span(columns, inside, target, size)

    cdef int add_span(self, Columns columns, uint64_t inside, uint8_t *target, size_t size) except -1:
        cdef size_t at, step
        cdef uint64_t offset
        cdef uint32_t number
        if inside > columns.size or size > columns.size - inside:
            raise ValueError(f"a leaf of {columns.size} bytes does not have {size} from {inside}")
        if size == 0:
            return 0
        at = columns.find(inside)
        inside -= columns.start[at]
        while size:
            step = min(size, columns.length[at] - inside)
            offset = columns.offset[at] + inside
            if columns.index[at] == NO_CHUNK:
                with nogil:
                    memset(target, 0, step)
            elif offset > MAX_PLAIN:
                raise ValueError("a leaf reaches beyond a chunk")
            elif step:
                number = self.number_of(<const uint8_t *>PyBytes_AS_STRING(columns.ids) + <size_t>columns.index[at] * ID)
                self.add_piece(number, offset, step, target)
                if columns.rows is not None and self.chunks[number].span == 0:
                    self.place_at(number, <const uint8_t *>PyBytes_AS_STRING(columns.rows) + <size_t>columns.index[at] * ROW)
            target += step
            size -= step
            inside = 0
            at += 1
        return 0

    def add_pages(self, const int64_t[::1] theirs, list sources not None, buffer):
        """Page i of `buffer` is to hold page theirs[i] of `sources` (as in `columns.Assembly`), where that is not negative."""
        cdef size_t n = theirs.shape[0], size = 0, i = 0, j
        cdef uint64_t begin, count, inside, page
        cdef uint8_t *target = self.hold(buffer, &size)
        if size != n * IJFS_PAGE:
            raise ValueError(f"{size} bytes for {n} pages")
        while i < n:
            if theirs[i] < 0:
                i += 1
                continue
            page = theirs[i]
            for source in sources:
                begin, count, columns, inside = source
                if begin <= page < begin + count:
                    break
            else:
                raise ValueError(f"nothing has page {page}")
            j = i + 1
            while j < n and theirs[j] == theirs[j - 1] + 1 and <uint64_t>theirs[j] < begin + count:
                j += 1
            self.add_span(columns, (inside + page - begin) * IJFS_PAGE, target + i * IJFS_PAGE, (j - i) * IJFS_PAGE)
            i = j

    # --- what is there

    def wanted(self):
        """(number, id) of the chunks that are not done."""
        cdef size_t i
        return [(i, PyBytes_FromStringAndSize(<const char *>self.chunks[i].id, ID))
                for i in range(self.n) if self.chunks[i].state != DONE]

    def unplaced(self):
        """Those of them that neither a leaf nor `place` has told the place of."""
        cdef size_t i
        return [(i, PyBytes_FromStringAndSize(<const char *>self.chunks[i].id, ID))
                for i in range(self.n) if self.chunks[i].state == WANTED and self.chunks[i].span == 0]

    def place(self, size_t number, row):
        """Where a chunk is: its row of the index; None, or one that cannot be, leaves it out."""
        if number >= self.n:
            raise ValueError(f"there is no chunk {number}")
        if type(row) is bytes and len(row) == ROW:
            self.place_at(number, <const uint8_t *>PyBytes_AS_STRING(row))
        else:
            self.chunks[number].span = 0

    cdef void place_at(self, size_t number, const uint8_t *row) noexcept nogil:
        cdef Chunk *chunk = &self.chunks[number]
        cdef uint32_t units = 0
        memcpy(&chunk.pack, row, 4)
        memcpy(&units, row + 4, 4)
        chunk.offset = <uint64_t>units * 8
        memcpy(&chunk.span, row + 8, 4)
        memcpy(&chunk.plain, row + 12, 4)
        chunk.codec, chunk.depth = row[16], row[17]
        if not HEADER <= chunk.span <= MAX_SPAN or chunk.plain > MAX_PLAIN:
            chunk.span = 0

    def know(self, size_t number, const uint8_t[::1] plain):
        """These are the bytes of a chunk, checked. ValueError if it does not have all that is wanted of it."""
        cdef size_t size = plain.shape[0]
        if number >= self.n:
            raise ValueError(f"there is no chunk {number}")
        if not self.has_pieces(number, size):
            raise ValueError("a leaf refers to bytes that a chunk does not have")
        with nogil:
            if size:
                self.deliver(number, &plain[0])
        self.chunks[number].state = DONE
        # What was unpacked of it, if anything, is not what these bytes are.
        self.chunks[number].out = NULL
        self.owned.pop(number, None)

    def kept(self):
        """(id, bytes) of the chunks that were not unpacked in place: of those, more may be wanted soon."""
        return [(PyBytes_FromStringAndSize(<const char *>self.chunks[<size_t>number].id, ID), own)
                for number, own in self.owned.items() if self.chunks[<size_t>number].state == DONE]

    cdef bint has_pieces(self, size_t number, size_t size) noexcept nogil:
        """Whether all that is wanted of a chunk lies in its `size` bytes."""
        cdef size_t i = self.chunks[number].piece
        while i:
            if <size_t>self.pieces[i - 1].offset + self.pieces[i - 1].length > size:
                return False
            i = self.pieces[i - 1].next
        return True

    cdef void deliver(self, size_t number, const uint8_t *plain) noexcept nogil:
        """Copy a chunk's pieces to where they are wanted."""
        cdef size_t i = self.chunks[number].piece
        cdef Piece *piece
        while i:
            piece = &self.pieces[i - 1]
            memmove(piece.target, plain + piece.offset, piece.length)
            i = piece.next

    cdef bint settle_target(self, size_t number) except -1:
        """Where a chunk is unpacked; False if what is wanted of it is not in it."""
        cdef Chunk *chunk = &self.chunks[number]
        cdef Piece *piece
        if chunk.pieces == 1:
            piece = &self.pieces[chunk.piece - 1]
            if piece.offset == 0 and piece.length == chunk.plain:
                chunk.out, chunk.apart = piece.target, False
                return True
        if not self.has_pieces(number, chunk.plain):
            return False
        own = PyBytes_FromStringAndSize(NULL, chunk.plain)
        self.owned[number] = own
        chunk.out, chunk.apart = <uint8_t *>PyBytes_AS_STRING(own), True
        return True
