"""Many stored chunks unpacked in one call, without the GIL, straight to where their bytes belong. Called by the reader.

A chunk at a time in Python costs some 100 us, most of them with the GIL held, so more threads read no faster. Here a
read of a megabyte is a few calls: `Filling` is told the pieces of leaves that are wanted, sorts the chunks by their place
in the packs, and unpacks each frame of what was read either where its only piece goes or into bytes of its own.

Whatever does not fit (a frame that is another than the index says, a payload that does not unpack, wrong bytes) is left
undone: the caller reads such a chunk by itself, and codec.py says what is wrong with it. Nothing is done until its id was
checked. docs/format.md ("Frame", "Codecs") has the bytes; reference.py the slow twin.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from .columns cimport Columns
from .payload cimport MAX_PLAIN, XOR_PLANES, XOR_ZSTD
from .unpack cimport Unpacker, is_chunk, unpack

cdef extern from "bytes.h" nogil:
    enum:
        IJFS_PAGE
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)

# frames.py and index.py have these numbers, too.
cdef enum:
    ID = 32
    HEADER = 64
    BASE = 40
    ROW = 18
    CHUNK_KIND = 1
    # A frame that is longer than a chunk can make it is read by itself.
    MAX_SPAN = MAX_PLAIN + HEADER + 255 * BASE + 4096
cdef uint32_t MAGIC = 0x664A49AB
cdef uint32_t NO_CHUNK = 0xFFFFFFFF

cdef enum State:
    WANTED    # not there yet
    PLACED    # where it is in a pack is known
    BASED     # what is there is the difference to its bases
    DONE

cdef struct Piece:
    uint32_t offset
    uint32_t length
    uint32_t next       # of the same chunk, + 1; 0: none
    uint8_t *target

cdef struct Chunk:
    uint32_t pack
    uint32_t span
    uint32_t plain
    uint32_t piece      # the last piece added, + 1; 0: none
    uint64_t offset
    uint8_t *out
    uint8_t id[ID]
    uint8_t state
    uint8_t depth
    uint8_t pieces      # 0, 1, or 2 for any more
    bint apart          # `out` is bytes of the chunk's own


cdef class Filling:
    """Bytes of files on their way into buffers. Used by one thread, in the order of its methods.

    The buffers are held until the object is gone; those of zeros are filled at once.
    """

    cdef list ids           # chunk ids, by number
    cdef dict numbers
    cdef list owned         # bytes of the chunk's own, or None where it is unpacked in place
    cdef dict differences   # number -> its base records
    cdef Chunk *chunks
    cdef size_t room
    cdef Piece *pieces
    cdef size_t n_pieces
    cdef size_t piece_room
    cdef Py_buffer *views
    cdef size_t n_views
    cdef uint32_t *order    # chunks by place
    cdef Unpacker tools

    def __cinit__(self, Unpacker tools not None):
        self.tools = tools
        self.ids, self.numbers, self.owned, self.differences = [], {}, [], {}

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.n_views):
            PyBuffer_Release(&self.views[i])
        free(self.views)
        free(self.chunks)
        free(self.pieces)
        free(self.order)

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

    cdef uint32_t number_of(self, bytes ident) except? 0xFFFFFFFF:
        cdef object known = self.numbers.get(ident)
        if known is not None:
            return known
        cdef size_t number = len(self.ids)
        cdef Chunk *grown
        if number == self.room:
            grown = <Chunk *>realloc(self.chunks, (2 * self.room + 32) * sizeof(Chunk))
            if grown == NULL:
                raise MemoryError
            self.chunks, self.room = grown, 2 * self.room + 32
        memset(&self.chunks[number], 0, sizeof(Chunk))
        memcpy(self.chunks[number].id, PyBytes_AS_STRING(ident), ID)
        self.ids.append(ident)
        self.owned.append(None)
        self.numbers[ident] = number
        return number

    cdef int add_piece(self, uint32_t number, uint32_t offset, uint32_t length, uint8_t *target) except -1:
        cdef Piece *grown
        if self.n_pieces == self.piece_room:
            grown = <Piece *>realloc(self.pieces, (2 * self.piece_room + 64) * sizeof(Piece))
            if grown == NULL:
                raise MemoryError
            self.pieces, self.piece_room = grown, 2 * self.piece_room + 64
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
        self.add_piece(self.number_of(ident), offset, size, target)

    def add_whole(self, bytes ident not None):
        """The whole chunk is wanted: `kept` has it in the end."""
        if len(ident) != ID:
            raise ValueError(f"an id has {ID} bytes, not {len(ident)}")
        self.number_of(ident)

    def add_leaf(self, Columns columns not None, uint64_t inside, buffer):
        """`buffer` is to hold the bytes of a leaf from `inside` on. ValueError if the leaf has fewer, or makes no sense."""
        cdef size_t size = 0
        cdef uint8_t *target = self.hold(buffer, &size)
        self.add_span(columns, inside, target, size)

    cdef int add_span(self, Columns columns, uint64_t inside, uint8_t *target, size_t size) except -1:
        cdef size_t at, step
        cdef uint64_t offset
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
                ident = PyBytes_FromStringAndSize(PyBytes_AS_STRING(columns.ids) + <size_t>columns.index[at] * ID, ID)
                self.add_piece(self.number_of(ident), offset, step, target)
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

    def wanted(self):
        """(number, id) of the chunks that are not done."""
        return [(i, ident) for i, ident in enumerate(self.ids) if self.chunks[<size_t>i].state != DONE]

    def know(self, size_t number, const uint8_t[::1] plain):
        """These are the bytes of a chunk, checked. ValueError if it does not have all that is wanted of it."""
        cdef size_t size = plain.shape[0]
        if number >= <size_t>len(self.ids):
            raise ValueError(f"there is no chunk {number}")
        if not self.has_pieces(number, size):
            raise ValueError("a leaf refers to bytes that a chunk does not have")
        with nogil:
            if size:
                self.deliver(number, &plain[0])
        self.chunks[number].state = DONE
        # What was unpacked of it, if anything, is not what these bytes are.
        self.chunks[number].out, self.owned[number] = NULL, None

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

    cdef void settle(self, size_t number) noexcept nogil:
        """What is unpacked is the chunk's, or the chunk stays wanted."""
        cdef Chunk *chunk = &self.chunks[number]
        if is_chunk(self.tools, chunk.out, chunk.plain, chunk.id):
            chunk.state = DONE
            if chunk.apart:
                self.deliver(number, chunk.out)
        else:
            chunk.state = WANTED

    def place(self, rows, uint64_t gap, uint64_t longest, int below=256):
        """Where the chunks are that are wanted: their index rows (None where there is none), in the order of `wanted`.

        Returns the reads to make: (pack, offset, bytes, first, end) for `unpack`. Frames nearer than `gap` are one read. A
        chunk that is not less deep than `below` is left out.
        """
        cdef size_t n = 0, i, first
        cdef Chunk *chunk
        cdef const uint8_t *row
        cdef uint32_t units = 0
        wanted = self.wanted()
        if len(wanted) != len(rows):
            raise ValueError(f"{len(rows)} rows for {len(wanted)} chunks")
        free(self.order)
        self.order = <uint32_t *>malloc((len(wanted) + 1) * sizeof(uint32_t))
        if self.order == NULL:
            raise MemoryError
        placed = []
        for (number, _), value in zip(wanted, rows):
            if type(value) is not bytes or len(value) != ROW:
                continue
            chunk = &self.chunks[<size_t>number]
            row = <const uint8_t *>PyBytes_AS_STRING(value)
            memcpy(&chunk.pack, row, 4)
            memcpy(&units, row + 4, 4)
            chunk.offset = <uint64_t>units * 8
            memcpy(&chunk.span, row + 8, 4)
            memcpy(&chunk.plain, row + 12, 4)
            chunk.depth = row[17]
            if chunk.depth < below and HEADER <= chunk.span <= MAX_SPAN and chunk.plain <= MAX_PLAIN and self.settle_target(number):
                chunk.state = PLACED
                placed.append((chunk.pack, chunk.offset, number))
        placed.sort()
        for i, (_, _, number) in enumerate(placed):
            self.order[i] = number
        return self.reads(len(placed), gap, longest)

    cdef bint settle_target(self, size_t number) except -1:
        """Where a chunk is unpacked; False if what is wanted of it is not in it."""
        cdef Chunk *chunk = &self.chunks[number]
        cdef Piece *piece
        if chunk.pieces == 1:
            piece = &self.pieces[chunk.piece - 1]
            if piece.offset == 0 and piece.length == chunk.plain:
                chunk.out = piece.target
                return True
        if not self.has_pieces(number, chunk.plain):
            return False
        own = PyBytes_FromStringAndSize(NULL, chunk.plain)
        self.owned[number] = own
        chunk.out = <uint8_t *>PyBytes_AS_STRING(own)
        chunk.apart = True
        return True

    cdef list reads(self, size_t n, uint64_t gap, uint64_t longest):
        cdef size_t i, first = 0
        cdef uint64_t begin = 0, end = 0
        cdef Chunk *chunk
        found = []
        for i in range(n):
            chunk = &self.chunks[self.order[i]]
            if i > first and (chunk.pack != self.chunks[self.order[first]].pack or chunk.offset > end + gap
                              or chunk.offset + chunk.span > begin + longest):
                found.append((self.chunks[self.order[first]].pack, begin, end - begin, first, i))
                first = i
            if i == first:
                begin, end = chunk.offset, 0
            end = max(end, chunk.offset + chunk.span)
        if n:
            found.append((self.chunks[self.order[first]].pack, begin, end - begin, first, n))
        return found

    def unpack(self, size_t first, size_t end, const uint8_t[::1] data, uint64_t begin):
        """Unpack and check the frames of a read, whose bytes from `begin` of the pack are `data` (fewer at a pack's end).

        Returns (number, depth, base records) of the differences among them, to be completed with `add_bases`.
        """
        cdef size_t i, size = data.shape[0]
        cdef Chunk *chunk
        if end > <size_t>len(self.ids) or self.order == NULL or size == 0:
            return []
        with nogil:
            for i in range(first, end):
                chunk = &self.chunks[self.order[i]]
                if chunk.state == PLACED and begin <= chunk.offset <= begin + size and chunk.span <= begin + size - chunk.offset:
                    self.unframe(self.order[i], &data[chunk.offset - begin])
        based = []
        for i in range(first, end):
            chunk = &self.chunks[self.order[i]]
            if chunk.state == BASED:
                at = chunk.offset - begin + HEADER
                based.append((self.order[i], chunk.depth, bytes(data[at:at + data[<size_t>at - HEADER + 7] * BASE])))
        return based

    cdef void unframe(self, size_t number, const uint8_t *frame) noexcept nogil:
        cdef Chunk *chunk = &self.chunks[number]
        cdef uint32_t stored = 0, plain = 0, magic = 0
        cdef size_t head = HEADER + <size_t>frame[7] * BASE
        cdef int codec = frame[5]
        memcpy(&magic, frame, 4)
        memcpy(&stored, frame + 8, 4)
        memcpy(&plain, frame + 12, 4)
        if (magic != MAGIC or frame[4] != CHUNK_KIND or frame[6] != chunk.depth or plain != chunk.plain
                or head + stored != chunk.span or memcmp(frame + 20, chunk.id, ID) != 0):
            return
        if unpack(self.tools, codec, frame + head, stored, chunk.out, plain):
            if codec == XOR_ZSTD or codec == XOR_PLANES:
                chunk.state = BASED
            else:
                self.settle(number)

    def lacking(self, records):
        """The chunks that base records (frames.BASE) name and that are not done here, each once."""
        found = {}
        for at in range(0, len(records) // BASE * BASE, BASE):
            ident = records[at:at + ID]
            if ident != ZERO_ID and self.done(ident) == NULL:
                found[ident] = None
        return list(found)

    cdef Chunk *done(self, ident):
        """A chunk that was unpacked here and is right."""
        number = self.numbers.get(ident)
        if number is None:
            return NULL
        cdef Chunk *chunk = &self.chunks[<size_t>number]
        return chunk if chunk.state == DONE and chunk.out != NULL else NULL

    def add_bases(self, size_t number, bytes records not None, plains):
        """Complete a difference: `plains` has the plain bytes, by id, of the chunks that `lacking` told of its records."""
        cdef size_t n = len(records) // BASE, done = 0, size, i
        cdef uint32_t offset = 0, length = 0
        cdef const uint8_t *record = <const uint8_t *>PyBytes_AS_STRING(records)
        cdef const uint8_t[::1] plain
        cdef const uint8_t *base
        cdef Chunk *own
        cdef Chunk *chunk
        if number >= <size_t>len(self.ids) or self.chunks[number].state != BASED:
            raise ValueError(f"chunk {number} is no difference")
        chunk = &self.chunks[number]
        for i in range(n):
            memcpy(&offset, record + ID, 4)
            memcpy(&length, record + ID + 4, 4)
            if length > chunk.plain - done:
                return
            ident = PyBytes_FromStringAndSize(<const char *>record, ID)
            if ident != ZERO_ID and length:
                own = self.done(ident)
                if own != NULL:
                    base, size = own.out, own.plain
                else:
                    plain = plains[ident]
                    size = plain.shape[0]
                    base = &plain[0] if size else NULL
                if <size_t>offset + length > size:
                    return
                with nogil:
                    ijfs_xor_into(chunk.out + done, base + offset, length)
            done += length
            record += BASE
        if done == chunk.plain:
            with nogil:
                self.settle(number)

    def kept(self):
        """(id, bytes) of the chunks that were not unpacked in place: of those, more may be wanted soon."""
        return [(ident, own) for i, (ident, own) in enumerate(zip(self.ids, self.owned))
                if own is not None and self.chunks[<size_t>i].state == DONE]


cdef bytes ZERO_ID = bytes(ID)
