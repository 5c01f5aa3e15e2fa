"""For bulk.pyx, which gets what is wanted."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .extent_columns cimport Columns

cdef enum:
    ID = 32
    HEADER = 64

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
    uint8_t id[ID]
    uint64_t offset     # of its frame in the pack
    uint32_t pack
    uint32_t span       # bytes of its frame; 0: nobody has said where it is
    uint32_t plain
    uint32_t piece      # the last piece added, + 1; 0: none
    uint8_t *out
    uint8_t *bases      # records of a difference that is not complete
    uint8_t n_bases
    uint8_t codec
    uint8_t state
    uint8_t depth
    uint8_t pieces      # 0, 1, or 2 for any more
    bint apart          # `out` is bytes of the chunk's own
    bint direct         # its payload is read to where it belongs

cdef class ReadPlan:
    cdef Chunk *chunks
    cdef size_t n
    cdef size_t room
    cdef uint32_t *slots    # numbers + 1 by id, open addressing
    cdef size_t n_slots     # a power of two
    cdef Piece *pieces
    cdef size_t n_pieces
    cdef size_t piece_room
    cdef Py_buffer *views
    cdef size_t n_views
    cdef dict owned         # number -> bytes of the chunk's own

    cdef uint8_t *hold(self, object buffer, size_t *size) except? NULL
    cdef size_t slot_of(self, const uint8_t *ident) noexcept nogil
    cdef size_t find(self, const uint8_t *ident) noexcept nogil
    cdef int grow_table(self) except -1
    cdef uint32_t number_of(self, const uint8_t *ident) except? 0xFFFFFFFF
    cdef int add_piece(self, uint32_t number, uint32_t offset, uint32_t length, uint8_t *target) except -1
    cdef int add_span(self, Columns columns, uint64_t inside, uint8_t *target, size_t size) except -1
    cdef bint has_pieces(self, size_t number, size_t size) noexcept nogil
    cdef void deliver(self, size_t number, const uint8_t *plain) noexcept nogil
    cdef void place_at(self, size_t number, const uint8_t *row) noexcept nogil
    cdef bint settle_target(self, size_t number) except -1
